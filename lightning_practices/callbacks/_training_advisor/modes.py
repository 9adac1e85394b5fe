"""Modules that someone has put into eval mode during the fit, and that train in it since."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_practices.advisor._fit import mentions
from lightning_practices.advisor._modes import depends_on_mode
from lightning_practices.advisor._parameters import outermost_where

_FIRST_EPOCHS = 2  # in which who forgets train() does so; statistics are frozen on purpose later


class Modes:
    """Compares the modes in the backward passes of the looks with those at the start of the fit.

    A part counts if all parameters are in it that an optimizer trains, and something else than its
    own batch norms: these and frozen parts are in eval mode on purpose.

    Args:
        module: The module of the fit, before its first step.

    Attributes:
        looks: The number of looks in a row in which each part was in eval mode, by name.
    """

    def __init__(self, module: LightningModule) -> None:
        self._training = {name for name, part in module.named_modules() if part.training}
        self._fresh = _fresh_norms(module)
        self._now: set[str] | None = None
        self._has_begun: set[str] = set()  # were in training mode in a backward pass
        self._suspects: set[str] = set()
        self.looks: dict[str, int] = {}

    def note(self, module: LightningModule) -> None:
        """Note which modules are in eval mode in a backward pass of a look."""
        still = {name for name, part in module.named_modules() if not part.training}
        self._now = still if self._now is None else self._now & still

    def close(self, trainer: Trainer, module: LightningModule) -> None:
        """Count the parts that were in eval mode in each backward pass of a look."""
        now, self._now = self._now, None
        if now is None:
            return
        left = now & self._training
        self._has_begun |= self._training - now
        parts = dict(module.named_modules())
        found = set(outermost_where(parts, left)) if left else set()
        found = {name for name in found if self._counts(trainer, parts, name)}
        self.looks = {name: self.looks.get(name, 0) + 1 for name in found}

    def _counts(self, trainer: Trainer, parts: dict[str, nn.Module], name: str) -> bool:
        part = parts[name]
        if not any(True for _ in part.children()) or not _holds_optimized(trainer, part):
            return False
        prefix = f"{name}." if name else ""
        within = {each: one for each, one in parts.items() if f"{each}.".startswith(prefix)}
        owners = [each for each, one in within.items() if _trains(one.parameters(recurse=False))]
        if any(within[each].training for each in owners):
            return False  # what trains was put back
        changed = [
            each
            for each, one in within.items()
            if each in self._training and not one.training and _acts_differently(one)
            and _trains(parts[each.rpartition(".")[0]].parameters())
        ]  # fmt: skip
        is_fresh = not self._fresh.isdisjoint(changed)
        if all(isinstance(within[each], _BatchNorm) for each in changed):
            return is_fresh and (name in self.looks or trainer.current_epoch < _FIRST_EPOCHS)
        return is_fresh or name in self._has_begun


def _acts_differently(part: nn.Module) -> bool:
    return depends_on_mode(part) or mentions(type(part), "training")


def _trains(parameters: Iterable[nn.Parameter]) -> bool:
    return any(p.requires_grad for p in parameters)


def _fresh_norms(module: nn.Module) -> set[str]:
    norms = {
        name: part.num_batches_tracked
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.num_batches_tracked is not None
    }
    if not norms:
        return set()
    counts = torch.stack([x.detach().cpu() for x in norms.values()]).tolist()
    return {name for name, seen in zip(norms, counts, strict=True) if not seen}


def _holds_optimized(trainer: Trainer, part: nn.Module) -> bool:
    own = {id(p) for p in part.parameters()}
    for optimizer in trainer.optimizers:
        trained = [id(p) for p in _parameters(optimizer) if p.requires_grad]
        if trained and own.issuperset(trained):
            return True
    return False


def _parameters(optimizer: Any) -> Iterator[nn.Parameter]:
    for group in optimizer.param_groups:
        yield from group["params"]
