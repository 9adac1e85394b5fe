"""The base class of the mixins for a LightningDataModule."""

import inspect
from difflib import get_close_matches
from types import FrameType
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from typing_extensions import override

from lightning_practices._packages import check_bases, either, packages_of
from lightning_practices.mixins._hyperparameters import holds_object
from lightning_practices.mixins._preprocessed import PreprocessedMixin
from lightning_practices.mixins._transfer_hook import check_super

if TYPE_CHECKING:
    _DataModule = LightningDataModule
else:  # the class that subclasses a mixin brings the LightningDataModule, of either package
    _DataModule = object


class DataPracticeMixin(_DataModule):
    """Base of the mixins for datamodules: one place where batches are changed on the device.

    A training batch is augmented first and preprocessed then, whatever the order of the mixins;
    other batches are preprocessed alone. Lightning runs ``on_after_batch_transfer`` of the
    datamodule where it has one, and then not that of the module, with a warning. If your class has
    its own, call ``super().on_after_batch_transfer(batch, dataloader_idx)`` in it.

    A mixin takes its own arguments by keyword and passes all others on to the next class. With
    ``save_hyperparameters``, checkpoints leave out arguments that are objects, which ``torch.load``
    refuses.

    Raises:
        TypeError: On subclassing, if a mixin is listed after ``LightningDataModule``, or bases are
            of both packages of Lightning. On construction, if an argument is unknown.
        RuntimeError: At the first batch, if an own ``on_after_batch_transfer`` doesn't call
            ``super()``, or the constructors of the mixins have not run.

    Example:
        >>> from lightning.pytorch import LightningDataModule
        >>> from lightning_practices.mixins import AugmentationMixin, DataPracticeMixin
        >>> class Data(AugmentationMixin, LightningDataModule): ...
        >>> isinstance(Data(augment="flip"), DataPracticeMixin)
        True
        >>> Data(augmnt="flip")
        Traceback (most recent call last):
            ...
        TypeError: Data has no argument 'augmnt': did you mean 'augment'?
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_bases(cls)
        order = cls.__mro__
        last = min((order.index(k) for k in either(LightningDataModule) if k in order), default=0)
        late = (
            [base for base in order[last:] if issubclass(base, DataPracticeMixin)] if last else []
        )
        if late:
            raise TypeError(
                f"{cls.__name__} lists {late[0].__name__} after LightningDataModule, which doesn't"
                f" call super(): write class {cls.__name__}({late[0].__name__},"
                " LightningDataModule)"
            )
        check_super(
            cls,
            DataPracticeMixin,
            DataPracticeMixin._changes_batches,
            "the preprocessing and augmentation of the mixins",
        )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        if not packages_of(cls):
            raise TypeError(
                f"{cls.__name__} is no LightningDataModule: add the class to its bases, as in class"
                f" {cls.__name__}({cls.__bases__[0].__name__}, LightningDataModule)"
            )
        order = cls.__mro__
        following = order[order.index(DataPracticeMixin) + 1 :]
        is_last = next(base for base in following if "__init__" in vars(base)) in either(
            LightningDataModule
        )
        if is_last and kwargs:
            raise TypeError(_unknown(cls, next(iter(kwargs))))
        super().__init__(*args, **kwargs)
        self._has_settings = True

    @override
    def save_hyperparameters(self, *args: Any, frame: Any = None, **kwargs: Any) -> None:
        current = inspect.currentframe()
        outer = frame or (None if current is None else current.f_back)
        ignore = kwargs.pop("ignore", None) or ()
        ignored = [*([ignore] if isinstance(ignore, str) else ignore), *_objects_in(outer)]
        super().save_hyperparameters(*args, ignore=ignored, frame=outer, **kwargs)

    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self._check_constructed()
        self._has_run = True
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return self._preprocessed(self._augmented(batch))

    def _check_constructed(self) -> None:
        if "_has_settings" not in vars(self):
            name = type(self).__name__
            raise RuntimeError(
                f"the mixins of {name} have no settings, as their constructors have not run: call"
                f" super().__init__(...) in the __init__ of {name} and of each of its bases"
            )

    def _transferred(self, batch: Any) -> Any:
        """Return a batch of a loader after the hooks that run before augmentation."""
        batch = self.on_before_batch_transfer(batch, 0)
        return super().on_after_batch_transfer(batch, 0)

    def _changes_batches(self) -> bool:
        """Say whether there is anything to do on the device."""
        names = ("_preprocessing", "_augmentation")
        return any(vars(self).get(name) is not None for name in names)

    def _augmented(self, batch: Any) -> Any:
        """Return the batch, augmented if a training step gets it."""
        return batch

    def _preprocessed(self, batch: Any) -> Any:
        """Return the batch, preprocessed as the module's training data were, if it keeps that."""
        module = self._keeping_module()
        held = None if module is None else module.preprocessing
        if held is None:
            return batch
        return held(batch, partial=self.trainer is not None and self.trainer.predicting)

    def _keeping_module(self) -> PreprocessedMixin | None:
        """Return the module of the run if it keeps the preprocessing of its training data."""
        module = None if self.trainer is None else self.trainer.lightning_module
        return module if isinstance(module, PreprocessedMixin) else None


def is_resumed(trainer: Trainer) -> bool:
    """Say whether a fit goes on from a checkpoint."""
    return bool(trainer.ckpt_path or trainer._checkpoint_connector._hpc_resume_path)


def _objects_in(frame: FrameType | None) -> list[str]:
    """Return the names of a constructor's arguments that are objects of practices, or hold one."""
    given = {} if frame is None else dict(frame.f_locals)
    for value in list(given.values()):
        if isinstance(value, dict):  # of keyword arguments
            given |= {name: one for name, one in value.items() if isinstance(name, str)}
    return [name for name, value in given.items() if name != "self" and _is_object(value)]


def _is_object(value: Any) -> bool:
    """Say whether a value is, or holds, an object that ``torch.load`` refuses."""
    if isinstance(value, list | tuple):
        return any(map(_is_object, value))
    return isinstance(value, nn.Module) or holds_object(value)


def _unknown(cls: type, name: str) -> str:
    known = {
        parameter
        for base in cls.__mro__
        if "__init__" in vars(base)
        for parameter, one in inspect.signature(base.__init__).parameters.items()  # type: ignore[misc]
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) and parameter != "self"
    }
    close = get_close_matches(name, sorted(known), 1)
    hint = f": did you mean {close[0]!r}?" if close else ""
    return f"{cls.__name__} has no argument {name!r}{hint}"
