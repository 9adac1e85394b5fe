"""Gradients that backward operators return, and gradients of higher order."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def empty_gradients(
    x: Tensor, parameters: Sequence[Tensor | None], needs: Sequence[bool]
) -> list[Tensor]:
    """Allocate a contiguous gradient for each parameter.

    Where a gradient is not needed, the result is an empty tensor of the dtype of ``x``, because an
    operator can't return ``None``. :func:`only_needed` replaces the empty tensors by ``None``.
    """
    return [
        torch.empty_like(parameter, memory_format=torch.contiguous_format)
        if need and parameter is not None
        else x.new_empty(0)
        for parameter, need in zip(parameters, needs, strict=True)
    ]


def only_needed(gradients: Iterable[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients, with ``None`` in place of each gradient that is not needed."""
    return [grad if need else None for grad, need in zip(gradients, needs, strict=True)]


def recompute_gradients(
    function: Callable[..., Tensor],
    grad: Tensor,
    inputs: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of ``function(*inputs)``, connected to a graph.

    Backward passes call this function under ``create_graph=True``, because autograd can't
    differentiate the launch of a backward kernel.

    Args:
        function: Function of torch operators that computes the output in float32.
        grad: The gradient of the output.
        inputs: Tensors of any dtype. ``function`` gets them as float32.
        needs: Whether each input needs a gradient.
    """
    # The gradients are those of views of the inputs. One input may be computed from another, and
    # a gradient of the inputs themselves would include this path, which autograd adds later.
    views = [None if t is None else t.view_as(t) for t in inputs]
    y = function(*(None if t is None else t.float() for t in views))
    results: list[Tensor | None] = [None] * len(views)
    wanted = {i: t for i, t in enumerate(views) if t is not None and needs[i]}
    if wanted:
        gradients = torch.autograd.grad(y, [*wanted.values()], grad.float(), create_graph=True)
        for i, gradient in zip(wanted, gradients, strict=True):
            results[i] = gradient
    return results
