"""Gradients and weights around a step of an optimizer."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_practices.advisor import Norms, WeightLook
from lightning_practices.callbacks._trainer.sharding import local
from lightning_practices.callbacks._training_advisor.readings import Readings

_MOST = 4096  # elements of a parameter whose change is measured


class AroundStep:
    """Measures the parameters of one optimizer before and after its step.

    Args:
        optimizer: The optimizer, which is about to step and has its gradients.
        place: Its index.
        names: The names of the parameters by ``id``.
        readings: Takes the numbers.
        done: Function to call after the step.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        place: int,
        names: Mapping[int, str],
        readings: Readings,
        done: Callable[[], None],
    ) -> None:
        self._place, self._readings, self._done = place, readings, done
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._parameters = [p for p in parameters if p.grad is not None and id(p) in names]
        self._names = [names[id(p)] for p in self._parameters]
        self._sizes = [max(1, dense(p.grad).numel()) for p in self._parameters]
        self._before = [sample(p) for p in self._parameters]
        self._gradients = self._norms([dense(p.grad) for p in self._parameters])
        self._weights = self._norms(self._before)
        self._updates: int | None = None
        self._clipped: int | None = None
        self.handle = optimizer.register_step_post_hook(self._after)

    def _norms(self, tensors: Sequence[Tensor]) -> int:
        norms = torch._foreach_norm(list(tensors), 2, dtype=torch.float32) if tensors else []
        device = tensors[0].device if tensors else torch.device("cpu")
        return self._readings.add(
            torch.stack([x.to(device) for x in norms]) if norms else torch.zeros(0)
        )

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        self.handle.remove()
        if self._parameters and self._updates is None:
            after = [sample(p) for p in self._parameters]
            self._updates = self._norms(torch._foreach_sub(after, self._before))
            grads = [p.grad for p in self._parameters]
            if all(grad is not None for grad in grads):
                self._clipped = self._norms([dense(grad) for grad in grads])
        self._done()

    def looks(
        self,
        numbers: list[list[float]],
        places: Mapping[str, int],
        ends: Mapping[str, int],
        tables: set[str],
    ) -> dict[str, WeightLook]:
        """Return the parameters by name.

        Args:
            numbers: What was read.
            places: The places of parameters in the order of the forward pass.
            ends: The place of the last weight after each parameter, on its branch.
            tables: Names of the parameters whose rows are looked up.
        """
        found = {}
        for i, (name, p) in enumerate(zip(self._names, self._parameters, strict=True)):
            sampled = math.sqrt(max(1, self._before[i].numel()))
            update = math.nan if self._updates is None else numbers[self._updates][i] / sampled
            gradient = numbers[self._gradients][i] / math.sqrt(self._sizes[i])
            found[name] = WeightLook(
                gradient if math.isfinite(gradient) else math.nan,
                numbers[self._weights][i] / sampled, update, self._place, places.get(name, -1),
                dims(p), name in tables, ends.get(name, -1),
            )  # fmt: skip
        return found

    def norms(self, numbers: list[list[float]]) -> Norms | None:
        """Return the norms of all gradients before and after clipping, if the optimizer stepped."""
        if self._clipped is None:
            return None
        return Norms(math.hypot(*numbers[self._gradients]), math.hypot(*numbers[self._clipped]))


def dims(p: Tensor) -> int:
    """Return the number of dimensions; 1 for a scale of channels, as one of shape (n, 1, 1)."""
    return 1 if p.dim() > 2 and p.numel() == max(p.shape) else p.dim()


def dense(gradient: Any) -> Tensor:
    """Return this rank's elements of a gradient that may be sparse or sharded."""
    shard: Tensor = local(gradient)
    shard = shard.coalesce().values() if shard.is_sparse else shard
    shard = torch.view_as_real(shard) if shard.is_complex() else shard
    return shard.float() if shard.dtype == torch.float64 else shard


def sample(p: Tensor) -> Tensor:
    """Return a copy of some elements of a tensor, evenly spaced."""
    flat = dense(p).reshape(-1)
    some: Tensor = flat[:: max(1, math.ceil(flat.numel() / _MOST))]
    return some.float().clone()
