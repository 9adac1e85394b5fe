"""How right a result must be: measured against float64, judged by torch's own error."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.correctness import OUR_FACTOR, unit
from lightning_kernels._core.launch import launch

_INTEGER_GUARD = 0xA5
Function = Callable[..., Tensor]


def run(function: Function, tensors: Iterable[Tensor | None], grad: Tensor) -> list[Tensor]:
    """Return ``function(*tensors)`` and its gradients with respect to those that are given."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    y = function(*leaves)
    present = [leaf for leaf in leaves if leaf is not None]
    return [y.detach(), *torch.autograd.grad(y, present, grad)]


def assert_as_right_as_torch(
    ours: Function,
    torchs: Function,
    draw: Callable[[], tuple[list[Tensor | None], Tensor]],
    activation: str | None = None,
) -> None:
    """Check the result and all gradients of ``ours`` on the tensors and the gradient of ``draw``.

    The error against float64, a norm over all elements, may be at most 1.5 times that of ``torchs``
    on the same tensors, plus half a unit in the last place of each element. On a GPU the limit
    allows for the approximate instructions of ``activation``: see
    :func:`benchmarks.correctness.unit`. Small tensors are drawn several times, so that no lucky
    rounding of torch's decides.
    """

    def results() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        tensors, grad = draw()
        wide = [None if t is None else t.double() for t in tensors]
        return zip(
            run(ours, tensors, grad),
            run(torchs, tensors, grad),
            run(torchs, wide, grad.double()),
            strict=True,
        )

    assert_as_right(results, draw()[1].numel(), activation=activation)


def assert_as_right(
    results: Callable[[], Iterable[tuple[Tensor, Tensor, Tensor]]],
    numel: int,
    draws: int = 16,
    activation: str | None = None,
    on_gpu: bool | None = None,
) -> None:
    """Check results as :func:`assert_as_right_as_torch` does.

    Args:
        results: Function that returns triples of our result, torch's result and the exact result.
        numel: Number of elements of the output. If it is small, ``results`` is called several
            times, and has to draw new tensors each time.
        draws: Largest number of calls of ``results``.
        activation: See :func:`benchmarks.correctness.unit`.
        on_gpu: Likewise.
    """
    squares: list[list[float]] = []
    for _ in range(max(1, min(draws, 1024 // max(numel, 1)))):
        errors = (_square_errors(*result, activation, on_gpu) for result in results())
        squares.append([value for three in errors for value in three])
    totals = [math.sqrt(sum(column)) for column in zip(*squares, strict=True)]
    for i in range(0, len(totals), 3):
        mine, theirs, rounding = totals[i : i + 3]
        assert mine <= OUR_FACTOR * theirs + rounding, (
            f"result {i // 3}: {mine}, {theirs}, {rounding}"
        )


def _square_errors(
    mine: Tensor, theirs: Tensor, exact: Tensor, activation: str | None, on_gpu: bool | None
) -> tuple[float, float, float]:
    """Return the summed squares of our error, of torch's and of rounding ``exact``'s size."""
    assert mine.shape == exact.shape
    assert mine.dtype == theirs.dtype
    rounding = exact.abs() * unit(mine, activation, on_gpu)
    errors = mine.double() - exact, theirs.double() - exact, rounding
    return tuple(error.square().sum().item() for error in errors)  # type: ignore[return-value]


def guard_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every launch one of :func:`_guarded_launch`."""
    replace_launch(monkeypatch, _guarded_launch)


def replace_launch(monkeypatch: pytest.MonkeyPatch, replacement: Callable[..., None]) -> None:
    """Replace ``launch`` in every module that imports it."""
    for name, module in [*sys.modules.items()]:
        if name.startswith("lightning_kernels.") and getattr(module, "launch", None) is launch:
            monkeypatch.setattr(module, "launch", replacement)


def _guarded_launch(
    kernel: Any, grid: tuple[int, ...], on: torch.device, *args: Any, **constants: Any
) -> None:
    """Launch with a guard around every tensor that stray reads would spread and writes mark."""
    moved = [_fence(arg) if isinstance(arg, Tensor) else (arg, None) for arg in args]
    launch(kernel, grid, on, *(inner for inner, _ in moved), **constants)
    for arg, (inner, whole) in zip(args, moved, strict=True):
        if whole is not None:
            guards = torch.cat([whole[:64], whole[-64:]])
            assert (guards.isnan() | (guards == _INTEGER_GUARD)).all(), kernel
            arg.data.copy_(inner)


def _fence(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return a copy of ``tensor`` in the middle of nan, or of a rare integer, and the whole."""
    filler = math.nan if tensor.is_floating_point() else _INTEGER_GUARD
    whole = tensor.new_full((tensor.numel() + 128,), filler)
    inner = whole[64:-64].as_strided(tensor.shape, tensor.stride(), 64)
    inner.copy_(tensor)
    return inner, whole
