"""Train a copy of a module on one batch, to see whether it can memorise it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import Progress
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd
from typing_extensions import override

from lightning_practices._arguments import check_instance, check_path, check_whole
from lightning_practices._packages import OfBothPackages, either
from lightning_practices.advisor._isolation import copied_module, isolated
from lightning_practices.advisor._observe import observe, observer_of, release, simplify
from lightning_practices.advisor._trace import Loss
from lightning_practices.files import replacing

_MEMORISED = 0.05  # of the way from the prior's loss to the least one that is left
_LEARNT = 0.7
_SLOW = 0.01  # fall of the loss in the last fifth of the steps
_END = 5  # losses at the end that are averaged


@dataclass(frozen=True)
class Overfit:
    """Whether a module can memorise a batch. ``print`` shows the verdict.

    Attributes:
        losses: The training loss of each step.
        prior: The loss of predicting the frequencies, or the mean, of the batch's targets; ``None``
            for losses other than cross entropy, binary cross entropy and squared error.
        floor: The least loss, above 0 with label smoothing.
        subject: Name of the module's class.
    """

    losses: tuple[float, ...] = field(repr=False)
    prior: float | None = None
    floor: float = 0.0
    subject: str = ""

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
        """Whether at most 5 % of the loss is left."""
        return self.share <= _MEMORISED

    @property
    def verdict(self) -> str:
        """What the losses say, and what to look at next."""
        course = (
            f"the loss went from {self.first:.3g} to {self.last:.3g} in {len(self.losses)} steps"
        )
        if not math.isfinite(self.last):
            return f"{course}: divide the learning rate by ten, and look at advise(module, data)"
        if self.is_memorised:
            return f"{course}: the module can memorise a batch; train on all data, and regularise"
        before = self.losses[-max(2, len(self.losses) // 5)]
        if self.share > _LEARNT and self.last > (1 - _SLOW) * before:
            said = "it learns next to nothing: look whether gradients reach the first layer"
            return (
                f"{course}, {said}, at the loss's arguments and the rate; see advise(module, data)"
            )
        if self.last < (1 - _SLOW) * before:
            return f"{course}, and still falls: give more steps, or a larger learning rate"
        return (
            f"{course}, and stays there: look for equal inputs with other targets, a layer that is"
            " too narrow, weight decay, and noise in training_step"
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
        axis.plot(range(len(self.losses)), self.losses, color="#0072B2", label="training loss")
        if self.prior is not None:
            axis.axhline(self.prior, color="#D55E00", ls="--", label="loss of the prior")
        axis.set(xlabel="steps on one batch", ylabel="loss", title=self.subject)
        axis.legend(frameon=False)
        with replacing(file) as part:
            figure.savefig(part)
        return file

    @override
    def __str__(self) -> str:
        return f"{self.subject}: {self.verdict}"


def overfit_batch(module: LightningModule, data: Any = None, *, steps: int = 200) -> Overfit:
    """Train a copy of a module on one batch, and say whether it can memorise it.

    A module that can't memorise a single batch has a fault in its forward pass, its loss or its
    optimizer. The copy trains on the first batch as its training step receives it, with dropout
    off and without learning rate schedules, by the module's own optimizers. Before, one training
    and one validation step run as in :func:`advise`, to find the loss. No effect stays.

    Source: Karpathy, 2019, "A recipe for training neural networks": overfit one batch.

    Args:
        module: The module.
        data: A datamodule, a train loader, or a pair of train and validation loaders. ``None`` for
            the loaders that the module defines.
        steps: The number of training steps.

    Returns:
        The losses, and a verdict.

    Raises:
        TypeError: If ``module`` is not a LightningModule, or ``steps`` not a whole number.
        ValueError: If ``steps`` is below 10, if there is no training data, or if no step gives a
            loss.

    Example:
        >>> print(overfit_batch(module, datamodule))  # doctest: +SKIP
    """
    check_instance("module", module, either(LightningModule), "a LightningModule")
    steps = check_whole("steps", steps, 10)
    seen = observe(module, data, None)
    known = [_prior(loss) for loss in seen.step.losses]
    prior, floor = known[0] if len(known) == 1 else (None, 0.0)
    with isolated(module), Progress(transient=True) as progress:
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
        release(model, fitting)
    if not watch.losses:
        raise ValueError(
            f"no training step of {type(module).__name__} gave a loss: on the first batch each"
            " returned None, and none called manual_backward"
        )
    return Overfit(tuple(watch.losses), prior, floor, type(module).__name__)


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
