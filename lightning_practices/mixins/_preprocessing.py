"""The mixin that preprocesses the batches of a datamodule."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from typing_extensions import override

from lightning_practices.data import BatchPreprocessing, OnePreprocessing
from lightning_practices.mixins._data import DataPracticeMixin
from lightning_practices.mixins._preprocessed import KEY, PreprocessedMixin

_BATCH = 64  # samples, for a batch sampler that doesn't say
_OF_ALL = (RandomSampler, SequentialSampler, WeightedRandomSampler, DistributedSampler)


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
    can't be: override :meth:`preprocessing_dataloader` to read the split without these. An
    ``IterableDataset`` is read as it is.

    Checkpoints hold the statistics, so a resumed fit, and testing with ``ckpt_path``, don't read
    the data again. With a module of :class:`PreprocessedMixin`, such as ``TrainingPractices``, they
    are part of the module's checkpoint: ``load_from_checkpoint`` and ``trainer.predict(module,
    loader)`` work without the datamodule. A second fit with the same datamodule keeps the
    statistics: call :meth:`fit_preprocessing` if its training split has changed.

    Args:
        *args: Positional arguments for the next base class.
        preprocess: ``"center"``, ``"standardize"``, ``"min_max"`` or ``"whiten"``; or a layer of
            :mod:`lightning_practices.data` with its options, which is copied; or a mapping from
            entries of the batch to these, positions in a tuple or keys of a dict; or ``None``, for
            no preprocessing.
        **kwargs: Keyword arguments for the next base class.

    Raises:
        TypeError: On subclassing, see :class:`DataPracticeMixin`. On construction, if
            ``preprocess`` is none of these.
        ValueError: On construction, if a name is unknown. When a fit starts, if the training split
            is empty or holds nan.
        RuntimeError: When a run starts that is no fit, if there are no statistics.
    """

    def __init__(
        self,
        *args: Any,
        preprocess: OnePreprocessing | Mapping[int | str, OnePreprocessing] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._preprocessing = None if preprocess is None else BatchPreprocessing(preprocess)

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
            self._preprocessing.fit(self.preprocessing_dataloader())

    @override
    def _preprocessed(self, batch: Any) -> Any:
        if self._preprocessing is None:
            return batch
        self._make_ready(self._preprocessing)
        return self._preprocessing(batch)

    def _make_ready(self, own: BatchPreprocessing) -> None:
        """Fit the preprocessing, or take that of the module, whichever is due, and share it."""
        trainer = self.trainer
        module = None if trainer is None else trainer.lightning_module
        held = module.preprocessing if isinstance(module, PreprocessedMixin) else None
        if own.is_fitted and (held is own or not isinstance(module, PreprocessedMixin)):
            return
        if not own.is_fitted:
            is_fit = trainer is not None and trainer.state.fn == TrainerFn.FITTING
            if held is not None and (not is_fit or _is_resumed(trainer)):
                self._preprocessing = own = self._checked(held)
            elif is_fit:
                self.fit_preprocessing()
            else:
                raise RuntimeError(
                    f"the preprocessing of {type(self).__name__} has no statistics: fit first, or"
                    " give ckpt_path=..., or call fit_preprocessing()"
                )
        if isinstance(module, PreprocessedMixin):
            module.preprocessing = own

    def _checked(self, held: BatchPreprocessing) -> BatchPreprocessing:
        """Return the module's preprocessing if it is such as this datamodule was made with."""
        own = self._preprocessing
        assert own is not None
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
        trainer = self.trainer
        is_held = trainer is not None and isinstance(trainer.lightning_module, PreprocessedMixin)
        if own is not None and own.is_fitted and not is_held:
            state[KEY] = own.state_dict()
        return state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        if (saved := state.pop(KEY, None)) is not None and self._preprocessing is not None:
            self._preprocessing = self._checked(BatchPreprocessing.from_state_dict(saved))
        super().load_state_dict(state)


def _is_resumed(trainer: Any) -> bool:
    return bool(trainer.ckpt_path or trainer._checkpoint_connector._hpc_resume_path)


def in_order(loader: DataLoader[Any], rank: int = 0, ranks: int = 1) -> DataLoader[Any]:
    """Return a loader of a rank's share of the samples of ``loader``, each once, in order."""
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset):
        return loader
    places = _places(loader)
    if places is None and ranks > 1:
        places = range(len(dataset))
    if places is not None:
        dataset = Subset(dataset, places[rank::ranks])
    has_batches = loader.batch_sampler is not None
    size = getattr(loader.batch_sampler, "batch_size", None) or _BATCH
    return DataLoader(
        dataset,
        size if has_batches else None,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator(),
    )


def _places(loader: DataLoader[Any]) -> Sequence[int] | None:
    """Return the samples that a loader can draw, ``None`` for all of its dataset.

    A sampler that restricts the dataset, such as one for the training indices of a whole dataset,
    counts. Weights and repetitions of samples don't.
    """
    sampler: Any = loader.sampler
    batches = loader.batch_sampler
    if batches is not None and type(batches) is not BatchSampler:
        return sorted({place for batch in batches for place in batch})
    if type(sampler) in _OF_ALL:
        return None
    if type(sampler) is SubsetRandomSampler:
        return sorted(set(sampler.indices))
    return sorted(set(sampler))
