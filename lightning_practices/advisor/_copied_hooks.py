"""Run hooks of a user's module once more, on a copy."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from lightning.pytorch import LightningModule
from torch.optim import Optimizer

from lightning_practices.advisor._isolation import copied_module


@contextmanager
def copy_for_hooks(module: LightningModule) -> Iterator[LightningModule]:
    """Yield a copy of a module which has its Trainer, logs nothing, and leaves nothing behind.

    The optimizers and schedulers are those of the Trainer. Their options and states are put back,
    and the parameters that they hold have no gradients meanwhile, so that no step changes them.

    Args:
        module: The observed module.
    """
    trainer = module.trainer
    model = copied_module(module)
    for silenced in ("log", "log_dict"):
        setattr(model, silenced, lambda *args, **kwargs: None)
    gradients = [(p, p.grad) for p in module.parameters()]
    schedulers = [one.scheduler for one in trainer.lr_scheduler_configs]
    states = [deepcopy(one.state_dict()) for one in schedulers]
    model._trainer = trainer
    try:
        for p, _ in gradients:
            p.grad = None
        with _kept_options(trainer.optimizers):
            yield model
    finally:
        model._trainer = None
        for p, gradient in gradients:
            p.grad = gradient
        for scheduler, state in zip(schedulers, states, strict=True):
            scheduler.load_state_dict(state)


@contextmanager
def _kept_options(optimizers: Sequence[Any]) -> Iterator[None]:
    """Restore the options of optimizers after the block, such as their rates."""
    known = [one for one in optimizers if isinstance(one, Optimizer)]
    saved = [
        [{key: x for key, x in group.items() if key != "params"} for group in one.param_groups]
        for one in known
    ]
    try:
        yield
    finally:
        for one, options in zip(known, saved, strict=True):
            del one.param_groups[len(options) :]
            for group, kept in zip(one.param_groups, options, strict=True):
                group.update(kept)
