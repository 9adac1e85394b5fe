"""Observe a module and its data: read a few batches, and run a training and a validation step."""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from lightning_practices._names import module_name, plain_name
from lightning_practices._packages import OfBothPackages, twin_of
from lightning_practices.advisor._isolation import copied_data, copied_module, isolated
from lightning_practices.advisor._observation import (
    Batch,
    Gradient,
    Observation,
    Split,
    Step,
    Weight,
)
from lightning_practices.advisor._trace import Recorder, Statistics, Value

_BATCHES = 8  # of each split that are read, at most
_SECONDS = 5.0  # for reading a split
_STEPS = 3  # where parameters have no gradient in the first
_LENGTH = 1000  # steps of a fit whose Trainer isn't given
_ROWS = 64  # of a weight that are compared
_PLAN = ("accelerator", "max_epochs", "max_steps", "accumulate_grad_batches", "limit_train_batches")
_PRECISIONS = ("32-true", "64-true", "bf16-true", "bf16-mixed", "16-true", "16-mixed")


def observe(module: LightningModule, data: Any, trainer: Trainer | None) -> Observation:
    """Run a copy of ``module`` on ``data`` and return what was seen.

    Args:
        module: The user's module, which stays as it is.
        data: A datamodule, a train loader, a pair of train and validation loaders, or ``None`` for
            the loaders that the module defines.
        trainer: The user's Trainer, which is only read, or ``None``.

    Raises:
        ValueError: If there is no training data.
    """
    if data is None and not is_overridden("train_dataloader", module):
        raise ValueError(
            f"got no training data: give a datamodule or loaders, as {type(module).__name__} has no"
            " train_dataloader"
        )
    with isolated(module, data), torch.compiler.set_stance("force_eager"):
        model = copied_module(module)
        simplify(model)
        observer = observer_of(module, trainer)
        datamodule, train, val = _parts(copied_data(data))
        seen = Observation(model, trainer, observer, datamodule, modes=_modes(module))
        watch = _Watch(seen)
        observer.callbacks.append(watch)  # type: ignore[attr-defined]
        with watch.recorder.watching():
            observer.fit(model, train, val, datamodule)
    if not seen.steps:
        raise ValueError(
            "the training data gave no batch, so that no step could be looked at: give data with at"
            " least one batch"
        )
    return seen


def simplify(model: LightningModule) -> None:
    """Let a copy bring no callbacks, which would save files or look for a rate, and not clip."""

    def leave(*args: Any, **kwargs: Any) -> None:
        pass

    model.configure_callbacks = list  # type: ignore[method-assign]
    model.configure_gradient_clipping = leave  # type: ignore[method-assign]
    model.clip_gradients = leave  # type: ignore[method-assign]
    if hasattr(model, "practice_callbacks"):  # of the mixins, whose clipping needs its callback
        model.practice_callbacks = list  # type: ignore[assignment]


def _parts(data: Any) -> tuple[Any, Any, Any]:
    """Return the datamodule, the train loader and the validation loader, or ``None`` for each."""
    if hasattr(data, "prepare_data"):
        return data, None, None
    if isinstance(data, tuple) and len(data) == 2:
        return None, *data
    return None, data, None


def observer_of(module: LightningModule, trainer: Trainer | None, **changes: Any) -> Trainer:
    """Return a Trainer for the steps, with the plan of the user's, which schedules may ask for.

    Args:
        module: The module.
        trainer: The user's Trainer, or ``None``.
        changes: Arguments of the Trainer in place of the plan's.
    """
    plan: dict[str, Any] = {"max_epochs": 10, "max_steps": _LENGTH}
    if trainer is not None:
        plan = {name: getattr(trainer, name) for name in _PLAN}
        if trainer.precision in _PRECISIONS:
            plan["precision"] = trainer.precision
    kinds: list[Any] = [Trainer, DummyLogger]
    if not isinstance(module, LightningModule):
        kinds = [twin_of(kind) for kind in kinds]
    made: Trainer = kinds[0](
        **plan | changes, devices=1, logger=kinds[1](), limit_val_batches=1, num_sanity_val_steps=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        inference_mode=False,
    )  # fmt: skip
    # Practices know then that this is a trial: preprocessing reads so many batches, not all.
    made.fast_dev_run = _BATCHES  # type: ignore[attr-defined]
    return made


class _Watch(OfBothPackages, Callback):
    """Fills an observation while the observing Trainer fits."""

    def __init__(self, seen: Observation) -> None:
        self.seen = seen
        self.recorder = Recorder(seen.module)
        self._step = _OpenStep()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.weights = _weights(pl_module)
        self.seen.optimizers = list(trainer.optimizers)
        self.seen.schedulers = list(trainer.lr_scheduler_configs)
        loader = trainer.train_dataloader
        self.seen.train = _read(trainer, loader, CombinedLoader(loader, "max_size_cycle"))

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader = trainer.val_dataloaders
        self.seen.validation = _read(trainer, loader, CombinedLoader(loader, "sequential"))

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step = _OpenStep(batch)
        self.recorder.begin(batch)

    @override
    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        self.recorder.is_on = False
        self._step.note_loss(pl_module, loss, self.recorder.value_of(loss))

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step.note_gradients(pl_module)
        self.recorder.is_on = not pl_module.automatic_optimization

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.recorder.is_on = False
        self.seen.steps.append(self._step.closed(pl_module, self.recorder))
        untouched = [
            name
            for name, weight in self.seen.weights.items()
            if weight.is_trainable and all(_is_empty(step, name) for step in self.seen.steps)
        ]
        if not untouched or len(self.seen.steps) == _STEPS:
            trainer.should_stop = True

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        self._step = _OpenStep(batch)
        self.recorder.begin(batch)

    @override
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any,
        batch_idx: int, dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        self.recorder.is_on = False
        if self.seen.validation_step is None:
            found = [x for x in tree_leaves(outputs) if isinstance(x, Tensor)]
            self._step.roots = [self.recorder.value_of(x) for x in found]
            self.seen.validation_step = self._step.closed(pl_module, self.recorder)


class _OpenStep:
    """A step that runs."""

    def __init__(self, batch: Any = None) -> None:
        self.roots: list[Value] = []
        self._batch = batch
        self._modes: dict[str, bool] = {}
        self._gradients: dict[str, Gradient | None] = {}
        self._unregistered: list[Tensor] = []
        self._start = time.perf_counter()

    def note_loss(self, module: LightningModule, loss: Tensor, value: Value) -> None:
        """Note a loss that is about to be differentiated, and which leaves it reaches."""
        self.roots.append(value)
        value.statistics = Statistics.of(loss)
        self._modes = self._modes or _modes(module)
        known = {id(p) for p in module.parameters()}
        known |= {id(x) for x in tree_leaves(self._batch)}
        self._unregistered += [x for x in _leaves(loss) if id(x) not in known]

    def note_gradients(self, module: LightningModule) -> None:
        """Note the gradients after a backward pass. A step may have several."""
        for name, p in module.named_parameters():
            if p.requires_grad:
                name = plain_name(name)
                if p.grad is not None:
                    self._gradients[name] = _gradient(p.grad)
                self._gradients.setdefault(name, None)

    def closed(self, module: LightningModule, recorder: Recorder) -> Step:
        """Return the step, now that it is over."""
        return Step(
            recorder.calls, self.roots, self._batch, self._modes or _modes(module),
            self._gradients, tuple(self._unregistered), time.perf_counter() - self._start,
        )  # fmt: skip


def _is_empty(step: Step, name: str) -> bool:
    gradient = step.gradients.get(name)
    return gradient is None or gradient.zero


def _modes(module: LightningModule) -> dict[str, bool]:
    return {module_name(name): part.training for name, part in module.named_modules()}


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """Yield the leaves with a gradient that a backward pass from ``loss`` reaches."""
    waiting, seen = [loss.grad_fn], {loss.grad_fn}
    while waiting:
        node: Any = waiting.pop()
        if node is None:
            continue
        if (leaf := getattr(node, "variable", None)) is not None:
            yield leaf
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                waiting.append(following)


def _gradient(gradient: Tensor) -> Gradient:
    dense = gradient.coalesce().values() if gradient.is_sparse else gradient
    norm = float(torch.linalg.vector_norm(dense, dtype=torch.float32))
    return Gradient(norm if math.isfinite(norm) else math.nan, norm == 0.0)


def _weights(module: LightningModule) -> dict[str, Weight]:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {
        plain_name(name): Weight(
            tuple(x.shape), x.requires_grad, Statistics.of(x), _equal_rows(x.detach())
        )
        for name, x in tensors
        if x.is_floating_point()
    }


def _equal_rows(x: Tensor) -> float:
    if x.dim() < 2 or x.shape[0] < 2 or not x.numel():
        return 0.0
    rows = x[:_ROWS].flatten(1)
    return float((rows[1:] == rows[:1]).all(dim=1).float().mean())


def _read(trainer: Trainer, loader: Any, batches: CombinedLoader) -> Split:
    """Read the first batches of a split, within the budget of time."""
    split = Split(loader)
    end = time.perf_counter() + _SECONDS
    loaded = iter(batches)
    while len(split.batches) < _BATCHES and time.perf_counter() < end:
        start = time.perf_counter()
        try:
            batch, _, place = next(loaded)
        except StopIteration:
            break
        seconds = time.perf_counter() - start
        received = trainer.strategy.batch_to_device(batch, dataloader_idx=place)
        split.batches.append(Batch(batch, received, seconds))
    return split
