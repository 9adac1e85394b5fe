"""Compare what two functions compute from the same tensors, by a reference in float64."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_practices.surgery._fuse.tensors import tensors_in

Ways = Callable[[], tuple[nn.Module, nn.Module]]

# How far the results may be apart, as a part of their norm, besides a multiple of torch's error.
_SLACK = {torch.float64: 1e-10, torch.float32: 1e-5}
_SLACK_OF_16_BITS = 2e-3
_TIMES = 4  # the error against float64 may be this many times torch's


def disagreement(ways: Ways, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Return how results or gradients of two ways differ, or ``None`` if they agree.

    A result agrees if its error against a reference in float64 is at most a few times that of
    torch's way, in the norm of the whole tensor. Layers that draw random numbers are compared in
    evaluation. The arguments, the layers and the state of the random generators don't change.

    Args:
        ways: Function that returns torch's way and ours, as new modules.
        args: Positional arguments of a call.
        kwargs: Keyword arguments of a call.
    """
    with _same_draws(args, kwargs) as draws:
        try:
            plain, fused = ways()
            before = draws()
            expected = _results(plain, args, kwargs)
            if not torch.equal(before, draws()):
                plain, fused = (way.eval() for way in ways())
                expected = _results(plain, args, kwargs)
            found = _results(fused, args, kwargs)
            exact = _exact(ways, plain.training, args, kwargs) or expected
        except Exception as error:  # a user's layer may raise anything
            return f"it can't be compared with torch's: {type(error).__name__}: {error}"
    if [a is None for a in found] != [b is None for b in expected]:
        return "not the same tensors have gradients as with torch's layer"
    for name, ours, theirs, true in zip(_names(expected), found, expected, exact, strict=False):
        if ours is not None and theirs is not None and true is not None:
            if ours.shape != theirs.shape:
                return f"{name} has another shape than with torch's layer"
            if reason := _apart(ours, theirs, true):
                return f"{name} differs from that of torch's layer: {reason}"
    return None


def _names(results: list[Tensor | None]) -> list[str]:
    return ["its result"] + ["a gradient, a buffer or a further result"] * (len(results) - 1)


def _results(
    way: nn.Module, args: Any, kwargs: Any, dtype: torch.dtype | None = None
) -> list[Tensor | None]:
    """Return a module's results, the gradients of its inputs and parameters, and its buffers."""
    leaves: list[Tensor] = []

    def own(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if not value.is_floating_point():
            return value.clone()
        copied = value.detach().clone().to(dtype or value.dtype)
        if value.requires_grad:
            leaves.append(copied.requires_grad_())
            copied = copied.view_as(copied)  # layers in place can't change a leaf
        return copied

    args, kwargs = tree_map(own, (args, kwargs))
    outputs = tensors_in(way(*args, **kwargs))
    differentiable = [x for x in outputs if x.requires_grad]
    gradients: list[Tensor | None] = []
    if differentiable and torch.is_grad_enabled():
        leaves += [p for p in way.parameters() if p.requires_grad]
        weights = [_pattern(x) for x in differentiable]
        gradients = list(torch.autograd.grad(differentiable, leaves, weights, allow_unused=True))
    buffers = [b for b in way.buffers() if b.is_floating_point()]
    return [x if x is None else x.detach() for x in (*outputs, *gradients, *buffers)]


def _pattern(x: Tensor) -> Tensor:
    """Return fixed values of both signs, in the shape of ``x``, that are exact in 16 bits."""
    place = torch.arange(x.numel(), device=x.device)
    return ((place * 37 % 61 - 30) / 32).to(x.dtype).view(x.shape)


def _exact(ways: Ways, training: bool, args: Any, kwargs: Any) -> list[Tensor | None] | None:
    """Return the results of torch's way in float64, or ``None`` if it has none."""
    plain = ways()[0].double()
    if not training:
        plain.eval()
    devices = {x.device.type for x in tensors_in((args, kwargs))}
    with contextlib.ExitStack() as stack:
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        try:
            return _results(plain, args, kwargs, torch.float64)
        except (RuntimeError, TypeError, ValueError):  # it has no float64
            return None


def _apart(ours: Tensor, theirs: Tensor, exact: Tensor) -> str | None:
    slack = _SLACK.get(theirs.dtype, _SLACK_OF_16_BITS)
    ours, theirs, exact = ours.double(), theirs.double(), exact.double()
    finite = theirs.isfinite()
    if not bool(ours.isfinite()[finite].all()):
        return "it is not finite where torch's is"
    ours, theirs, exact = (x.where(finite & exact.isfinite(), 0.0) for x in (ours, theirs, exact))
    error, others = float((ours - exact).norm()), float((theirs - exact).norm())
    allowed = _TIMES * others + slack * float(exact.norm()) + slack * 1e-3
    if error <= allowed:
        return None
    return f"an error of {error:.2g} in the norm, where torch's is {others:.2g}"


@contextlib.contextmanager
def _same_draws(args: Any, kwargs: Any) -> Iterator[Callable[[], Tensor]]:
    """Restore the random generators at the end, and yield a function that returns their state."""
    devices = {x.device for x in tensors_in((args, kwargs)) if x.is_cuda}
    with torch.random.fork_rng(devices=[device.index for device in devices]):
        yield lambda: torch.cat(
            [torch.get_rng_state(), *(torch.cuda.get_rng_state(device).cpu() for device in devices)]
        )
