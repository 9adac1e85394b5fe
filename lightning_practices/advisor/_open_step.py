"""Steps and weights as the rules see them."""

import math
import time
from collections.abc import Collection, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_practices._names import module_name, plain_name
from lightning_practices.advisor._observation import Gradient, Step, Weight
from lightning_practices.advisor._trace import Recorder, Statistics, Value

_ROWS = 64  # of a weight that are compared


class OpenStep:
    """A step that runs.

    Args:
        batch: The batch as the step receives it.
        shared: The unregistered tensors of all steps, each with its gradient before them.
    """

    def __init__(
        self, batch: Any = None, shared: dict[int, tuple[Tensor, Tensor | None]] | None = None
    ) -> None:
        self.shared = {} if shared is None else shared
        self.roots: list[Value] = []
        self.carried: list[tuple[str, Value]] = []
        self._batch = batch
        self._modes: dict[str, bool] = {}
        self._gradients: dict[str, Gradient | None] = {}
        self._unregistered: list[Tensor] = []
        self._made: dict[str, Tensor] = {}
        self._start = time.perf_counter()

    def note_loss(
        self, module: LightningModule, loss: Tensor, value: Value, names: Collection[int]
    ) -> None:
        """Note a loss that is about to be differentiated, and which leaves it reaches.

        Args:
            module: The module.
            loss: The loss.
            value: Its value in the trace.
            names: ``id`` of the parameters before the first step.
        """
        self.roots.append(value)
        value.statistics = Statistics.of(loss)
        self._modes = self._modes or modes_of(module)
        own = {id(p): plain_name(name) for name, p in module.named_parameters()}
        known = set(own)
        known |= {id(x) for x in tree_leaves(self._batch)}
        for x in _leaves(loss):
            if id(x) in own and id(x) not in names:
                self._made[own[id(x)]] = x
            if id(x) not in known:
                gradient = None if x.grad is None else x.grad.clone()
                self.shared.setdefault(id(x), (x, gradient))
                self._unregistered.append(x)

    def note_gradients(self, module: LightningModule) -> None:
        """Note the gradients after a backward pass. A step may have several."""
        for name, p in module.named_parameters():
            if p.requires_grad:
                name = plain_name(name)
                if p.grad is not None:
                    self._gradients[name] = _gradient(p.grad)
                self._gradients.setdefault(name, None)

    def closed(
        self, module: LightningModule, recorder: Recorder, stepped: Collection[int] = ()
    ) -> Step:
        """Return the step, now that it is over."""
        return Step(
            recorder.calls, self.roots, self._batch, self._modes or modes_of(module),
            self._gradients, tuple(self._unregistered), time.perf_counter() - self._start,
            frozenset(stepped), self._made, self.carried,
            frozenset(recorder.read),
        )  # fmt: skip


def modes_of(module: LightningModule) -> dict[str, bool]:
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
    wide = torch.promote_types(dense.dtype, torch.float32)
    norm = float(torch.linalg.vector_norm(dense, dtype=wide))
    return Gradient(norm if math.isfinite(norm) else math.nan, norm == 0.0)


def weights_of(module: LightningModule) -> dict[str, Weight]:
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
