"""The gradients that a backward operator returns, and those of higher order."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def empty_gradients(
    x: Tensor, parameters: Sequence[Tensor | None], needs: Sequence[bool]
) -> list[Tensor]:
    """Allocate a contiguous gradient for each parameter.

    A gradient that is not needed is an empty tensor of ``x``'s dtype, because an operator can't
    return ``None``. :func:`only_needed` replaces it.
    """
    return [
        torch.empty_like(parameter, memory_format=torch.contiguous_format)
        if need and parameter is not None
        else x.new_empty(0)
        for parameter, need in zip(parameters, needs, strict=True)
    ]


def only_needed(gradients: Iterable[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients with ``None`` for each that is not needed."""
    return [grad if need else None for grad, need in zip(gradients, needs, strict=True)]


def recompute_gradients(
    function: Callable[..., Tensor],
    grad: Tensor,
    inputs: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of ``function(*inputs)`` as a graph that can be differentiated again.

    The backward pass calls it under ``create_graph=True``, where a kernel would end the graph.

    Args:
        function: Torch operators that compute the output in float32.
        grad: The gradient of the output.
        inputs: Tensors of any dtype, passed to ``function`` as float32.
        needs: Whether each input needs a gradient.
    """
    # Gradients are taken of views: an input may be computed from another, and that path is the
    # caller's to follow.
    views = [None if t is None else t.view_as(t) for t in inputs]
    y = function(*(None if t is None else t.float() for t in views))
    results: list[Tensor | None] = [None] * len(views)
    wanted = {i: t for i, t in enumerate(views) if t is not None and needs[i]}
    if wanted:
        gradients = torch.autograd.grad(y, [*wanted.values()], grad.float(), create_graph=True)
        for i, gradient in zip(wanted, gradients, strict=True):
            results[i] = gradient
    return results
