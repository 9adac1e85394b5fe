"""Copies of a network that a module's own hooks move towards it."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_practices._names import module_name
from lightning_practices.advisor._copied_hooks import copy_for_hooks
from lightning_practices.advisor._isolation import isolated
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._parameters import optimized, trainable

_ELEMENTS = 1 << 16  # of the weights that are moved, about
_EVEN = 1e-2  # difference between the shares of two elements


class OwnAverage(NamedTuple):
    """A copy that follows a network.

    Attributes:
        name: Its name.
        source: The network's name.
        decay: The share of its weights that a batch leaves, in the first steps.
    """

    name: str
    source: str
    decay: float


def own_averages(seen: Observation) -> Iterator[OwnAverage]:
    """Yield the copies with which a module validates, and which the step itself doesn't use.

    In a copy of the module, the weights of the network are set to those of the copy plus 1, and its
    hooks after a batch are called. How far the network's copy follows tells its decay.
    """
    module = seen.module
    hooks = [name for name in _HOOKS if is_overridden(name, module)]
    if not hooks or seen.validation_step is None or seen.failure is not None:
        return
    held = optimized(seen).keys() & set(trainable(seen))
    used = {name for call in seen.validation_step.calls for name in call.parameters}
    trained = held | {
        name
        for step in seen.steps
        for call in step.calls
        if id(call) in step.reach
        for name in call.parameters
    }
    by_shapes: dict[Any, list[str]] = {}
    for name, part in seen.modules.items():
        if name and (shapes := tuple(p.shape for p in part.parameters())):
            by_shapes.setdefault((tuple(type(x) for x in part.modules()), shapes), []).append(name)
    found: list[str] = []
    for names in by_shapes.values():
        copies = [one for one in names if _names(seen, one) & used and
                  not _names(seen, one) & trained and not _is_known(seen, one)]  # fmt: skip
        sources = [one for one in names if _names(seen, one) <= held]
        for copy in copies if len(sources) == 1 else ():
            if any(copy.startswith(f"{outer}.") for outer in found):
                continue
            share = _followed(seen, copy, sources[0], hooks)
            if share is not None and 0 < share < 1:
                found.append(copy)
                yield OwnAverage(copy, sources[0], 1 - share)


_HOOKS = ("on_train_batch_end", "on_before_zero_grad")


def _names(seen: Observation, module: str) -> set[str]:
    found = seen.modules[module].named_parameters()
    return {f"{module_name(module)}.{module_name(name)}" for name, _ in found}


def _is_known(seen: Observation, name: str) -> bool:
    """Return whether a module is within an average of torch, whose decay is known."""
    parts = name.split(".")
    outer = (seen.modules.get(".".join(parts[: i + 1])) for i in range(len(parts)))
    return any(isinstance(part, AveragedModel) for part in outer)


def _followed(seen: Observation, copy: str, source: str, hooks: list[str]) -> float | None:
    """Return the share of the way to the network that the copy goes; ``None`` if it isn't one."""
    with isolated(seen.module), copy_for_hooks(seen.module) as model:
        parts = dict(model.named_modules())
        pairs = _pairs(parts[copy], parts[source])
        before = [a.detach().clone() for a, _ in pairs]
        try:
            with torch.no_grad():
                for a, b in pairs:
                    b.copy_(a + 1)
            _call(seen, model, hooks)
        except Exception:  # the user's code, outside of a fit
            return None
    moves = [
        (a.detach() - start).flatten().double()
        for (a, _), start in zip(pairs, before, strict=True)
    ]  # fmt: skip
    if not moves:
        return None
    moved = torch.cat(moves)
    share = float(moved.mean())
    is_even = float((moved - share).abs().max()) <= _EVEN * abs(share)
    return share if is_even else None


def _pairs(copy: nn.Module, source: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return the first parameters of both, of some thousand elements at least.

    None have half precision, whose steps are too large to tell a decay.
    """
    found: list[tuple[Tensor, Tensor]] = []
    elements = 0
    for a, b in zip(copy.parameters(), source.parameters(), strict=True):
        if elements < _ELEMENTS and a.dtype in (torch.float32, torch.float64):
            found.append((a, b))
            elements += a.numel()
    return found


def _call(seen: Observation, module: LightningModule, hooks: list[str]) -> None:
    if "on_train_batch_end" in hooks:
        outputs: Any = {"loss": torch.zeros(())}
        module.on_train_batch_end(outputs, seen.steps[0].batch, 0)
    if "on_before_zero_grad" in hooks and seen.optimizers:
        module.on_before_zero_grad(seen.optimizers[0])
