"""The callback that keeps several models from one fit, by cycles of the learning rate."""

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import override

from lightning_practices._arguments import check_whole
from lightning_practices._copies import copy_of
from lightning_practices._names import count
from lightning_practices.callbacks._learning_rate_scheduler import LearningRateScheduler
from lightning_practices.callbacks._practice import PracticeCallback
from lightning_practices.callbacks._trainer.copies import load_copies
from lightning_practices.callbacks._trainer.horizon import (
    FollowedSteps,
    steps_of_fit,
    warn_if_too_short,
    why_unknown,
)
from lightning_practices.callbacks._trainer.kept_state import copy_to_cpu
from lightning_practices.callbacks._trainer.others import callbacks_of
from lightning_practices.callbacks._trainer.strategies import FSDP1_OR_DEEPSPEED, refuse
from lightning_practices.schedules import cosine_restarts, cycle_of

_CHECKPOINT_KEY = "snapshot_ensemble"


class SnapshotEnsemble(PracticeCallback):
    r"""Anneal the learning rate several times in a fit, and keep the weights of each cycle.

    .. math:: \eta(t) = \frac{\eta_0}{2} \left(1 + \cos \pi \frac{t - b_k}{b_{k+1} - b_k}\right)

    The learning rates of all groups of all optimizers follow
    :func:`~lightning_practices.schedules.cosine_restarts`, counted in optimizer steps :math:`t`
    (``trainer.global_step``). In each cycle :math:`k`, which begins at step :math:`b_k`, the rate
    of a group falls from its configured :math:`\eta_0` to nearly 0, so the groups' rates keep their
    ratios. At the end of a cycle the module's state, buffers included, is copied to CPU memory. ::

        snapshots = SnapshotEnsemble(cycles=5)
        Trainer(callbacks=[snapshots], max_epochs=100).fit(module, data)
        ensemble = LightningEnsemble(snapshots.members(module), task="multiclass")

    Training continues with the same weights. After the fit the module has its last weights, and the
    optimizers the rates of the last step. All ranks hold the same snapshots, with the running
    statistics of rank 0. Under manual optimization rates are set at the start of each batch. A
    cycle that the end of the fit cuts short leaves no snapshot.

    Checkpoints hold the snapshots, each as large as the weights, so that a resumed fit ends with
    the same snapshots. On loading, each snapshot passes through the module's
    ``on_load_checkpoint``. Checkpoints that hold only weights have no snapshots. A fit that isn't
    resumed discards the snapshots of an earlier fit.

    Source: Huang et al., 2017, *Snapshot Ensembles: Train 1, get M for free*, arXiv:1704.00109.

    Args:
        cycles: The number of cycles in ``steps``. In ``fast_dev_run`` there is at most one cycle
            for each step.
        steps: The optimizer steps of all cycles together. A longer fit has further cycles of the
            same length. Default: the steps of the fit. Give ``steps`` if you resume with another
            length of the fit, or if the length isn't known beforehand.
        keep: The number of snapshots to keep: the latest. Default: all snapshots.

    Raises:
        ValueError: If an argument isn't a whole number from 1 on.
        MisconfigurationException: When the fit starts, if ``configure_optimizers`` returns a
            scheduler, the fit has a :class:`LearningRateScheduler`, the strategy shards the
            weights, there are fewer steps than cycles, the number of steps isn't known beforehand,
            or a fit with other cycles is resumed.
        TypeError: If the Trainer and the module are of different packages of Lightning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.callbacks import SnapshotEnsemble
        >>> class Net(BoringModel):
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> module, snapshots = Net(), SnapshotEnsemble(cycles=3)
        >>> trainer = Trainer(barebones=True, accelerator="cpu", max_steps=6, callbacks=[snapshots])
        >>> trainer.fit(module)
        >>> snapshots.steps_taken, len(snapshots.members(module))
        ([2, 4, 6], 3)
    """

    def __init__(
        self, cycles: int = 5, *, steps: int | None = None, keep: int | None = None
    ) -> None:
        self.cycles = check_whole("cycles", cycles, 1)
        self.steps = None if steps is None else check_whole("steps", steps, 1)
        self.keep = None if keep is None else check_whole("keep", keep, 1)
        if steps is not None:
            cosine_restarts(steps, cycles)  # raises if there are fewer steps than cycles
        self._reset()

    @override
    def _reset(self) -> None:
        self._snapshots: dict[int, dict[str, Any]] = {}  # by optimizer step
        self._cycles: tuple[int, int] | None = None  # the steps and cycles of the fit
        self._ended: int | None = None  # the cycles that have ended; None before the fit
        self._steps = FollowedSteps(
            "SnapshotEnsemble keeps the lengths of its cycles, so the last one may be cut short or"
            " followed by others: give SnapshotEnsemble(steps=...)"
        )

    @property
    def steps_taken(self) -> list[int]:
        """Optimizer steps after which the snapshots were taken, in order."""
        return list(self._snapshots)

    def members(self, pl_module: LightningModule) -> list[LightningModule]:
        """Return a copy of the module with the weights of each snapshot, in order.

        Pass the copies to :class:`~lightning_practices.ensembles.Ensemble`, or to
        :class:`~lightning_practices.modules.LightningEnsemble`, which is saved as one file.

        Raises:
            RuntimeError: If there is no snapshot, or the snapshots don't fit the module.
        """
        if not self._snapshots:
            raise RuntimeError("SnapshotEnsemble has no snapshot: no cycle has come to its end")
        members = []
        for state in self._snapshots.values():
            member = copy_of(pl_module)
            member.load_state_dict(state, strict=pl_module.strict_loading)
            members.append(member)
        return members

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        refuse(
            trainer,
            *FSDP1_OR_DEEPSPEED,
            ModelParallelStrategy,
            who="SnapshotEnsemble",
            cannot="copy whole weights",
            instead="let ModelCheckpoint(every_n_train_steps=..., save_top_k=-1) save the weights"
            " of each cycle, schedule the rates by LambdaLR(optimizer, cosine_restarts(...)), and"
            " use LightningEnsemble.from_checkpoints",
        )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for other in callbacks_of(trainer, LearningRateScheduler):
            raise MisconfigurationException(
                f"LearningRateScheduler({other.schedule.name!r}) and SnapshotEnsemble would both"
                " set the learning rates: leave out one of them; schedule=None of the mixin turns"
                " its schedule off"
            )
        if trainer.lr_scheduler_configs:
            kind = type(trainer.lr_scheduler_configs[0].scheduler).__name__
            raise MisconfigurationException(
                f"configure_optimizers returns a {kind}, and SnapshotEnsemble would set the same"
                " rates: return the optimizers alone, or leave out SnapshotEnsemble"
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        cycles = self._cycles_of(trainer)
        if self._cycles not in (None, cycles):
            old = "{1} cycles in {0} steps".format(*self._cycles or ())
            raise MisconfigurationException(
                f"the fit began with {old}, but would go on with {cycles[1]} in {cycles[0]}: give"
                " SnapshotEnsemble the same `cycles` and `steps` as before"
            )
        self._cycles = cycles
        if self._ended is None:
            self._ended = cycle_of(trainer.global_step, *cycles)
        length, (steps, number) = self._steps.begin(trainer), cycles
        whole = number if length is None else cycle_of(length, *cycles)
        text = (
            f"the {number} cycles of SnapshotEnsemble take {steps}: it takes {whole} snapshots, so"
            " give fewer steps, or leave them out"
        )
        warn_if_too_short(trainer, length, steps, "optimizer step", text)
        # A checkpoint may have been saved at the end of a cycle, before its snapshot was taken.
        self._take(trainer)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.steps is None:
            self._steps.have_changed(trainer)  # warns

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert self._cycles is not None
        factor = cosine_restarts(*self._cycles)(trainer.global_step)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                _scale(group, factor)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._take(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"cycles": self._cycles, "ended": self._ended}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._cycles, self._ended = state_dict["cycles"], state_dict["ended"]

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[_CHECKPOINT_KEY] = dict(self._snapshots)

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if not self._takes_state(trainer):
            return
        kept = checkpoint.get(_CHECKPOINT_KEY, {})
        what = "the snapshot of step {} of SnapshotEnsemble"
        self._snapshots = load_copies(pl_module, checkpoint, kept, what)
        self._drop()

    def _cycles_of(self, trainer: Trainer) -> tuple[int, int]:
        """Return the steps and cycles of the fit."""
        steps = self.steps or steps_of_fit(trainer)
        if steps is None:
            raise MisconfigurationException(
                "SnapshotEnsemble divides the fit into cycles, but its number of steps isn't known"
                f" beforehand ({why_unknown(trainer)}): give SnapshotEnsemble(steps=...)"
            )
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return steps, min(self.cycles, steps)
        if steps < self.cycles:
            raise MisconfigurationException(
                f"the fit takes {count(steps, 'optimizer step')}, fewer than SnapshotEnsemble's"
                f" {self.cycles} cycles: give fewer cycles"
            )
        return steps, self.cycles

    def _take(self, trainer: Trainer) -> None:
        """Keep the present state if a cycle has ended since the last call."""
        assert self._cycles is not None
        assert self._ended is not None
        ended = cycle_of(trainer.global_step, *self._cycles)
        if ended == self._ended:
            return
        self._ended = ended
        module = trainer.lightning_module
        weights = {name for name, _ in module.named_parameters()}
        state = {name: copy_to_cpu(value) for name, value in module.state_dict().items()}
        # Under DDP parameters are the same on all ranks, and buffers are not.
        state |= trainer.strategy.broadcast(
            {name: value for name, value in state.items() if name not in weights}
        )
        self._snapshots[trainer.global_step] = state
        self._drop()
        rank_zero_info(f"SnapshotEnsemble: snapshot of step {trainer.global_step}, cycle {ended}")

    def _drop(self) -> None:
        """Drop all snapshots but the last ones."""
        while self.keep is not None and len(self._snapshots) > self.keep:
            del self._snapshots[min(self._snapshots)]


def _scale(group: dict[str, Any], factor: float) -> None:
    """Set a group's rate to ``factor`` times its ``initial_lr``, which checkpoints hold too."""
    rate = group["lr"]
    if isinstance(rate, Tensor):  # on the device, for compiled and capturable optimizers
        rate.copy_(group.setdefault("initial_lr", rate.clone()) * factor)
    else:
        group["lr"] = group.setdefault("initial_lr", rate) * factor
