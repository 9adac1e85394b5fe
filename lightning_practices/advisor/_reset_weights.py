"""Tell whether trained weights are replaced by new ones, apart from the optimizer."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from lightning_practices._names import plain_name
from lightning_practices.advisor._copied_hooks import copy_for_hooks

_ELEMENTS = 4096  # of a weight that are compared, at most
_FEWEST = 64  # that tell: the correlation of as many random numbers is below 0.3
_UNLIKE = 0.3  # of two draws; clamps, norms and moving averages keep it above 0.8


class ResetWeights:
    """Compares weights after a step of their optimizer with those of the next loss.

    A clamp, a norm, a moving average or a restored copy is like the weights before. New random
    numbers aren't: what the steps have learnt is lost.

    Attributes:
        watched: Names of the weights that are compared.
        at_first: Names of those that were replaced before the first loss, as an initialisation by
            the first batch does.
        counts: How often each weight was replaced after a step of its optimizer.
        at_end: Names of those that were replaced at the end of an epoch or of its last step.
    """

    def __init__(self) -> None:
        self.watched: set[str] = set()
        self.at_first: set[str] = set()
        self.counts: dict[str, int] = {}
        self.at_end: set[str] = set()
        self._weights: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}
        self._stepped: set[str] = set()

    def begin(self, optimizers: Sequence[Any], names: dict[int, str]) -> None:
        """Begin with the weights that optimizers hold, before the first step."""
        held = [one for one in optimizers if isinstance(one, Optimizer)]
        for p in (p for one in held for group in one.param_groups for p in group["params"]):
            x = sample(p)
            if id(p) in names and p.requires_grad and p.dim() > 1 and _tells(x):
                self._weights[names[id(p)]] = p
                self._last[names[id(p)]] = x
        self.watched = set(self._weights)

    def note_loss(self) -> None:
        """Compare the weights with those after the last step."""
        for name in self._replaced():
            if name in self._stepped:
                self.counts[name] = self.counts.get(name, 0) + 1
            else:
                self.at_first.add(name)
        self._note(self._weights)

    def note_step(self, optimizer: Optimizer) -> None:
        """Keep the weights of an optimizer after its step."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        names = [name for name, p in self._weights.items() if id(p) in held]
        self._stepped.update(names)
        self._note(names)

    def end(self) -> None:
        """Compare the weights at the end with those after the last step, and forget them."""
        self.at_end |= self._replaced() & self._stepped
        self._weights, self._last = {}, {}

    def _replaced(self) -> set[str]:
        return {name for name, p in self._weights.items() if differs(self._last[name], sample(p))}

    def _note(self, names: Iterable[str]) -> None:
        for name in names:
            self._last[name] = sample(self._weights[name])


def sample(x: Tensor) -> Tensor:
    """Return a copy of elements of a tensor at equal distances."""
    flat = x.detach().reshape(-1)
    return flat[:: max(1, len(flat) // _ELEMENTS)].clone()


def _tells(x: Tensor) -> bool:
    return len(x) >= _FEWEST and bool(x.is_floating_point() and x.float().std() > 0)


def differs(before: Tensor, after: Tensor) -> bool:
    """Return whether two samples of a weight are as unlike as two random draws."""
    if torch.equal(before, after) or not (_tells(before) and _tells(after)):
        return False
    pair = torch.stack([before, after]).double()
    return bool(torch.corrcoef(pair)[0, 1].abs() < _UNLIKE)


def replaced_by(module: LightningModule, name: str, weights: Iterable[str]) -> set[str]:
    """Return which weights a hook replaces by new random numbers, when a copy of a module runs it.

    Args:
        module: The observed module, whose Trainer the hook may ask for the epoch.
        name: Name of the hook, which has no arguments.
        weights: Names of the weights.
    """
    with copy_for_hooks(module) as model:
        own = {plain_name(key): p for key, p in model.named_parameters()}
        chosen = {key: own[key] for key in weights if key in own}
        before = {key: sample(p) for key, p in chosen.items()}
        with suppress(Exception):  # of the user's code
            getattr(model, name)()
    return {key for key, p in chosen.items() if differs(before[key], sample(p))}
