"""The callback that trains the head of a network first, then unfreezes the blocks below it."""

from dataclasses import asdict
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_practices._arguments import (
    check_blocks_by,
    check_flag,
    check_name,
    check_number,
    shown,
)
from lightning_practices._names import plain_name, some
from lightning_practices.callbacks._practice import PracticeCallback
from lightning_practices.callbacks._trainer.best_weights import BestWeights
from lightning_practices.callbacks._trainer.logs import MonitoredValues, log_numbers
from lightning_practices.callbacks._trainer.modes import Watched
from lightning_practices.callbacks._unfreezing.checks import check_optimizers, check_trainer
from lightning_practices.callbacks._unfreezing.freezing import Freezing
from lightning_practices.callbacks._unfreezing.groups import split_groups
from lightning_practices.callbacks._unfreezing.layout import check_layout, layout_of
from lightning_practices.callbacks._unfreezing.length import automatic_phases, warn_of_late_phases
from lightning_practices.callbacks._unfreezing.plan import (
    BlocksBy,
    Plan,
    head_and_blocks,
    make_plan,
)
from lightning_practices.callbacks._unfreezing.progress import (
    Progress,
    numbers_of,
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


class ProgressiveUnfreezing(PracticeCallback):
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

    **A schedule** is a list of phases, a dict of phases by name, or a YAML file of either.

    - ``blocks``: the blocks that the phase trains, in addition to the blocks of earlier phases. An
      entry is the name or depth of a block, where 0 is the head (see
      :func:`~lightning_practices.surgery.blocks`); the name of a module, for all parameters in it,
      or of a parameter; or a regular expression for parameter names, ``"re:..."``. Blocks that no
      phase lists stay frozen.
    - ``freeze``: the blocks that are frozen again.
    - ``until``: when the next phase begins: after a number of optimizer steps or epochs of this
      phase (each end of an epoch counts), or at a plateau, whichever comes first. A plateau is
      reached after ``patience`` checks in a row without an improvement by more than ``min_delta``.
      Each validation or training epoch that logs ``monitor`` is a check. The value is averaged over
      the ranks.
    - ``restore_best``: whether the next phase starts from the weights of this phase's best check.
      The optimizer's state is not restored.
    - ``lr_scale``: the factor of the blocks' learning rates, see below.

    ``"auto"`` is the schedule that :func:`unfreezing_schedule` returns. To change it, save it by
    :func:`write_schedule` and edit the file. Its phases last one epoch, or as many as have 50
    optimizer steps. But all phases before the last one together take at most half of the fit, as
    far as phases of one epoch allow.

    A phase ends between two optimizer steps, never while gradients are accumulated. Give
    ``EarlyStopping`` more patience than the phases, or it ends the fit before a phase ends.

    **Learning rates.** The optimizer of the module's ``configure_optimizers`` is used. It has to
    have all parameters. When the fit starts, each parameter group is split by block, once. The rate
    of a block at depth :math:`d` is multiplied by :math:`decay^d`, or by the ``lr_scale`` of the
    phase that first trains it. Schedulers run across all phases. If each group already lies within
    one block and the groups have different rates, they keep these rates, and only an ``lr_scale``
    multiplies them. The names of groups, as ``LearningRateMonitor`` shows them, begin with the
    block's name.

    **Frozen parameters** have no gradients. They are not reduced over ranks, and weight decay and
    momentum don't change them. Their blocks stay in eval mode, even if other code calls
    ``train()``: batch norms keep their statistics, and dropout is off. Parameters that were frozen
    before the fit stay frozen, and are reported. If other code freezes or unfreezes parameters
    during the fit, they stay so, and a warning names them. When the fit ends, the same parameters
    are frozen as before the fit. Modules that were in eval mode before the fit stay in eval mode,
    trained or not, and Lightning warns about them at the start. Many libraries return pretrained
    models in eval mode: call ``train()`` before the fit to change that.

    **Strategies.** Under DDP the module is wrapped again at each phase, since otherwise ranks would
    drift apart without an error; ``find_unused_parameters`` isn't needed. FSDP2
    (``ModelParallelStrategy``) is supported. Other strategies that shard or wrap the module raise
    an error.

    **Resuming** is exact, in the middle of a phase too. The resumed fit may have other values of
    ``until`` and ``restore_best``, and other names of blocks and parameters. Each phase has to
    train the same parameters, by their order in the module, at the same rates.

    **What is shown:** The progress bar shows the phase. Every ``log_every_n_steps`` the callback
    logs ``phase`` (from 1), ``trainable_share`` and ``lr/...``, the rate of each trained block. (If
    rates are tensors on a device, this waits for the device.) When a phase begins, a table of the
    blocks is printed.

    Source: "Transfer learning", lecture S2; Howard and Ruder, 2018, "Universal language model
    fine-tuning for text classification", arXiv:1801.06146, for rates by depth and gradual
    unfreezing; Bao et al., 2022, arXiv:2106.08254, for the default of ``decay``.

    Args:
        schedule: The phases, in the form above.
        by: How to divide the model into blocks, see :func:`~lightning_practices.surgery.blocks`.
        backbone: The name of the pretrained module. Give ``backbone`` and ``head`` instead of
            ``by``. :func:`~lightning_practices.surgery.blocks` finds the blocks of the backbone.
        head: The name of the new module, the block of depth 0. It may be a part of the backbone.
        decay: The learning rate of a block, divided by that of the block above it; above 0 and up
            to 1.
        dropout: Whether dropout stays active in frozen blocks.

    Raises:
        FileNotFoundError: If the YAML file doesn't exist.
        ValueError: If the schedule is malformed, or ``decay`` is out of its range. When the fit
            starts, if the schedule doesn't fit the module: unknown names, overlaps, phases that
            train nothing; or if parameters are neither in the backbone nor in the head.
        MisconfigurationException: When the fit starts, if the strategy, an optimizer or a scheduler
            is not supported, an optimizer lacks parameters that are to be trained, or another
            callback freezes parameters too. On resuming, if a phase trains other parameters, or at
            other rates, or if kept weights don't fit the module. After the first validation or
            epoch, if the ``monitor`` of a plateau was not logged.
        TypeError: If the Trainer and the module are of different packages of Lightning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.callbacks import LambdaCallback
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.callbacks import ProgressiveUnfreezing
        >>> module = BoringModel()
        >>> module.layer = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), module.layer)
        >>> phases = [{"blocks": [0], "until": {"step": 2}}, {"blocks": [1]}]
        >>> unfreezing = ProgressiveUnfreezing(phases)
        >>> def show(*_):
        ...     print(unfreezing.phase, [p.requires_grad for p in module.parameters()])
        >>> callbacks = [unfreezing, LambdaCallback(on_train_batch_end=show)]
        >>> Trainer(barebones=True, accelerator="cpu", max_steps=3, callbacks=callbacks).fit(module)
        1 [False, False, True, True]
        1 [False, False, True, True]
        2 [True, True, True, True]
    """

    def __init__(
        self,
        schedule: UnfreezingSchedule = "auto",
        *,
        by: BlocksBy | None = None,
        backbone: str | None = None,
        head: str | None = None,
        decay: float = 0.75,
        dropout: bool = False,
    ) -> None:
        decay = check_number("decay", decay, gt=0, le=1)
        if (backbone is None) != (head is None) or (by is not None and backbone is not None):
            raise ValueError(
                "the blocks are given by a backbone and a head, or by `by`, or not at all, but got"
                f" by={shown(by)}, backbone={shown(backbone)}, head={shown(head)}"
            )
        if by is not None:
            check_blocks_by("by", by)
        if backbone is not None and head is not None:
            check_name("backbone", backbone)
            check_name("head", head)
        check_flag("dropout", dropout)
        self._scheduled = (
            None if isinstance(schedule, str) and schedule == "auto" else read_schedule(schedule)
        )
        self.by = by
        self.backbone = backbone
        self.head = head
        self.decay = decay
        self.dropout = dropout
        self._plan: Plan | None = None  # while a fit runs
        self._freezing: Freezing | None = None  # while a fit runs
        self._saved: dict[str, Any] | None = None  # layout in a checkpoint or the last fit
        self._last_step: int | None = None  # steps before the last batch of this fit
        self._monitored: MonitoredValues | None = None  # by the present phase's plateau
        self._reset()

    @override
    def _reset(self) -> None:
        self._progress = Progress()
        self._weights = BestWeights("ProgressiveUnfreezing")

    @property
    def phase(self) -> int:
        """The number of the present phase, from 1."""
        return self._progress.phase + 1

    @override
    def _watched(self) -> list[Watched]:
        plateaus = [phase.plateau for phase in self._scheduled or ()]
        return [(one.monitor, one.mode) for one in plateaus if one is not None]

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        check_trainer(trainer)
        self._saved = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Done before a checkpoint is restored, since its optimizer states belong to the split
        # groups.
        by = self.by
        if self.backbone is not None and self.head is not None:
            by = head_and_blocks(pl_module, self.backbone, self.head)
        phases = self._scheduled or automatic_phases(trainer, pl_module, by)
        self._plan = make_plan(pl_module, phases, by, self.decay)
        self._check_resumed()
        parameters = {plain_name(name): p for name, p in pl_module.named_parameters()}
        trained = frozenset().union(*self._plan.trainable)
        check_optimizers(trainer, {n: p for n, p in parameters.items() if n in trained})
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
        warn_of_late_phases(trainer, self._plan.phases)
        self._last_step = None
        if self._plan.frozen_by_author:
            rank_zero_info(
                "ProgressiveUnfreezing: the module itself has frozen, and no phase unfreezes,"
                f" {some(sorted(self._plan.frozen_by_author))}"
            )
        phase = self._phase
        if not phase.restore_best:
            self._weights = BestWeights("ProgressiveUnfreezing")
        elif self._progress.best is not None and not self._weights:
            rank_zero_warn(
                f"the checkpoint holds the best {phase.plateau and phase.plateau.monitor},"
                f" {self._progress.best:.6g}, but not its weights: ProgressiveUnfreezing gives"
                " weights back only once a better value is seen"
            )
        self._weights.start(pl_module)
        self._enter(trainer, pl_module, "as the fit starts")

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._freezing is not None
        self._advance(trainer, pl_module)
        self._freezing.rewrap(trainer)  # other code may have frozen or unfrozen parameters

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._advance(trainer, pl_module)
        self._last_step = trainer.global_step
        if trainer.loggers and trainer._logger_connector.should_update_logs:
            log_numbers(pl_module, numbers_of(trainer.optimizers, pl_module, self.phase))

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
                f"ProgressiveUnfreezing: the fit has ended in phase {self._title}, so the blocks of"
                " later phases were never trained"
            )

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._leave(trainer)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._leave(trainer)  # after an exception Lightning doesn't call teardown

    @override
    def state_dict(self) -> dict[str, Any]:
        layout = self._saved if self._plan is None else layout_of(self._plan)
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
            kept = self._weights.save(trainer, pl_module, checkpoint, self._progress.best_step)
            if kept:
                checkpoint[_WEIGHTS] = kept

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        fits = trainer.state.fn == TrainerFn.FITTING
        if fits and self.state_key not in checkpoint.get("callbacks", {}):
            raise MisconfigurationException(
                "the checkpoint was saved without ProgressiveUnfreezing, so it doesn't hold the"
                " phase, and its optimizers have other groups: load its weights into the module and"
                " fit without ckpt_path"
            )
        if fits and _WEIGHTS in checkpoint:
            self._weights.load(trainer, pl_module, checkpoint, checkpoint[_WEIGHTS], wanted=True)

    @property
    def _phase(self) -> Phase:
        assert self._plan is not None
        return self._plan.phases[self._progress.phase]

    @property
    def _title(self) -> str:
        assert self._plan is not None
        number = f"{self.phase}/{len(self._plan.phases)}"
        return number if self._phase.name == str(self.phase) else f"{number} {self._phase.name}"

    def _check_resumed(self) -> None:
        """Raise if the schedule differs from the checkpoint's, once both are known."""
        if self._plan is not None and self._saved is not None:
            check_layout(self._saved, self._plan)

    def _judge(self, trainer: Trainer, pl_module: LightningModule, new: Any) -> None:
        """Check a new value of the phase's plateau; ``None`` means that no value was logged."""
        plateau = self._phase.plateau
        if new is None or plateau is None:
            return
        improves = self._progress.look(plateau, new[plateau.monitor].item(), trainer.global_step)
        if improves and self._phase.restore_best:
            self._weights.keep(pl_module)

    def _advance(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the next phase, if the present one is over and no gradients are accumulated."""
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
        """Freeze and unfreeze parameters for the present phase, and report the phase."""
        assert self._plan is not None
        assert self._freezing is not None
        plateau, watcher = self._phase.plateau, f"phase {self._title} of ProgressiveUnfreezing"
        self._monitored = None if plateau is None else MonitoredValues([plateau.monitor], watcher)
        if self._monitored is not None:
            self._monitored.at_start(trainer)
        others = self._freezing.apply(self._plan.trainable[self._progress.phase])
        if others:
            rank_zero_warn(
                "other code has frozen or unfrozen parameters during the fit, and"
                f" ProgressiveUnfreezing leaves them so: {some(others)}"
            )
        self._freezing.rewrap(trainer)
        trainer.progress_bar_metrics["phase"] = self._title  # type: ignore[assignment]
        rates = rates_by_block(trainer.optimizers)
        rank_zero_info(
            f"ProgressiveUnfreezing: phase {self._title}, {reason}, until {self._phase.end}:"
            f" {trainable_share(pl_module):.1%} is trained\n{table(pl_module, self._plan, rates)}"
        )

    def _leave(self, trainer: Trainer) -> None:
        load_as_usual(trainer)
        if self._plan is not None and self._freezing is not None:
            self._saved = layout_of(self._plan)  # for a checkpoint that is saved after the fit
            self._freezing.undo()
        self._plan = self._freezing = None
