"""Transfer learning in phases: the head first, then the layers below it."""

from dataclasses import asdict
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_practices._names import plain_name
from lightning_practices._twin import reject_twin
from lightning_practices.callbacks._trainer.best_weights import BestWeights
from lightning_practices.callbacks._trainer.logs import MonitoredValue, log_number
from lightning_practices.callbacks._unfreezing.checks import check_trainer
from lightning_practices.callbacks._unfreezing.freezing import Freezing
from lightning_practices.callbacks._unfreezing.groups import split_groups
from lightning_practices.callbacks._unfreezing.plan import BlocksBy, Plan, make_plan, shown
from lightning_practices.callbacks._unfreezing.progress import (
    Progress,
    rates_by_block,
    table,
    trainable_share,
)
from lightning_practices.callbacks._unfreezing.schedule import (
    Phase,
    UnfreezingSchedule,
    read_schedule,
)
from lightning_practices.callbacks._unfreezing.sharded import load_as_usual, load_by_saved_states

_WEIGHTS = "progressive_unfreezing_weights"


class ProgressiveUnfreezing(Callback):
    r"""Train the head of a network first, then unfreeze the blocks below it, phase by phase.

    ::

        - blocks: [head]
          until: {epoch: 1}
        - blocks: [layer4]
          until: {plateau: {monitor: val_loss, patience: 2}, step: 500}
          restore_best: true
        - blocks: [1, 2, "re:norm"]
          freeze: [head]
          lr_scale: 0.1

    **A schedule** is a list of phases, a dict of them by name, or a YAML file of either. A phase
    trains its ``blocks`` and whatever was trained before, unless it is listed under ``freeze``.
    Both name blocks or their depths, 0 for the head (see
    :func:`~lightning_practices.surgery.blocks`), or modules and parameters (a name takes all below
    it), or match parameters' names, ``"re:..."``. What no phase lists stays frozen. ``until`` says
    after how many epochs (ends of epochs that the phase has seen) or optimizer steps of the phase,
    or at which plateau the next one begins, at the first of several. A plateau is as many checks in
    a row as its ``patience`` without an improvement by more than ``min_delta``, whenever validation
    or training epochs log ``monitor``; it is averaged over the ranks. ``"auto"`` is
    :func:`unfreezing_schedule`, to be written and edited by :func:`write_schedule`. Its phases last
    one epoch: with few steps in that, all is trained nearly at once; give more ``epochs`` there.

    A phase ends between two optimizer steps, never among accumulated gradients. With
    ``restore_best`` the next one starts from the weights of the best check of this one; the
    optimizer's state is not set back. ``EarlyStopping`` needs more patience than the phases.

    **Rates.** The module's own ``configure_optimizers`` is used, and has to give the optimizer all
    parameters. When the fit starts, each group is split by block, once: the rate of a block of
    depth :math:`d` is multiplied by :math:`decay^d`, or by the ``lr_scale`` of the phase that first
    trains it, and schedulers run across all phases. Groups that are by block already and have
    different rates keep these, times an ``lr_scale``. Group names, as ``LearningRateMonitor`` shows
    them, begin with the block's.

    **Frozen** parameters have no gradients, are not reduced over ranks, and no weight decay or
    momentum moves them. Their blocks stay in eval mode whoever calls ``train()``: batch norms keep
    their statistics, and dropout is off. Parameters that the module itself has frozen stay so, and
    are reported; so do those that anyone freezes or unfreezes during the fit. When it ends, nothing
    is frozen that wasn't before. Modules in eval mode before the fit, as many libraries return
    pretrained ones, stay so too, trained or not: only of these Lightning warns at its start. If
    that isn't meant, call ``train()`` before.

    **Strategies.** Under DDP the module is wrapped again at each phase, without which ranks drift
    apart in silence; ``find_unused_parameters`` isn't needed. FSDP2 (``ModelParallelStrategy``) is
    served as it is. Other strategies that shard or wrap are refused.

    **Resuming** is exact, in mid-phase too. The ``until`` and ``restore_best`` of a schedule may be
    changed for it, the rest may not.

    **Shown:** the phase in the progress bar; ``phase`` (from 1), ``trainable_share`` and ``lr/...``
    of each block that is trained, logged every ``log_every_n_steps`` (rates that are tensors on a
    device are then waited for); at each transition a table.

    Source: "Transfer learning", lecture S2; Howard and Ruder, 2018, "Universal language model
    fine-tuning for text classification", arXiv:1801.06146, for rates by depth and gradual
    unfreezing; Bao et al., 2022, arXiv:2106.08254, for the default of ``decay``.

    Args:
        schedule: The phases.
        by: What the blocks are, see :func:`~lightning_practices.surgery.blocks`.
        decay: Ratio of the rates of a block and the one above it, above 0 and up to 1.
        dropout: Whether dropout stays on in frozen blocks.

    Attributes:
        phase: The present phase, from 1.

    Raises:
        FileNotFoundError: If there is no such YAML file.
        ValueError: If the schedule or ``decay`` is none of the above. When the fit starts, if the
            schedule doesn't fit the module: unknown names, overlaps, phases that train nothing.
        MisconfigurationException: When the fit starts, if the strategy, an optimizer or a scheduler
            is not served, an optimizer lacks parameters that are to be trained, or another callback
            freezes. On resuming, if the schedule is another one. After the first validation or
            epoch, if a plateau finds nothing to monitor.
        TypeError: If the trainer or the module is from ``pytorch_lightning``.
    """

    def __init__(
        self,
        schedule: UnfreezingSchedule = "auto",
        *,
        by: BlocksBy | None = None,
        decay: float = 0.75,
        dropout: bool = False,
    ) -> None:
        if isinstance(decay, bool) or not 0 < decay <= 1:
            raise ValueError(f"decay has to be a ratio above 0 and up to 1, but got {decay!r}")
        self._scheduled = None if schedule == "auto" else read_schedule(schedule)
        self.by = by
        self.decay = decay
        self.dropout = dropout
        self._plan: Plan | None = None  # while a fit runs
        self._freezing: Freezing | None = None  # likewise
        self._progress = Progress()
        self._weights = BestWeights("ProgressiveUnfreezing")
        self._saved: list[str] | None = None  # what a checkpoint or the last fit was laid out by
        self._last_step: int | None = None  # steps before the last batch of this fit
        self._monitored: MonitoredValue | None = None  # by the present phase's plateau

    @property
    def phase(self) -> int:
        """The present phase, from 1."""
        return self._progress.phase + 1

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        reject_twin(trainer, pl_module)
        if stage != "fit":
            return
        check_trainer(trainer)
        self._saved = None
        if trainer.global_step == 0:  # not one that goes on
            self._progress = Progress()
            self._weights = BestWeights("ProgressiveUnfreezing")

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The optimizers are made, and their states are restored later, into the split groups.
        self._plan = make_plan(pl_module, self._scheduled, self.by, self.decay)
        self._check_resumed()
        parameters = {plain_name(name): p for name, p in pl_module.named_parameters()}
        held = {id(p) for o in trainer.optimizers for g in o.param_groups for p in g["params"]}
        trained = frozenset().union(*self._plan.trainable)
        missing = [n for n, p in parameters.items() if n in trained and id(p) not in held]
        if missing:
            raise MisconfigurationException(
                f"configure_optimizers of {type(pl_module).__name__} has left out {len(missing)}"
                f" parameters that are to be trained: {shown(missing)}; give the optimizer all of"
                " them, as in self.parameters(): those that are frozen have no gradient, and an"
                " optimizer leaves them alone"
            )
        shares = {id(p): self._plan.shares[name] for name, p in parameters.items()}
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        for optimizer in trainer.optimizers:
            split_groups(optimizer, schedulers, shares)
        self._freezing = Freezing(pl_module, self._plan, self.dropout)
        load_by_saved_states(trainer, pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._plan is not None
        load_as_usual(trainer)
        self._last_step = None
        if self._plan.theirs:
            rank_zero_info(
                "ProgressiveUnfreezing: the module itself has frozen, and no phase unfreezes,"
                f" {shown(sorted(self._plan.theirs))}"
            )
        phase = self._phase
        if not phase.restore_best:
            self._weights = BestWeights("ProgressiveUnfreezing")
        elif self._progress.best is not None and not self._weights:
            rank_zero_warn(
                f"the checkpoint knows the best {phase.plateau and phase.plateau.monitor},"
                f" {self._progress.best:.6g}, but not its weights: ProgressiveUnfreezing gives"
                " weights back only once it is surpassed"
            )
        self._weights.start(pl_module)
        self._enter(trainer, pl_module, "as the fit starts")

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._freezing is not None
        self._advance(trainer, pl_module)
        self._freezing.rewrap(trainer)  # where someone else has frozen or unfrozen

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._advance(trainer, pl_module)
        self._last_step = trainer.global_step
        if trainer.loggers and trainer._logger_connector.should_update_logs:
            self._log(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._monitored is not None:
            self._judge(trainer, pl_module, self._monitored.at_validation_end(trainer))

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._monitored is not None:
            self._judge(trainer, pl_module, self._monitored.at_train_epoch_end(trainer))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._plan is not None
        if self.phase < len(self._plan.phases):
            rank_zero_info(
                f"ProgressiveUnfreezing: the fit has ended in phase {self._title}, and what the"
                " later ones train was never trained"
            )

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._leave(trainer)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._leave(trainer)  # Lightning calls no teardown here

    @override
    def state_dict(self) -> dict[str, Any]:
        layout = self._saved if self._plan is None else self._layout
        return {**asdict(self._progress), "layout": layout}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        self._saved = state.pop("layout")
        self._progress = Progress(**state)
        self._check_resumed()

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._weights:
            best_step = self._progress.best_step
            kept = self._weights.save(trainer, pl_module, checkpoint, best_step)
            if kept:
                checkpoint[_WEIGHTS] = kept

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        fits = trainer.state.fn == TrainerFn.FITTING
        if fits and self.state_key not in checkpoint.get("callbacks", {}):
            raise MisconfigurationException(
                "the checkpoint was saved without ProgressiveUnfreezing, so that it doesn't say in"
                " which phase it is, and its optimizers have other groups: load its weights into"
                " the module and fit without ckpt_path"
            )
        if fits and _WEIGHTS in checkpoint:
            self._weights.load(trainer, pl_module, checkpoint[_WEIGHTS], wanted=True)

    @property
    def _phase(self) -> Phase:
        assert self._plan is not None
        return self._plan.phases[self._progress.phase]

    @property
    def _title(self) -> str:
        assert self._plan is not None
        number = f"{self.phase}/{len(self._plan.phases)}"
        return number if self._phase.name == str(self.phase) else f"{number} {self._phase.name}"

    @property
    def _layout(self) -> list[str]:
        assert self._plan is not None
        return [f"decay={self.decay}", *(phase.layout for phase in self._plan.phases)]

    def _check_resumed(self) -> None:
        """Refuse another schedule than the one that the fit began with, once both are known."""
        if self._plan is None or self._saved is None or self._saved == self._layout:
            return
        pairs = zip(self._saved, self._layout, strict=False)
        differs = next((f"{a!r}, now {b!r}" for a, b in pairs if a != b), "the number of phases")
        raise MisconfigurationException(
            f"the checkpoint is of another schedule of unfreezing, different in {differs}: only"
            " until and restore_best of its phases may be changed; for the rest, load the weights"
            " into the module and fit without ckpt_path"
        )

    def _judge(self, trainer: Trainer, pl_module: LightningModule, value: float | None) -> None:
        """Let the phase's plateau judge its value, if the loop that ends here has logged it."""
        plateau = self._phase.plateau
        if value is None or plateau is None:
            return
        improves = self._progress.look(plateau, value, trainer.global_step)
        if improves and self._phase.restore_best:
            self._weights.keep(pl_module)

    def _advance(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the next phase if this one is over and no gradients are accumulated."""
        epoch, step = trainer.current_epoch, trainer.global_step
        reason = self._progress.reason(self._phase, epoch, step)
        if reason is None or self._last_step == step:
            return
        if self._weights:
            self._weights.give_back(pl_module)
            reason += f", with the weights of step {self._progress.best_step}"
            self._weights = BestWeights("ProgressiveUnfreezing")
        self._progress = Progress(self._progress.phase + 1, epoch, step)
        self._enter(trainer, pl_module, reason)

    def _enter(self, trainer: Trainer, pl_module: LightningModule, reason: str) -> None:
        """Train what the present phase does, and say so."""
        assert self._plan is not None
        assert self._freezing is not None
        plateau = self._phase.plateau
        phase = f"phase {self._title} of ProgressiveUnfreezing"
        self._monitored = plateau and MonitoredValue(plateau.monitor, phase)
        others = self._freezing.apply(self._plan.trainable[self._progress.phase])
        if others:
            rank_zero_warn(
                "ProgressiveUnfreezing leaves as they are parameters that someone else has frozen"
                f" or unfrozen during the fit: {shown(others)}"
            )
        self._freezing.rewrap(trainer)
        trainer.progress_bar_metrics["phase"] = self._title  # type: ignore[assignment]
        rates = rates_by_block(trainer.optimizers)
        rank_zero_info(
            f"ProgressiveUnfreezing: phase {self._title}, {reason}, until {self._phase.end}:"
            f" {trainable_share(pl_module):.1%} is trained\n{table(pl_module, self._plan, rates)}"
        )

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rates = rates_by_block(trainer.optimizers)
        values = {f"lr/{block}": rate for block, rate in rates.items()}
        values |= {"phase": float(self.phase), "trainable_share": trainable_share(pl_module)}
        for name, value in values.items():
            log_number(pl_module, name, value)

    def _leave(self, trainer: Trainer) -> None:
        load_as_usual(trainer)
        if self._freezing is not None:
            self._saved = self._layout  # a checkpoint may be saved after the fit
            self._freezing.undo()
        self._plan = self._freezing = None
