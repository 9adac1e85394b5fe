"""Train a copy of a module on one batch, to see whether it can memorise it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd
from typing_extensions import override

from lightning_practices._arguments import check_flag, check_instance, check_path, check_whole
from lightning_practices._packages import OfBothPackages, either
from lightning_practices.advisor._isolation import copied_module, isolated
from lightning_practices.advisor._observe import observe, observer_of, release_observation
from lightning_practices.advisor._observed_copy import release, simplify
from lightning_practices.advisor._trace import Loss
from lightning_practices.files import replacing
from lightning_practices.pictures import COLOURS, dress

_MEMORISED = 0.05  # of the way from the prior's loss to the least one that is left
_LEARNT = 0.7
_SLOW = 0.01  # fall of the loss in the last fifth of the steps
_END = 5  # losses at the end that are averaged
_FEW = 50  # steps, in which a loss that is still high says nothing
_ADVICE = "advise(module, data) names faults of losses, layers and data"


@dataclass(frozen=True)
class Overfit:
    """Whether a module can memorise a batch. ``print`` shows the verdict.

    Only losses are judged here, and :func:`advise` says what is wrong with a module.

    Attributes:
        losses: The training loss of each step.
        prior: The loss of predicting the frequencies, or the mean, of the batch's targets; ``None``
            for losses other than cross entropy, binary cross entropy and squared error.
        floor: The least loss, above 0 with label smoothing.
        subject: Name of the module's class.
        objectives: The number of losses that have gradients of their own: the backward passes of a
            step, or the optimizers. The losses are the sums of each step.

    Example:
        >>> from lightning_practices.advisor import Overfit
        >>> overfit = Overfit((2.3, 1.0, 0.3, 0.1, 0.05, 0.01, 0.01, 0.01), prior=2.3)
        >>> overfit.is_memorised, round(overfit.last, 3), round(overfit.share, 3)
        (True, 0.036, 0.016)
    """

    losses: tuple[float, ...] = field(repr=False)
    prior: float | None = None
    floor: float = 0.0
    subject: str = ""
    objectives: int = 1

    @property
    def first(self) -> float:
        """The loss of the first step."""
        return self.losses[0]

    @property
    def last(self) -> float:
        """The mean loss of the last five steps."""
        end = self.losses[-_END:]
        return sum(end) / len(end)

    @property
    def share(self) -> float:
        """The share of the loss that is left, ``(last - floor) / (prior - floor)``.

        Where there is no prior, the first loss is in its place.
        """
        whole = (self.first if self.prior is None else self.prior) - self.floor
        return (self.last - self.floor) / whole if whole > 0 else math.nan

    @property
    def is_memorised(self) -> bool:
        """Whether at most 5 % of the loss is left, and it is not below the least loss."""
        return self.share <= _MEMORISED and self.last >= self.floor

    @property
    def verdict(self) -> str:
        """What the losses say, and what to look at next."""
        course = (
            f"the loss went from {self.first:.3g} to {self.last:.3g} in {len(self.losses)} steps"
        )
        if self.is_memorised:
            return f"{course}: the module can memorise a batch; train on all data, and regularise"
        return f"{course}{self._doubt}; {_ADVICE}"

    @property
    def _doubt(self) -> str:
        """What is to be said of a loss that isn't near the least one."""
        before = self.losses[-max(2, len(self.losses) // 5)]
        is_slow = self.last > before - _SLOW * abs(before)
        if not math.isfinite(self.last):
            return ": divide the learning rate by ten"
        if self.objectives > 1:
            return (
                f", as the sum of {self.objectives} losses that may work against each other, as in"
                " a GAN, so that the sum doesn't tell: log each of them, and look at the outputs"
            )
        if self.last < self.floor and self.prior is not None:
            return f", below {self.floor:.3g}, the least that this loss can be: look at its sign"
        if self.last < 0:
            return ", as of a likelihood, whose least value isn't known: look at the outputs"
        if len(self.losses) < _FEW:
            return f": {len(self.losses)} steps are few, so give steps=200"
        if self.share > _LEARNT and is_slow:
            return (
                ", it learns next to nothing: look whether gradients reach the first layer, at the"
                " loss's arguments and at the learning rate"
            )
        if not is_slow:
            return ", and still falls: give more steps, or a larger learning rate"
        return (
            ", and stays there: look for equal inputs with other targets, a layer that is too"
            " narrow, weight decay, and noise in training_step"
        )

    def plot(self, path: str | PathLike[str]) -> Path:
        """Draw the losses to a file, such as ``"overfit.png"``, and return its path.

        Raises:
            TypeError: If ``path`` is not a path.
            ImportError: If matplotlib isn't installed.
        """
        from matplotlib.figure import Figure

        file = check_path("path", path, "picture")
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axis = figure.subplots()
        axis.plot(range(len(self.losses)), self.losses, color=COLOURS[0], label="training loss")
        if self.prior is not None:
            axis.axhline(self.prior, color=COLOURS[1], ls="--", label="loss of the prior")
        axis.set(xlabel="steps on one batch", ylabel="loss", title=self.subject)
        axis.legend(frameon=False)
        dress(axis)
        with replacing(file) as part:
            figure.savefig(part)
        return file

    @override
    def __str__(self) -> str:
        return f"{self.subject}: {self.verdict}"


def overfit_batch(
    module: LightningModule,
    data: Any = None,
    *,
    steps: int = 200,
    enable_progress_bar: bool = True,
) -> Overfit:
    """Train a copy of a module on one batch, and say whether it can memorise it.

    A module that can't memorise a single batch has a fault in its forward pass, its loss or its
    optimizer. The copy trains on the first batch as its training step receives it, with dropout
    off and without learning rate schedules, by the module's own optimizers. Before, one training
    and one validation step run as in :func:`advise`, to find the loss. No effect stays.

    Source: Karpathy, 2019, "A recipe for training neural networks": overfit one batch.

    Args:
        module: The module.
        data: As for :func:`advise`.
        steps: The number of training steps. Few steps don't tell why a loss is still high.
        enable_progress_bar: Whether a bar on the standard error shows how far the steps are, if
            that is a terminal.

    Returns:
        The losses, and a verdict.

    Raises:
        TypeError: If ``module`` is not a LightningModule, ``data`` is neither a datamodule nor
            loaders, ``steps`` no whole number, or ``enable_progress_bar`` no bool.
        ValueError: If ``steps`` is below 10, if there is no training data, or if no step gives a
            loss.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.advisor import overfit_batch
        >>> class Net(BoringModel):
        ...     def configure_optimizers(self):
        ...         return torch.optim.Adam(self.parameters(), lr=0.01)
        >>> overfit = overfit_batch(Net(), steps=50)
        >>> len(overfit.losses), overfit.last < overfit.first
        (50, True)
    """
    check_instance("module", module, either(LightningModule), "a LightningModule")
    steps = check_whole("steps", steps, 10)
    enable_progress_bar = check_flag("enable_progress_bar", enable_progress_bar)
    seen = observe(module, data, None)
    if (failure := seen.failure) is not None:
        release_observation(seen)
        failure.add_note("lightning_practices.advisor.advise(module, data) says why.")
        raise failure
    known = [_prior(loss) for loss in seen.step.losses]
    prior, floor = known[0] if len(known) == 1 else (None, 0.0)
    bar = Progress(
        transient=True, console=Console(stderr=True), disable=not enable_progress_bar
    )  # fmt: skip
    with isolated(module), bar as progress:
        model = copied_module(module)
        simplify(model)
        _leave_out_dropout(model)
        watch = _Losses(progress, steps)
        fitting = observer_of(
            module, None, max_steps=steps, max_epochs=1, limit_train_batches=steps
        )
        fitting.callbacks.append(watch)  # type: ignore[attr-defined]
        fitting.limit_val_batches = 0
        fitting.strategy.batch_to_device = _as_received  # type: ignore[method-assign]
        fitting.fit(model, _Repeated(seen.train.batches[0].received, steps))
        release(fitting, model)
    release_observation(seen)
    if not watch.losses:
        raise ValueError(
            f"no training step of {type(module).__name__} gave a loss: on the first batch each"
            " returned None, and none called manual_backward"
        )
    return Overfit(
        tuple(watch.losses), prior, floor, type(module).__name__, watch.objectives
    )  # fmt: skip


def _as_received(batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Return a batch that a step has received: the transfer's hooks have run."""
    return batch


def _leave_out_dropout(model: LightningModule) -> None:
    for part in model.modules():
        if isinstance(part, _DropoutNd):
            part.p = 0.0


class _Repeated:
    """A loader that gives one batch again and again."""

    def __init__(self, batch: Any, steps: int) -> None:
        self._batch, self._steps = batch, steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self._steps):
            yield self._batch


class _Losses(OfBothPackages, Callback):
    """Records the loss of each step: of each batch the sum of what is differentiated."""

    def __init__(self, progress: Progress, steps: int) -> None:
        self.losses: list[float] = []
        self.objectives = 1
        self._progress = progress
        self._task = progress.add_task("one batch", total=steps)
        self._parts: list[float] = []

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.lr_scheduler_configs = []
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.get("initial_lr", group["lr"])

    @override
    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        self._parts.append(float(loss))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._parts:
            self.losses.append(sum(self._parts))
            self.objectives = max(self.objectives, len(self._parts), len(trainer.optimizers))
        self._parts = []
        self._progress.advance(self._task)


def _prior(loss: Loss) -> tuple[float | None, float]:
    """Return the loss of predicting the targets' frequencies, and the least loss."""
    target = loss.target.tensor
    if target is None or not target.numel():
        return None, 0.0
    entr = torch.special.entr
    if loss.kind in ("cross_entropy", "nll") and not target.is_floating_point():
        shares = target.flatten().bincount().double() / target.numel()
        smoothing = float(loss.call.kwargs.get("label_smoothing", 0.0))
        classes = loss.prediction.shape[1] if len(loss.prediction.shape) > 1 else 1
        rest = torch.tensor(smoothing / classes, dtype=torch.float64)
        mixed = (1 - smoothing) * torch.nn.functional.pad(shares, (0, classes - len(shares))) + rest
        floor = entr(1 - smoothing + rest) + (classes - 1) * entr(rest)
        return float(entr(mixed).sum()), float(floor)
    if loss.kind in ("bce", "bce_logits"):
        share = target.double().mean(dim=0)
        return float((entr(share) + entr(1 - share)).mean()), 0.0
    if loss.kind == "mse" and len(target) > 1:
        return float(target.double().var(dim=0, correction=0).mean()), 0.0
    return None, 0.0
