"""Modules that someone has put into eval mode during the fit, and that train in it since."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from lightning_practices._codes import mentions
from lightning_practices._modes import depends_on_mode
from lightning_practices._names import outermost_where

_MOST = 8  # modules of a part that are watched
_FIRST_EPOCHS = 2  # in which who forgets train() does so; statistics are frozen on purpose later


class Modes:
    """Compares the modes in the steps of the looks with those at the start of the fit.

    A part counts if all parameters are in it that an optimizer trains, and something else than its
    own batch norms: these and frozen parts are in eval mode on purpose. What is suspected in a look
    gets a hook in the next one, which sees the mode in the forward pass: a step may change the
    modes after it.

    Args:
        module: The module of the fit, before its first step.

    Attributes:
        looks: The number of looks in a row in which each part trained in eval mode, by name.
    """

    def __init__(self, module: LightningModule) -> None:
        self._training = {name for name, part in module.named_modules() if part.training}
        self._fresh = _fresh_norms(module)
        self._now: set[str] | None = None
        self._has_begun: set[str] = set()  # were in training mode in a backward pass
        self._suspects: dict[str, list[str]] = {}  # what acts as in validation, by part
        self._hooks: list[RemovableHandle] = []
        self._seen: dict[str, set[bool]] = {}  # modes in forward passes with gradients
        self.looks: dict[str, int] = {}

    def open(self, module: LightningModule) -> None:
        """Watch what is suspected, in the steps of a look."""
        self.discard()
        names = {name for within in self._suspects.values() for name in within[:_MOST]}
        for name, part in module.named_modules() if names else ():
            if name in names:
                modes = self._seen.setdefault(name, set())
                self._hooks.append(part.register_forward_pre_hook(partial(_note, modes)))

    def note(self, module: LightningModule) -> None:
        """Note which modules are in eval mode in a backward pass of a look."""
        still = {name for name, part in module.named_modules() if not part.training}
        self._now = still if self._now is None else self._now & still

    def close(self, trainer: Trainer, module: LightningModule) -> None:
        """Count the parts that trained in eval mode in a look."""
        seen, now = self._seen, self._now or set()
        self.discard()
        self.looks = {
            name: self.looks.get(name, 0) + 1
            for name, within in self._suspects.items()
            if (modes := [seen[each] for each in within if seen.get(each)])
            and not any(True in each for each in modes)
        }
        left = now & self._training
        self._has_begun |= self._training - now
        parts = dict(module.named_modules()) if left else {}
        found = {name: self._changed(trainer, parts, name) for name in outermost_where(parts, left)}
        self._suspects = {name: within for name, within in found.items() if within}

    def discard(self) -> None:
        """Remove the hooks, and forget what they have seen."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._seen, self._now = [], {}, None

    def _changed(self, trainer: Trainer, parts: dict[str, nn.Module], name: str) -> list[str]:
        """Return what acts as in validation in a part, if that isn't so on purpose."""
        part = parts[name]
        if not any(True for _ in part.children()) or not _holds_optimized(trainer, part):
            return []
        prefix = f"{name}." if name else ""
        within = {each: one for each, one in parts.items() if f"{each}.".startswith(prefix)}
        owners = [one for one in within.values() if _trains(one.parameters(recurse=False))]
        if any(one.training for one in owners):
            return []  # what trains was put back
        changed = [
            each
            for each, one in within.items()
            if each in self._training and not one.training and _acts_differently(one)
            and _trains(parts[each.rpartition(".")[0]].parameters())
        ]  # fmt: skip
        is_fresh = not self._fresh.isdisjoint(changed)
        if all(isinstance(within[each], _BatchNorm) for each in changed):
            is_early = name in self._suspects or trainer.current_epoch < _FIRST_EPOCHS
            return changed if is_fresh and is_early else []
        return changed if is_fresh or name in self._has_begun else []


def _note(modes: set[bool], part: nn.Module, _: Any) -> None:
    if torch.is_grad_enabled():
        modes.add(part.training)


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
