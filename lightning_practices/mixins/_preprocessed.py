"""The mixin by which a module keeps the preprocessing of its training data."""

from collections.abc import Callable
from typing import Any

from typing_extensions import override

from lightning_practices.data import BatchPreprocessing
from lightning_practices.mixins._checkpoint_hooks import run_after
from lightning_practices.mixins._practice import PracticeMixin
from lightning_practices.mixins._transfer_hook import check_super

KEY = "lightning_practices_preprocessing"  # in checkpoints


class PreprocessedMixin(PracticeMixin):
    """Keep the preprocessing of the training data with the module, in its checkpoints too.

    The preprocessing is that of a datamodule with
    :class:`~lightning_practices.mixins.PreprocessingMixin`, which the module gets at the first
    batch of a fit. A module that is loaded by ``load_from_checkpoint`` has it again, and applies it
    to the batches of loaders without such a datamodule, as in ``trainer.predict(module, loader)``.
    Outside of a Trainer call it yourself: ``module(module.preprocessing(x))``, and
    ``module.preprocessing.layers[1].inverse(predictions)`` for targets that were scaled. Batches
    for prediction may leave out targets. If your class has its own ``on_after_batch_transfer``,
    call ``super().on_after_batch_transfer(batch, dataloader_idx)`` in it.

    Checkpoints hold it under ``"lightning_practices_preprocessing"``, apart from the module's
    weights. So a class without this mixin loads them too.

    Raises:
        TypeError: On subclassing, if bases are of both packages of Lightning.
        RuntimeError: At the first batch that the module is to preprocess, if an own
            ``on_after_batch_transfer`` doesn't call ``super()``.

    Example:
        >>> from lightning.pytorch import LightningDataModule, Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.mixins import PreprocessedMixin, PreprocessingMixin
        >>> class Data(PreprocessingMixin, LightningDataModule):
        ...     def train_dataloader(self):
        ...         return torch.utils.data.DataLoader(5 + 3 * torch.randn(64, 32), batch_size=16)
        ...     val_dataloader = train_dataloader
        >>> class Net(PreprocessedMixin, BoringModel): ...
        >>> module, data = Net(), Data(preprocess="standardize")
        >>> Trainer(barebones=True, accelerator="cpu", max_steps=2).fit(module, data)
        >>> x = torch.full((1, 32), 5.0)  # about the mean of the training data
        >>> bool(module.preprocessing(x).abs().max() < 1)
        True
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        run_after(cls, PracticeMixin, {"on_save_checkpoint": _save, "on_load_checkpoint": _load})
        super().__init_subclass__(**kwargs)
        check_super(
            cls,
            PreprocessedMixin,
            PreprocessedMixin._changes_batches,
            "the preprocessing of the training data",
        )

    _preprocessing: BatchPreprocessing | None = None

    @property
    def preprocessing(self) -> BatchPreprocessing | None:
        """The preprocessing of the training data; ``None`` if there is none."""
        return self._preprocessing

    @preprocessing.setter
    def preprocessing(self, value: BatchPreprocessing | None) -> None:
        self._preprocessing = value

    @property
    def on_after_batch_transfer(self) -> Callable[[Any, int], Any]:
        """Lightning's hook, which counts as overridden only where this module preprocesses.

        If it always did, Lightning would warn of it beside each datamodule.
        """
        inherited: Callable[[Any, int], Any] = super().on_after_batch_transfer
        return self._preprocess if self._changes_batches() else inherited

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        _save(self, checkpoint)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        _load(self, checkpoint)

    def _preprocess(self, batch: Any, dataloader_idx: int) -> Any:
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        if self._preprocessing is None:
            return batch
        self._has_run = True
        trainer: Any = self._trainer
        return self._preprocessing(batch, partial=trainer is not None and trainer.predicting)

    def _changes_batches(self) -> bool:
        """Say whether this module is to preprocess the batches of the run."""
        return self._preprocessing is not None and not self._is_done_by_datamodule()

    def _is_done_by_datamodule(self) -> bool:
        trainer: Any = self._trainer
        hook = getattr(trainer and trainer.datamodule, "_preprocessed", None)
        return hook is not None  # of DataPracticeMixin, which has this module's preprocessing too


def _save(module: Any, checkpoint: dict[str, Any]) -> None:
    if module.preprocessing is not None:
        checkpoint[KEY] = module.preprocessing.state_dict()


def _load(module: Any, checkpoint: dict[str, Any]) -> None:
    if (saved := checkpoint.get(KEY)) is not None:
        module.preprocessing = BatchPreprocessing.from_state_dict(saved)
