"""The mixin that augments the training images of a datamodule."""

import weakref
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import CombinedLoader
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices._arguments import check_choice
from lightning_practices._packages import either
from lightning_practices._seeds import hashed
from lightning_practices.data import (
    Augmentation,
    Entry,
    OneAugmentation,
    augmented_loader,
    check_entry,
)
from lightning_practices.mixins._data import DataPracticeMixin, is_resumed

Place = Literal["workers", "device"]
KEY = "lightning_practices_augmentation"  # in checkpoints
_MARK = "_lightning_practices_outermost"


class AugmentationMixin(DataPracticeMixin):
    """Augment the training images of a datamodule, and no others.

    ::

        class Data(AugmentationMixin, LightningDataModule):
            def __init__(self, **practices):
                super().__init__(**practices)

            def train_dataloader(self): ...
            def val_dataloader(self): ...

        Data(augment="small_images")
        Data(augment=["crop", "flip", v2.RandAugment(magnitude=7)])
        Data(augment=["flip", augmentation("mixup", num_classes=10)], augment_on="device")

    In the ``"workers"`` each sample is augmented where it is loaded, as a PIL image or a tensor.
    The seed of its draws travels with its index. So the samples are the same for any number of
    worker processes, and the random states of all processes are as without augmentation, except for
    one number that a pass over the data draws from torch's global generator. On the ``"device"``
    batches of tensors are augmented after the transfer, before preprocessing. Each image has its
    own draw there too, see :class:`~lightning_practices.data.Augmentation`, which depends on the
    run's seed, the rank, the epoch and the batch alone, so that torch's generators don't move.
    ``MixUp`` and ``CutMix`` mix batches on the device in both cases, after all else.

    Ranks draw differently. A fit that is resumed by
    :class:`~lightning_practices.callbacks.ExactResume` draws as without the interruption.

    Batches of validation, testing and prediction are left alone, as is a training batch while the
    module is in eval mode, such as those of
    :class:`~lightning_practices.callbacks.RecalibrateBatchNorm`. So are the samples of which
    :class:`PreprocessingMixin` takes statistics.

    Args:
        *args: Positional arguments for the next base class.
        augment: A name of :func:`~lightning_practices.data.augmentation`; a transform of
            torchvision; an :class:`~lightning_practices.data.Augmentation`; a list of these; or
            ``None``, for no augmentation.
        augment_on: Where the images are augmented, ``"workers"`` or ``"device"``. ``"workers"``
            need a ``DataLoader`` of a map-style dataset.
        augment_entry: Where the image is in a sample and in a batch: a position in a tuple, or a
            key of a dict.
        augment_target: Where the target is, for ``MixUp`` and ``CutMix``.
        **kwargs: Keyword arguments for the next base class.

    Raises:
        TypeError: On subclassing, see :class:`DataPracticeMixin`. On construction, if ``augment``
            is none of these. When training starts, if the workers can't augment the samples, or
            images are neither floating nor uint8.
        ValueError: On construction, if a name is unknown, or ``augment_on`` is neither place. At
            the first batch, if floating images are outside of [0, 1] where a transform would clamp
            them.

    Example:
        >>> from lightning.pytorch import LightningDataModule
        >>> from lightning_practices.mixins import AugmentationMixin
        >>> class Data(AugmentationMixin, LightningDataModule): ...
        >>> Data(augment=["flip", "crop"]).augmentation
        Augmentation(
          (per_sample): ModuleList(
            (0): RandomHorizontalFlip(p=0.5)
            (1): RandomPaddedCrop(padding=4, fill=0, padding_mode=constant)
          )
          (mixing): ModuleList()
        )
    """

    _depth = 0  # of calls of methods that return loaders
    _run_seed: int | None = None
    _saved_seed: int | None = None  # of the checkpoint that was loaded

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        defaults = [kind.train_dataloader for kind in either(LightningDataModule)]
        for name, change in _CHANGES.items():
            own = getattr(cls, name, None)
            if own is not None and own not in defaults and not hasattr(own, _MARK):
                setattr(cls, name, _outermost(own, change))

    def __init__(
        self,
        *args: Any,
        augment: OneAugmentation | Sequence[OneAugmentation] | None = None,
        augment_on: Place = "workers",
        augment_entry: Entry = 0,
        augment_target: Entry = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._augmentation = None if augment is None else _made(augment)
        self._augment_on: Place = check_choice("augment_on", augment_on, get_args(Place))
        self._augment_entry = check_entry(augment_entry, "augment_entry")
        self._augment_target = check_entry(augment_target, "augment_target")

    @property
    def augmentation(self) -> Augmentation | None:
        """The augmentation; ``None`` if there is none."""
        return self._augmentation

    def _train_loaders(self, loaders: Any) -> Any:
        """Return the training loaders, with augmented samples if the workers augment them."""
        self._check_constructed()
        own = self._augmentation
        if own is None:
            return loaders
        self._augmentation = own = Augmentation(own)  # which checks its first images anew
        self._take_run_seed()
        if self._augment_on == "device" or not own.per_sample:
            return loaders
        is_on = _WhileTraining(self)

        def augmented(loader: DataLoader[Any]) -> DataLoader[Any]:
            if getattr(loader, "batch_sampler", own) is None and self._ranks() > 1:
                raise TypeError(  # Lightning would take the seeds' sampler for the user's own
                    "on several ranks the workers can't augment the samples of a DataLoader with"
                    " batch_size=None: give it a batch_size, or augment on the device"
                )
            return augmented_loader(loader, own, self._augment_entry, is_on)

        if isinstance(loaders, either(CombinedLoader)):
            loaders.flattened = [augmented(one) for one in loaders.flattened]
            return loaders
        return tree_map(augmented, loaders)

    def _ranks(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    def _take_run_seed(self) -> None:
        """Note the seed of the run, the same on all ranks, or that of the run that is resumed."""
        trainer = self.trainer
        seed = torch.initial_seed()
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING:
            if is_resumed(trainer) and self._saved_seed is not None:
                seed = self._saved_seed
            seed = trainer.strategy.broadcast(seed)
        self._run_seed = seed

    def _is_training(self) -> bool:
        """Say whether a training step gets the next batch, or there is no Trainer to ask."""
        trainer = self.trainer
        if trainer is None:
            return True
        return bool(trainer.state.fn == TrainerFn.FITTING and trainer.lightning_module.training)

    @override
    def _augmented(self, batch: Any) -> Any:
        own, trainer = self._augmentation, self.trainer
        on_device = self._augment_on == "device"
        if own is None or not (on_device or own.mixing):
            return batch
        if trainer is None or not trainer.training or not self._is_training():
            return batch
        if self._run_seed is None:  # the loader isn't the datamodule's
            self._run_seed = torch.initial_seed()
        number = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        seed = hashed(self._run_seed, trainer.global_rank, trainer.current_epoch, number)
        return own.augment_batch(
            batch, seed, self._augment_entry, self._augment_target, samples=on_device
        )

    @override
    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self._augmentation is not None and self._run_seed is not None:
            state[KEY] = self._run_seed
        return state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        self._saved_seed = state.pop(KEY, None)
        super().load_state_dict(state)


class _WhileTraining:
    """Says whether the module is in training."""

    __slots__ = ("_owner",)

    def __init__(self, owner: AugmentationMixin) -> None:
        # weak, so that a search for random generators in the loader ends here
        self._owner = weakref.ref(owner)

    def __call__(self) -> bool:
        owner = self._owner()
        return owner is None or owner._is_training()


def _outermost(own: Callable[..., Any], change: Callable[[Any, Any], Any]) -> Any:
    """Return a method that changes what ``own`` returns, but not within another such method."""

    @wraps(own)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        outer, self._depth = self._depth, self._depth + 1
        try:
            made = own(self, *args, **kwargs)
        finally:
            self._depth = outer
        return made if outer else change(self, made)

    setattr(run, _MARK, True)
    return run


# A loader for statistics, which may come from train_dataloader, is not augmented.
_CHANGES: dict[str, Callable[[Any, Any], Any]] = {
    "train_dataloader": AugmentationMixin._train_loaders,
    "preprocessing_dataloader": lambda _, loader: loader,
}


def _made(augment: Any) -> Augmentation:
    try:
        return Augmentation(augment)
    except (TypeError, ValueError) as error:
        raise type(error)(f"augment: {error}") from error
