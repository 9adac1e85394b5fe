"""The mixin that preprocesses the batches of a datamodule."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from itertools import islice
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.data import BatchPreprocessing, PreprocessingSteps, in_order
from lightning_practices.mixins._data import DataPracticeMixin, is_resumed
from lightning_practices.mixins._preprocessed import KEY


class PreprocessingMixin(DataPracticeMixin):
    """Preprocess all batches of a datamodule by statistics of its training split.

    ::

        class Data(PreprocessingMixin, LightningDataModule):
            def __init__(self, **practices):
                super().__init__(**practices)

            def train_dataloader(self): ...
            def val_dataloader(self): ...

        Data(preprocess="standardize")                       # the batch, or its first item
        Data(preprocess={0: "standardize", 1: "min_max"})    # inputs and targets
        Data(preprocess={"image": Whiten(shrinkage=0.1)})    # batches that are dicts

    Batches for training, validation, testing and prediction are preprocessed alike, on the device,
    after ``on_after_batch_transfer`` of your class's bases and after augmentation.

    The statistics are taken once, before the first batch of a fit reaches the module, also before
    the sanity check. Each rank reads its share of the training split, in order, each sample once:
    shuffling, weighted sampling, ``drop_last`` and the padding of ``DistributedSampler`` don't
    count. Augmentation by :class:`AugmentationMixin` is left out; random transforms in the dataset
    can't be: override :meth:`preprocessing_dataloader` to read the split without these. The batches
    pass through ``on_before_batch_transfer``, and ``on_after_batch_transfer`` of the class's bases,
    as all batches do. An
    ``IterableDataset`` is read as it is. With ``fast_dev_run`` only as many batches are read as are
    trained.

    Checkpoints hold the statistics, so a resumed fit, and testing with ``ckpt_path``, don't read
    the data again. With a module of :class:`PreprocessedMixin`, such as ``TrainingPractices``, they
    are part of the module's checkpoint: ``load_from_checkpoint`` and ``trainer.predict(module,
    loader)`` work without the datamodule. A second fit with the same datamodule keeps the
    statistics: call :meth:`fit_preprocessing` if its training split has changed.

    Args:
        *args: Positional arguments for the next base class.
        preprocess: ``"center"``, ``"standardize"``, ``"min_max"`` or ``"whiten"``; or a layer of
            :mod:`lightning_practices.data` with its options, which is copied; or a list of these,
            which run one after another; or a mapping from entries of the batch to such values,
            positions in a tuple or keys of a dict or named tuple; or ``None``, for no
            preprocessing.
        **kwargs: Keyword arguments for the next base class.

    Raises:
        TypeError: On subclassing, see :class:`DataPracticeMixin`. On construction, if
            ``preprocess`` is none of these.
        ValueError: On construction, if a name is unknown. When a fit starts, if the training split
            is empty or holds nan.
        RuntimeError: When a run starts that is no fit, if there are no statistics.

    Example:
        >>> from lightning.pytorch import LightningDataModule, Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.mixins import PreprocessingMixin
        >>> class Data(PreprocessingMixin, LightningDataModule):
        ...     def train_dataloader(self):
        ...         return torch.utils.data.DataLoader(5 + 3 * torch.randn(64, 32), batch_size=16)
        ...     val_dataloader = train_dataloader
        >>> class Net(BoringModel):
        ...     def training_step(self, batch, batch_idx):
        ...         print(bool(batch.mean().abs() < 0.3), bool((batch.std() - 1).abs() < 0.3))
        ...         return self.step(batch)
        >>> data = Data(preprocess="standardize")
        >>> Trainer(barebones=True, accelerator="cpu", max_steps=1).fit(Net(), data)
        True True
    """

    def __init__(
        self,
        *args: Any,
        preprocess: PreprocessingSteps | Mapping[int | str, PreprocessingSteps] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._preprocessing = None if preprocess is None else BatchPreprocessing(preprocess)
        self._fits = 0
        self._held_by: tuple[int, int] | None = None  # the module with a copy, and of which fit

    @property
    def preprocessing(self) -> BatchPreprocessing | None:
        """The preprocessing layers; ``None`` if there are none."""
        return self._preprocessing

    def preprocessing_dataloader(self) -> Any:
        """Return what statistics are taken of: batches of this rank's share of the training split.

        Override it to read the training split without random transforms, or less of it.
        """
        loader = self.train_dataloader()
        if not isinstance(loader, DataLoader):
            raise TypeError(
                f"train_dataloader returns a {type(loader).__name__}, and no DataLoader: override"
                f" {type(self).__name__}.preprocessing_dataloader, which returns the batches that"
                " statistics are taken of"
            )
        trainer = self.trainer
        rank, ranks = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        return in_order(loader, rank, ranks)

    def fit_preprocessing(self) -> None:
        """Take the statistics of the training split anew; in several processes on all ranks."""
        if self._preprocessing is not None:
            self._fit(self._preprocessing)

    @override
    def _preprocessed(self, batch: Any) -> Any:
        own, module, trainer = self._preprocessing, self._keeping_module(), self.trainer
        if own is None:
            return super()._preprocessed(batch)
        held = None if module is None else module.preprocessing
        partial = trainer is not None and trainer.predicting
        if held is not None and not self._is_fit():  # the module was trained with these statistics
            return self._checked(own, held)(batch, partial=partial)
        if not own.is_fitted:
            own = self._made_ready(own, held)
        if module is not None and self._held_by != (id(module), self._fits):
            module.preprocessing = deepcopy(own)  # which stays if this one is fitted again
            self._held_by = id(module), self._fits
        return own(batch, partial=partial)

    def _is_fit(self) -> bool:
        return self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING

    def _made_ready(
        self, own: BatchPreprocessing, held: BatchPreprocessing | None
    ) -> BatchPreprocessing:
        """Return the preprocessing with statistics: those of a checkpoint, or of the data now."""
        trainer = self.trainer
        if trainer is None or not self._is_fit():
            raise RuntimeError(
                f"the preprocessing of {type(self).__name__} has no statistics: fit first, or"
                " give ckpt_path=..., or call fit_preprocessing()"
            )
        if held is not None and is_resumed(trainer):
            self._preprocessing = deepcopy(self._checked(own, held))
            return self._preprocessing
        most = int(trainer.fast_dev_run) or None  # type: ignore[attr-defined]
        self._fit(own, most)
        return own

    def _fit(self, own: BatchPreprocessing, most: int | None = None) -> None:
        own.fit(_Transferred(self.preprocessing_dataloader(), self._transferred, most))
        self._fits += 1

    def _checked(self, own: BatchPreprocessing, held: BatchPreprocessing) -> BatchPreprocessing:
        """Return statistics from a checkpoint, if they are of such layers as this datamodule's."""
        if not own.is_like(held):
            raise ValueError(
                f"{type(self).__name__} was made with preprocess={own.layers}, but the module was"
                f" trained with {held.layers}: give the same"
            )
        return held

    @override
    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        own = self._preprocessing
        if own is not None and own.is_fitted and self._keeping_module() is None:
            state[KEY] = own.state_dict()
        return state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        if (saved := state.pop(KEY, None)) is not None:
            loaded = BatchPreprocessing.from_state_dict(saved)
            # Without an own one, as hyperparameters leave out layers, the module's counts.
            self._preprocessing = self._checked(self._preprocessing or loaded, loaded)
        super().load_state_dict(state)


class _Transferred:
    """Batches of a loader as they reach the preprocessing."""

    def __init__(self, loader: Any, change: Callable[[Any], Any], most: int | None) -> None:
        self.loader, self.change, self.most = loader, change, most

    def __len__(self) -> int:
        number = len(self.loader)
        return number if self.most is None else min(number, self.most)

    def __iter__(self) -> Iterator[Any]:
        return map(self.change, islice(self.loader, self.most))
