"""The callback that watches a fit, and says what is wrong with it."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_practices._arguments import check_whole
from lightning_practices.advisor import (
    Check,
    Finding,
    Look,
    NotFinite,
    Report,
    Rule,
    Run,
    training_rules,
)
from lightning_practices.callbacks._curves import History, LearningCurves, Mark
from lightning_practices.callbacks._practice import PracticeCallback
from lightning_practices.callbacks._trainer.optimizers import grad_scaler
from lightning_practices.callbacks._trainer.others import callbacks_of, put_first
from lightning_practices.callbacks._trainer.ranks import gather_objects
from lightning_practices.callbacks._training_advisor import not_finite, state
from lightning_practices.callbacks._training_advisor.metrics import Metrics, validation_loss
from lightning_practices.callbacks._training_advisor.open_look import OpenLook
from lightning_practices.callbacks._training_advisor.ranks import merged
from lightning_practices.callbacks._training_advisor.schedule import next_look
from lightning_practices.callbacks._training_advisor.since_start import SinceStart
from lightning_practices.callbacks._training_advisor.waiting import Waiting
from lightning_practices.callbacks._training_advisor.zeroing import Zeroing

_LOSS = "loss"  # the name of the only series
_KEPT = 24  # looks


class TrainingAdvisor(PracticeCallback):
    """Watch a fit, and say what is wrong with it, why, and what to change.

    :func:`~lightning_practices.advisor.advise` looks at a module and its data before a fit. This
    callback finds what only training shows: the first layer whose output or gradient isn't finite,
    gradients that vanish or explode, dead and saturated units, updates that are too large or too
    small for the weights, a loss that stays at that of predicting frequencies, overfitting,
    memorising and underfitting, gradients that are not zeroed under manual optimization, clipping
    of each step, batches that are alike, waiting for data, modules that a hook leaves in eval mode,
    unfrozen layers without optimizer, outputs of earlier epochs, and metrics that get worse.
    :func:`~lightning_practices.advisor.training_rules` lists the rules.

    Lightning's logger ``"lightning.pytorch"`` shows each finding once, when it is found, and all of
    them as a table when the fit ends. If :class:`LearningCurves` draws this fit, the findings are
    marked in its picture.

    **When.** One step is measured about every ``every_n_steps`` optimizer steps, at intervals that
    differ, so that they have no common divisor with batches or optimizers that alternate. At the
    start of the fit looks are more frequent. A look takes about the time of two steps, and in it
    the host waits for the device once. It reads what the graph of the loss holds for the backward
    pass, so that no hook is on a module, and functions are seen as well as modules. Other steps
    keep the loss on its device. On the CPU, where reading it costs nothing, each loss is checked,
    so that the layer of the first number that isn't finite is named; on other devices
    ``every_n_steps=1`` does so.

    **Which losses have to fall.** Those of data: the graph shows a loss of torch whose target comes
    from the batch, and no other term but penalties. Losses whose targets move, as those of agents
    and slow teachers, and losses that are written by hand may rise or stay while training goes
    well. Of these, rules use what the weights and gradients show.

    Code that is compiled, activations that are checkpointed and functions of
    ``torch.autograd.Function`` are not looked into. On several ranks, all that ranks have measured
    is taken together, and all ranks report the same.

    Args:
        every_n_steps: The mean number of optimizer steps from one look to the next.
        ignore: Identifiers of rules to leave out, such as ``"LP816"``, or their beginnings.

    Raises:
        TypeError: If an argument is of another type, or the Trainer and the module are of different
            packages of Lightning.
        ValueError: If ``every_n_steps`` is below 1, or ``ignore`` names no rule.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.callbacks import TrainingAdvisor
        >>> advisor = TrainingAdvisor()
        >>> trainer = Trainer(barebones=True, accelerator="cpu", max_steps=4, callbacks=[advisor])
        >>> trainer.fit(BoringModel())
        >>> advisor.report.findings
        []
    """

    def __init__(self, every_n_steps: int = 100, *, ignore: Sequence[str] = ()) -> None:
        self.every_n_steps = check_whole("every_n_steps", every_n_steps, 1)
        self.ignore = ignore
        training_rules(ignore)  # raises for what names no rule
        self._subject = ""
        self._next = 0  # the next step to look at
        self._batch: Any = None
        self._open: OpenLook | None = None
        self._zeroing: dict[int, Zeroing] = {}
        self._backward: list[Tensor] = []  # losses of the batch that runs
        self._waiting = Waiting()
        self._since_start = SinceStart()
        self._reset()

    @override
    def _reset(self) -> None:
        self._findings: list[Finding] = []
        self._looks: list[Look] = []
        self._checks: list[Check] = []
        self._metrics = Metrics()
        self._history = History()
        self._not_finite: NotFinite | None = None
        self._stale: list[int] = []
        self._has_one_loss = True  # a batch

    @property
    def report(self) -> Report:
        """The findings up to now."""
        subject = self._subject or "no fit yet"
        return Report(list(self._findings), tuple(rule.id for rule in self._rules), subject)

    @property
    def _rules(self) -> tuple[Rule, ...]:
        return training_rules(self.ignore)  # no attribute, as rules can't be pickled

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._subject = type(pl_module).__name__
            self._open, self._zeroing, self._waiting = None, {}, Waiting()
            self._since_start = SinceStart()
            put_first(trainer, self)  # others clip gradients, and draw the findings

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._next = next_look(trainer.global_step - 1, self.every_n_steps)
        self._since_start.begin(pl_module)
        self._mark(trainer)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._waiting.begin()
        self._backward = []
        self._batch = batch
        self._since_start.begin_batch("training", trainer, pl_module, is_first=not batch_idx)
        if self._open is not None:
            self._open.next_batch(batch)
        elif trainer.global_step >= self._next:
            self._open = OpenLook(trainer, pl_module, batch)
            self._since_start.open_look(pl_module)

    @override
    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        self._backward.append(loss.detach())
        for one in self._zeroing.values():
            one.before_backward()
        look = self._open
        if look is not None:
            self._since_start.note_modes(pl_module)
        is_checked = self._not_finite is None and (look is not None or loss.device.type == "cpu")
        if is_checked and not math.isfinite(loss.item()):
            seen = look or OpenLook(trainer, pl_module, self._batch)
            graph = seen.graph(loss)
            step = trainer.global_step
            self._not_finite = not_finite.find(pl_module, graph, self._batch, step)
        elif look is not None:
            look.note_loss(loss, look.graph(loss), _scale(trainer, pl_module))

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for one in self._zeroing.values():
            one.after_backward()

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        for place, one in self._zeroing.items():
            if trainer.optimizers[place] is optimizer:
                one.before_step()
        if self._open is not None:
            with torch.no_grad():
                self._open.note_step(optimizer)
                self._since_start.note_gradients(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._note_loss(trainer, pl_module, outputs)
        self._batch = None
        self._settle()
        is_idle = pl_module.device.type == "cpu"
        if self._open is not None and self._open.is_complete():
            self._close(trainer, self._open)
            is_idle = True
        elif self._not_finite is not None and trainer.world_size == 1:
            self._ask(trainer)
        self._waiting.end(is_idle=is_idle)

    def _note_loss(self, trainer: Trainer, pl_module: LightningModule, outputs: Any) -> None:
        """Keep the loss of a batch, as the training step has returned it."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not pl_module.automatic_optimization:
            self._has_one_loss &= len(self._backward) <= 1
            is_scaled = grad_scaler(trainer) is not None
            loss = self._backward[0] if self._backward and not is_scaled else None
        self._backward = []
        if self._has_one_loss and isinstance(loss, Tensor) and loss.numel() == 1:
            if pl_module.automatic_optimization:
                loss = loss * trainer.accumulate_grad_batches
            self._history.add(_LOSS, trainer.global_step, loss, stepwise=True)

    def _settle(self) -> None:
        """Read the verdicts on gradients that weren't zeroed."""
        over = {place: one for place, one in self._zeroing.items() if one.is_over}
        for place, one in over.items():
            del self._zeroing[place]
            if one.verdict is not None and bool(one.verdict) and place not in self._stale:
                self._stale.append(place)

    def _close(self, trainer: Trainer, opened: OpenLook) -> None:
        self._open = None
        self._next = next_look(opened.step, self.every_n_steps)
        look = opened.closed()
        self._zeroing = opened.zeroing
        self._since_start.close_look(trainer, trainer.lightning_module)
        self._metrics.add_scores(opened.step, trainer.callback_metrics)
        if self._not_finite is None and grad_scaler(trainer) is None:
            bad = [name for name, one in look.weights.items() if math.isnan(one.gradient)]
            if bad:
                self._not_finite = not_finite.of_parameter(
                    "gradient", bad, opened.places, opened.step
                )
        every = gather_objects(trainer, (look, self._not_finite, self._stale))
        together = merged([look for look, _, _ in every])
        if together.is_finite:  # other rules find nothing in what isn't
            self._looks = [*self._looks, together][-_KEPT:]
        self._not_finite = next((found for _, found, _ in every if found is not None), None)
        self._stale = sorted({place for _, _, stale in every for place in stale})
        self._ask(trainer)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._waiting.interrupt()

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        is_first = not batch_idx and not dataloader_idx
        self._since_start.begin_batch("validation", trainer, pl_module, is_first=is_first)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since_start.end_epoch("validation", trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        step = trainer.global_step
        logged = self._metrics.add_validation(step, trainer.callback_metrics)  # on all ranks
        loss = validation_loss(logged)
        if loss is not None and math.isfinite(loss):
            self._checks.append(Check(step, loss, self._train_loss()))

    def _train_loss(self) -> float:
        """Return the mean training loss since the last validation; nan if there is none."""
        series = self._history.series().get(_LOSS)
        since = self._checks[-1].step if self._checks else -1
        bins = [one for one in series.bins if one.step > since] if series is not None else []
        total = sum(one.finite for one in bins)
        return (
            sum(one.mean * one.finite for one in bins if one.finite) / total if total else math.nan
        )

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._waiting.interrupt()
        self._since_start.end_epoch("training", trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._settle()
        self._metrics.add_scores(trainer.global_step, trainer.callback_metrics)
        self._discard()
        self._ask(trainer, is_over=True)
        self._show()

    def _discard(self) -> None:
        self._since_start.discard()
        if self._open is not None:
            self._open.discard()
            self._open = None

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._discard()
        if self._findings:
            self._show()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "findings": [state.of_finding(one) for one in self._findings],
            "looks": [state.of_look(one) for one in self._looks],
            "checks": [list(one) for one in self._checks],
            "metrics": self._metrics.values,
            "losses": self._history.state_dict(),
            "not_finite": None
            if (found := self._not_finite) is None
            else [*found[:3], [*found[3]]],
            "stale": list(self._stale),
            "has_one_loss": self._has_one_loss,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._findings = [state.to_finding(one) for one in state_dict["findings"]]
        self._looks = [state.to_look(one) for one in state_dict["looks"]]
        self._checks = [Check(*one) for one in state_dict["checks"]]
        self._metrics = Metrics(state_dict["metrics"])
        self._history.load_state_dict(state_dict["losses"])
        found = state_dict["not_finite"]
        self._not_finite = (
            None if found is None else NotFinite(found[0], found[1], found[2], tuple(found[3]))
        )
        self._stale = list(state_dict["stale"])
        self._has_one_loss = state_dict["has_one_loss"]

    def _run(self, trainer: Trainer, *, is_over: bool) -> Run:
        series = self._history.series().get(_LOSS) if self._has_one_loss else None
        losses = [] if series is None else series.points()
        found = self._not_finite
        if found is None and (lost := next((s for s, x in losses if math.isnan(x)), None)):
            found = NotFinite(lost, "")
        batches = trainer.num_training_batches
        return Run(
            trainer.global_step, self._looks, losses, self._checks, found, self._stale,
            self._waiting.share, len(trainer.optimizers),
            None if math.isinf(batches) else int(batches), is_over, metrics=self._metrics.values,
            **self._since_start.found(),
        )  # fmt: skip

    def _ask(self, trainer: Trainer, *, is_over: bool = False) -> None:
        """Ask the rules that have found nothing yet, on rank 0; all ranks get the answer."""
        known = {one.id for one in self._findings}
        said = {one.message for one in self._findings}  # a rule that fails does so each time
        new: list[Finding] = []
        if trainer.is_global_zero:
            run = self._run(trainer, is_over=is_over)
            asked = [rule for rule in self._rules if rule.id not in known]
            step = trainer.global_step
            found = [one for rule in asked for one in rule.findings_or_failure(run, step)[:1]]
            new = [one for one in found if one.message not in said]
        new = gather_objects(trainer, new)[0]
        self._findings += new
        for one in new:
            level = logging.INFO if one.severity == "hint" else logging.WARNING
            _report(level, f"TrainingAdvisor: {one}")
        if new:
            self._mark(trainer)

    def _mark(self, trainer: Trainer) -> None:
        """Mark the findings in the picture of the fit."""
        for curves in callbacks_of(trainer, LearningCurves):
            curves.marks = [Mark(one.step or 0, one.id, one.severity) for one in self._findings]

    def _show(self) -> None:
        _report(logging.INFO, f"TrainingAdvisor: {self.report}")


@rank_zero_only
def _report(level: int, text: str) -> None:
    """Log a text by Lightning's logger: a warning would name a line of this file."""
    logging.getLogger("lightning.pytorch").log(level, text)


def _scale(trainer: Trainer, module: LightningModule) -> float:
    """Return what Lightning multiplies a loss with before its backward pass; nan if unknown."""
    if grad_scaler(trainer) is not None:
        return math.nan
    return 1 / trainer.accumulate_grad_batches if module.automatic_optimization else 1.0
