"""The callback that trains on all data, for the number of steps that early stopping has found."""

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)
from typing_extensions import override

from lightning_practices._arguments import check_whole, shown
from lightning_practices._names import count
from lightning_practices.callbacks._practice import PracticeCallback
from lightning_practices.callbacks._trainer.horizon import steps_of_fit, warn_if_too_short

_KEPT = (  # the arguments of a loader that don't depend on its dataset
    "batch_size", "num_workers", "collate_fn", "pin_memory", "drop_last", "timeout",
    "worker_init_fn", "multiprocessing_context", "generator", "prefetch_factor",
    "persistent_workers", "in_order",
)  # fmt: skip


class RetrainFor(PracticeCallback):
    """Train a new module on training and validation data, for the steps that early stopping found.

    Early stopping needs validation data, on which the first fit can't train. So the first fit only
    finds the best number of steps. A second fit then takes this number of steps on all data::

        stopping = EarlyStopping("val_loss")
        Trainer(max_epochs=100, callbacks=[stopping]).fit(Net(), train_dataloader, val_dataloader)

        retrain = RetrainFor(stopping.best_step, stopping.fit_steps)
        everything = join_loaders(train_dataloader, val_dataloader)
        Trainer(max_epochs=100, callbacks=[retrain]).fit(Net(), everything)

    The fit ends after exactly ``steps`` optimizer steps, counted as in ``Trainer.global_step``.
    Epochs of the joined data are longer, so the fit takes fewer epochs. There is no validation,
    since the fit trains on the validation data. An :class:`EarlyStopping` in this fit, such as that
    of ``EarlyStoppingMixin``, checks nothing and keeps no weights.

    **Schedules** span ``fit_steps`` steps, since the Trainer's ``max_steps`` is ``fit_steps`` in
    this fit. So each step has the learning rate of the same step of the first fit: the schedule
    isn't compressed into ``steps``. This holds for schedules that count steps, such as
    ``LearningRateScheduleMixin``, :class:`DropRateSchedule` and ``OneCycleLR`` with
    ``trainer.estimated_stepping_batches``. A schedule that counts epochs counts the longer epochs.
    A plateau schedule that monitors validation would get no value, and raises an error.

    The callback has no state: a fit that is resumed from a checkpoint ends after the same step.

    Source: early stopping, lectures S0 and S2 to S4; Goodfellow et al., Deep learning, 2016,
    algorithm 7.2.

    Args:
        steps: The optimizer steps to take: ``EarlyStopping.best_step``.
        fit_steps: The optimizer steps that the first fit would have taken without a stop:
            ``EarlyStopping.fit_steps``. If it is ``None`` (not known), the Trainer keeps its own
            limits.

    Raises:
        ValueError: If ``steps`` isn't an int of at least 1, or is more than ``fit_steps``.
        MisconfigurationException: When the fit starts, if the Trainer has ``min_epochs``, or
            ``min_steps`` above ``steps``; if its ``max_steps`` is below ``steps`` and ``fit_steps``
            is ``None``; or if the module has the best weights of an earlier fit, as an
            ``EarlyStopping`` of this fit knows.
        TypeError: If the Trainer and the module are of different packages of Lightning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.callbacks import RetrainFor
        >>> retrain = RetrainFor(steps=5, fit_steps=100)  # best_step and fit_steps of EarlyStopping
        >>> trainer = Trainer(barebones=True, accelerator="cpu", max_epochs=9, callbacks=[retrain])
        >>> trainer.fit(BoringModel())
        >>> trainer.global_step
        5
    """

    def __init__(self, steps: int | None, fit_steps: int | None) -> None:
        if steps is None:
            raise TypeError(
                "steps has to be EarlyStopping.best_step after a fit in which a check improved, but"
                " got None"
            )
        steps = check_whole("steps", steps, 1)
        if fit_steps is not None:
            fit_steps = check_whole("fit_steps", fit_steps, 1)
        if fit_steps is not None and fit_steps < steps:
            raise ValueError(
                f"steps has to be at most fit_steps, but got {steps} and {fit_steps}: give"
                " EarlyStopping.best_step and then EarlyStopping.fit_steps"
            )
        self.steps = steps
        self.fit_steps = fit_steps
        self._limits: tuple[int, int | float] | None = None  # of the Trainer, during a fit

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if trainer.min_epochs or (trainer.min_steps or 0) > self.steps:
            raise MisconfigurationException(
                f"RetrainFor({self.steps}) ends the fit by itself, and the Trainer has"
                f" min_epochs={trainer.min_epochs}, min_steps={trainer.min_steps}: leave them out"
            )
        if self.fit_steps is None and -1 < trainer.max_steps < self.steps:
            raise MisconfigurationException(
                f"RetrainFor({self.steps}) can't take these steps, as the Trainer has"
                f" max_steps={trainer.max_steps}: leave max_steps out"
            )
        self._limits = trainer.max_steps, trainer.limit_val_batches or 0
        trainer.limit_val_batches = 0
        if self.fit_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps = self.fit_steps

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(trainer)  # the fit may be resumed at its end
        needed = self.fit_steps or self.steps
        text = (
            f"RetrainFor({self.steps}, {self.fit_steps}) needs {needed}, or it ends too early or"
            " with other learning rates than the first fit: give the Trainer more max_epochs"
        )
        warn_if_too_short(trainer, steps_of_fit(trainer), needed, "optimizer step", text)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stop(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._limits is not None and trainer.global_step != self.steps:
            rank_zero_warn(
                f"RetrainFor: the fit has taken {count(trainer.global_step, 'optimizer step')}"
                f" rather than {self.steps}: something else ended it, or a batch takes several"
                " steps"
            )

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore(trainer)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._restore(trainer)  # after an exception Lightning doesn't call teardown

    def _stop(self, trainer: Trainer) -> None:
        if self._limits is not None and trainer.global_step >= self.steps:
            trainer.should_stop = True

    def _restore(self, trainer: Trainer) -> None:
        if self._limits is not None:
            trainer.fit_loop.epoch_loop.max_steps, trainer.limit_val_batches = self._limits
            self._limits = None


def join_loaders(
    train_dataloader: DataLoader[Any], val_dataloader: DataLoader[Any]
) -> DataLoader[Any]:
    """Return a loader of the samples of two loaders, with the settings of the first loader.

    The settings are its batch size, shuffling, workers, collation and generator. Each dataset keeps
    its own transforms, so validation samples are augmented only if they were before.

    Args:
        train_dataloader: The loader with the settings.
        val_dataloader: The loader whose samples are added.

    Raises:
        TypeError: If a loader isn't a plain ``DataLoader``, or its dataset is an
            ``IterableDataset``, which has no length.
        ValueError: If the first loader has a custom sampler or batch sampler, which knows only the
            samples of its own dataset.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from lightning_practices.callbacks import join_loaders
        >>> train, val = DataLoader(range(64), batch_size=16), DataLoader(range(8), batch_size=4)
        >>> [len(batch) for batch in join_loaders(train, val)]
        [16, 16, 16, 16, 8]
    """
    for name, loader in (("train", train_dataloader), ("val", val_dataloader)):
        if type(loader) is not DataLoader:
            raise TypeError(
                f"{name}_dataloader has to be a torch.utils.data.DataLoader, but got"
                f" {shown(loader)}, of class {type(loader).__name__}: make a loader of"
                " ConcatDataset([...])"
            )
        if isinstance(loader.dataset, IterableDataset):
            raise TypeError(
                f"the dataset of {name}_dataloader, {type(loader.dataset).__name__}, has no length,"
                " so an epoch of both can't be drawn: make a dataset that yields all samples"
            )
    return DataLoader(
        ConcatDataset([train_dataloader.dataset, val_dataloader.dataset]),
        shuffle=_shuffles(train_dataloader),
        **{name: getattr(train_dataloader, name) for name in _KEPT},
    )


def _shuffles(loader: DataLoader[Any]) -> bool:
    """Say whether a loader shuffles.

    Raises:
        ValueError: If the loader neither draws all samples in order nor shuffles all samples.
    """
    plain = DataLoader(loader.dataset, batch_size=loader.batch_size)
    sampler: Any = loader.sampler
    if type(loader.batch_sampler) is type(plain.batch_sampler):
        if type(sampler) is SequentialSampler:
            return False
        whole = type(sampler) is RandomSampler and not sampler.replacement
        if whole and sampler.num_samples == len(loader.dataset):  # type: ignore[arg-type]
            return True
    raise ValueError(
        f"train_dataloader draws by its own {type(sampler).__name__} and"
        f" {type(loader.batch_sampler).__name__}, which don't know the samples of val_dataloader:"
        " make a loader of ConcatDataset([...]) with samplers for all of them"
    )
