"""Observe a module and its data: read a few batches, and run a training and a validation step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from lightning_practices._names import count, plain_name
from lightning_practices._packages import OfBothPackages, twin_of
from lightning_practices.advisor._clipping import let_clip
from lightning_practices.advisor._configured import callbacks_of_module
from lightning_practices.advisor._data import note_on, note_on_empty, parts_of
from lightning_practices.advisor._failures import explanation_of, line_of
from lightning_practices.advisor._isolation import copied_data, copied_module, isolated
from lightning_practices.advisor._kept_graphs import KeptGraphs, tensors_held
from lightning_practices.advisor._metric_states import MetricStates
from lightning_practices.advisor._observation import Batch, Observation, Split, Step
from lightning_practices.advisor._observed_copy import (
    copy_loaders,
    note_synced,
    release,
    release_trainer,
    simplify,
)
from lightning_practices.advisor._open_step import OpenStep, modes_of, weights_of
from lightning_practices.advisor._optimizer_steps import OptimizerSteps
from lightning_practices.advisor._trace import Recorder

_BATCHES = 8  # of each split that are read, at most
_SECONDS = 5.0  # for reading a split
_STEPPING = ("optimizer_step", "optimizer_zero_grad")  # hooks in which a module steps by itself
_STEPS = 3  # where parameters have no gradient in the first
_BY_HAND = 4  # under manual optimization, where an optimizer has not stepped twice
_QUICK_STEPS = 16  # where they have none in these either, as long as steps are quick
_QUICK = 0.25  # seconds for all steps
# Of a fit whose Trainer isn't given. A schedule of so many steps or epochs has asked for them: an
# author would write round numbers.
_LENGTH, _EPOCHS = 1009, 11
_SKIPPED = 10  # epochs without a step, after which no more are tried
_PLAN = ("accelerator", "max_epochs", "max_steps", "accumulate_grad_batches", "limit_train_batches")
_PRECISIONS = ("32-true", "64-true", "bf16-true", "bf16-mixed", "16-true", "16-mixed")


def observe(module: LightningModule, data: Any, trainer: Trainer | None) -> Observation:
    """Run a copy of ``module`` on ``data`` and return what was seen.

    An exception of one of torch's losses, and one that :mod:`_failures` explains, is noted rather
    than raised.

    Args:
        module: The user's module, which stays as it is.
        data: A datamodule, a train loader, a pair of train and validation loaders, or ``None`` for
            the loaders that the module defines.
        trainer: The user's Trainer, which is only read, or ``None``.

    Raises:
        TypeError: If ``data`` is neither a datamodule nor loaders.
        ValueError: If there is no training data, or no step ran.
    """
    parts_of(module, data)  # raises for what is no data, before anything is copied
    with isolated(module, data), torch.compiler.set_stance("force_eager"):
        model = copied_module(module)
        callbacks = [] if trainer is None else list(trainer.callbacks)  # type: ignore[attr-defined]
        callbacks += callbacks_of_module(model)
        simplify(model)
        observer = observer_of(module, trainer)
        datamodule, train, val = parts_of(model, copied_data(data))
        for maker in (model, datamodule):
            copy_loaders(maker)
        seen = Observation(
            model, trainer, observer, datamodule, modes=modes_of(module), callbacks=callbacks
        )
        seen.originals = frozenset(map(id, module.parameters()))
        seen.clipped_twice = let_clip(model, observer, trainer)
        if any(is_lazy(p) for p in model.parameters()):  # a step gives the parameters their shapes
            _materialise(model, module, trainer, (train, val, datamodule))
        watch = _Watch(seen)
        observer.callbacks.append(watch)  # type: ignore[attr-defined]
        try:
            with watch.recorder.watching(), watch.restoring():
                observer.fit(model, train, val, datamodule)
        except Exception as error:
            if not watch.note_failure(model, error):
                release_observation(seen)
                if note := note_on(data):
                    error.add_note(note)
                raise
    if not seen.steps and seen.failure is None:
        why = watch.no_step
        release_observation(seen)
        raise ValueError(why)
    return seen


def release_observation(seen: Observation) -> None:
    """End all references in cycles, so that an observation's memory is free with its last name."""
    seen.failure = None  # whose traceback refers to the observation
    for step in [*seen.steps, *seen.trials, seen.validation_step]:
        for call in step.calls if step is not None else ():
            call.outputs.clear()
    release(seen.observer, seen.module, seen.datamodule)


def _materialise(
    model: LightningModule, module: LightningModule, trainer: Trainer | None, data: Any
) -> None:
    first = observer_of(module, trainer, max_epochs=1, max_steps=1)
    first.limit_val_batches = 0
    first.fit(model, *data)
    release_trainer(first, model)


def observer_of(module: LightningModule, trainer: Trainer | None, **changes: Any) -> Trainer:
    """Return a Trainer for the steps, with the plan of the user's, which schedules may ask for.

    Args:
        module: The module.
        trainer: The user's Trainer, or ``None``.
        changes: Arguments of the Trainer in place of the plan's.
    """
    plan: dict[str, Any] = {"max_epochs": _EPOCHS, "max_steps": _LENGTH}
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
        self._optimizer_steps = OptimizerSteps()
        self._optimizer_steps.after_step = seen.resets.note_step
        self.recorder.before_backward = self._before_backward
        self.recorder.after_backward = self._after_backward
        self._graphs = KeptGraphs()
        self._synced = note_synced(seen.module)
        self._metrics = MetricStates()
        self._step = OpenStep()
        self._held: list[tuple[str, Tensor]] = []  # what layers made in the step before
        self._skipped = 0  # epochs that ended before their first step
        self._has_batch = False

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Run the fit in the block, and restore what is the user's own afterwards.

        That is the gradients of tensors that the module doesn't register: a copy of it may share
        these with the user's module.
        """
        try:
            yield
        finally:
            self._optimizer_steps.end()
            self._graphs.release()
            self._held = []
            self.seen.resets.end()
            self.seen.carried_graphs = tuple(self._graphs.carried)
            self.seen.grown_graphs = tuple(self._graphs.grown)
            for x, gradient in self._step.shared.values():
                x.grad = gradient

    def note_failure(self, module: LightningModule, error: Exception) -> bool:
        """Note that ``error`` ended the steps, and say whether a rule may explain it."""
        failed, call = self.recorder.failure or (None, None)
        self.recorder.failure = None  # whose traceback refers to the recorder
        is_loss = call is not None and failed is error
        if not is_loss and explanation_of(error) is None:
            return False
        self.seen.failure = error
        self.seen.failed_in_loss = is_loss
        self.seen.failed_at = line_of(error) or self.recorder.own_backward
        if call is not None and is_loss and not self.seen.steps:
            self._step.roots = [call.output]
            self.seen.steps.append(self._step.closed(module, self.recorder))
        return True

    @property
    def no_step(self) -> str:
        """Why no step could be looked at."""
        if self._has_batch:
            return (
                f"on_train_batch_start of {type(self.seen.module).__name__} returned -1 for the"
                f" first batch of {count(self._skipped, 'epoch')}, which skips the epoch: let it"
                " return None for a batch that is to be looked at"
            )
        return note_on_empty(self.seen.observer.train_dataloader)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.weights = weights_of(pl_module)
        self.seen.names = {id(p): plain_name(name) for name, p in pl_module.named_parameters()}
        self.seen.optimizers = _optimizers(trainer, pl_module)
        groups = [getattr(one, "param_groups", []) for one in self.seen.optimizers]
        self.seen.rates = [[float(group.get("lr", 0)) for group in each] for each in groups]
        self._optimizer_steps.watch(self.seen.optimizers)
        self.seen.resets.begin(self.seen.optimizers, self.seen.names)
        self.seen.updates = self._optimizer_steps.updates
        self.seen.schedulers = [replace(config) for config in trainer.lr_scheduler_configs]
        for config in trainer.lr_scheduler_configs:
            config.strict = False  # a monitor that is missing is for a rule to report
        loader = trainer.train_dataloader
        self.seen.train = _read(trainer, loader, CombinedLoader(loader, "max_size_cycle"))

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.seen.validation is not None:  # an epoch of few batches ends before the steps do
            return
        loader = trainer.val_dataloaders
        self.seen.validation = _read(trainer, loader, CombinedLoader(loader, "sequential"))

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._has_batch = True
        self._step = OpenStep(batch, self._step.shared)
        self._optimizer_steps.begin()
        self.recorder.begin(batch)
        self._step.carried = [(name, self.recorder.value_of(x)) for name, x in self._held]

    @override
    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        self._before_backward(loss)

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._after_backward()

    def _before_backward(self, loss: Tensor) -> None:
        self.recorder.is_on = False
        self._optimizer_steps.note_backward()
        self._graphs.note_loss(loss)
        self.seen.resets.note_loss()
        value = self.recorder.value_of(loss)
        self._step.note_loss(self.seen.module, loss, value, self.seen.names)

    def _after_backward(self) -> None:
        self._step.note_gradients(self.seen.module)
        self._optimizer_steps.note_gradients()
        self.recorder.is_on = not self.seen.module.automatic_optimization

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.recorder.is_on = False
        self.seen.steps.append(
            self._step.closed(pl_module, self.recorder, self._optimizer_steps.stepped)
        )
        self._graphs.note_step(pl_module)
        self._held = self._made_by_layers(pl_module)
        untouched = [
            name
            for name, weight in self.seen.weights.items()
            if weight.is_trainable and all(_is_empty(step, name) for step in self.seen.steps)
        ]
        steps = len(self.seen.steps)
        is_quick = sum(step.seconds for step in self.seen.steps) < _QUICK and steps < _QUICK_STEPS
        if is_automatic := pl_module.automatic_optimization:
            is_judged = not any(is_overridden(hook, pl_module) for hook in _STEPPING)
        else:
            is_judged = self._optimizer_steps.are_judged
        is_open = bool(untouched) and (steps < _STEPS or is_quick)
        is_open |= not is_judged and (
            steps < _STEPS if is_automatic else steps < _BY_HAND or is_quick
        )
        is_new = self._graphs.is_open or self.seen.resets.at_first or bool(self._held)
        is_new = is_new or bool(self.seen.steps[-1].made)
        if not (is_open or (is_new and steps < 2)):
            trainer.should_stop = True

    def _made_by_layers(self, module: LightningModule) -> list[tuple[str, Tensor]]:
        """Return the tensors of a step that come from layers and that attributes still hold."""
        held = ((name, x, self.recorder.value_of(x)) for name, x in tensors_held(module))
        return [(name, x) for name, x, value in held if value.depth and value.is_data]

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.resets.end()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._skipped += not self.seen.steps
        if self._skipped >= _SKIPPED:
            trainer.should_stop = True

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if self.seen.validation_step is None:
            self._metrics.begin(pl_module)
            self._step = OpenStep(batch, self._step.shared)
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
            self.seen.continued_metrics = self._metrics.continued(pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logged = [] if trainer._results is None else list(trainer._results.values())
        self.seen.unsynced |= {
            one.meta.name for one in logged if one.is_tensor and one.meta.name not in self._synced
        }


def _optimizers(trainer: Trainer, module: LightningModule) -> list[Optimizer]:
    """Return the configured optimizers, and those that a module keeps to step by itself."""
    found = [one for one in trainer.optimizers if type(one).__name__ != "_MockOptimizer"]
    if not module.automatic_optimization:
        kept = (x for x in tree_leaves(list(vars(module).values())) if isinstance(x, Optimizer))
        found += [one for one in kept if all(one is not other for other in found)]
    return found


def _is_empty(step: Step, name: str) -> bool:
    gradient = step.gradients.get(name)
    return gradient is None or gradient.zero


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
