"""Gradient clipping whose compiled kernels are executed, on gradients of all types at once."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_

import lightning_kernels as lk
from benchmarks.ptx import Record, compiled_on_cpu
from tests.kernels.reference import assert_as_right

# Gradients whose sizes allow wide accesses, none, and some, in one table.
SIZES = ((64, 64), (33, 5), (1,), (7, 8, 2), (1100,))
Clip = Callable[[Sequence[Tensor]], Any]


def _adaptive(weights: Sequence[Tensor], norm_type: float = 2.0) -> None:
    """Clip each row's gradient to half of the norm of its weights."""
    for weight in weights:
        assert weight.grad is not None
        dims = list(range(1, weight.dim())) or None
        norms = [
            torch.linalg.vector_norm(t, norm_type, dims, keepdim=weight.dim() > 1)
            for t in (weight, weight.grad)
        ]
        weight.grad *= (0.5 * norms[0].clamp(min=1e-3) / norms[1]).clamp(max=1.0)


def _scaled(weights: Sequence[Tensor]) -> Tensor:
    """Divide the gradients by the divisor of ``clip_grad_scale``."""
    result = lk.clip_grad_scale(weights, 2.0)
    for weight in weights:
        assert weight.grad is not None
        weight.grad.copy_(weight.grad / result.grad_scale)
    return result.norm


CLIPS: dict[str, tuple[Clip, Clip]] = {
    **{
        f"clip_grad_norm_, {norm_type}": (
            lambda w, n=norm_type: lk.clip_grad_norm_(w, 2.0, n),  # type: ignore[misc]
            lambda w, n=norm_type: clip_grad_norm_(w, 2.0, n),  # type: ignore[misc]
        )
        for norm_type in (1.0, 2.0, 3.0, math.inf)
    },
    "clip_grads_with_norm_": (
        lambda w: lk.clip_grads_with_norm_(w, 2.0, torch.tensor(3.0)),
        lambda w: clip_grads_with_norm_(w, 2.0, torch.tensor(3.0)),
    ),
    "clip_grad_value_": (
        lambda w: lk.clip_grad_value_(w, 0.3),
        lambda w: clip_grad_value_(w, 0.3),
    ),
    "clip_grad_adaptive_": (lambda w: lk.clip_grad_adaptive_(w, 0.5), _adaptive),
    "clip_grad_adaptive_, inf": (
        lambda w: lk.clip_grad_adaptive_(w, 0.5, norm_type=math.inf),
        lambda w: _adaptive(w, math.inf),
    ),
    "clip_grad_scale": (_scaled, lambda w: clip_grad_norm_(w, 2.0)),
}
MANY = ("clip_grad_norm_, 1.0", "clip_grad_norm_, 3.0", "clip_grad_adaptive_, inf")
FEW = tuple(name for name in CLIPS if name not in MANY)


def _draw() -> list[Tensor]:
    """Return parameters of three types, whose gradients do not all begin at multiples of 16."""
    weights: list[Tensor] = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for size in SIZES:
            weight, grad = (torch.randn(math.prod(size) + 1).to(dtype) for _ in range(2))
            start = len(weights) % 2
            weight, grad = (t[start : start + math.prod(size)].view(size) for t in (weight, grad))
            weight.grad = grad
            weights.append(weight)
    return weights


def _copies(weights: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    copies = [weight.to(dtype or weight.dtype, copy=True) for weight in weights]
    for weight, copy in zip(weights, copies, strict=True):
        assert weight.grad is not None
        copy.grad = weight.grad.to(copy.dtype, copy=True)
    return copies


def _gradients(weights: Sequence[Tensor]) -> list[Tensor]:
    return [weight.grad for weight in weights if weight.grad is not None]


@functools.cache
def executed(name: str) -> Record:
    """Execute the functions named ``name``, check the gradients, and return the record.

    The limit of errors is that of :func:`tests.kernels.reference.assert_as_right`.
    """
    ours, torchs = CLIPS[name]
    records = []

    def results() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        weights = _draw()
        theirs, exact = _copies(weights), _copies(weights, torch.float64)
        torchs(theirs)
        torchs(exact)
        with compiled_on_cpu() as record:
            ours(weights)
        records.append(record)
        return zip(*map(_gradients, (weights, theirs, exact)), strict=True)

    assert_as_right(results, draws=1, numel=1)
    return records[0]
