"""Comparison of a call with torch's: results, gradients, changed arguments, dtypes and strides."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tests.conftest import IS_INTERPRETED
from tests.kernels.reference import assert_as_right
from tests.kernels.torch_cases import Call, Case, laid_out, mapped


class Target(NamedTuple):
    """A function to call, and the tensors that it has besides its arguments.

    Attributes:
        function: The function, or a layer.
        leaves: The layer's parameters.
        states: The layer's buffers.
    """

    function: Callable[..., Tensor]
    leaves: tuple[Tensor, ...] = ()
    states: tuple[Tensor, ...] = ()


# Returns a new target: in float64 if the argument is true.
Make = Callable[[bool], Target]


def assert_alike(ours: Make, torchs: Make, case: Case, device: str, yardstick: Make) -> None:
    """Check that ``ours`` and ``torchs`` do the same for the case.

    The results are equal, or as right as torch's: see
    :func:`tests.kernels.reference.assert_as_right_as_torch`.

    Args:
        ours: The function of this package.
        torchs: Torch's function.
        case: The case.
        device: Device of the tensors.
        yardstick: Torch's function, or another one of torch's whose error limits that of ``ours``.
            In this case the results of float32 are also close to those of ``torchs``, within
            torch's own tolerance.
    """
    layout = "strided" if case.layout == "strided" else "contiguous"
    call = mapped(lambda t: laid_out(t.detach().to(device), layout), case.call)
    needs = [t.requires_grad for t in tensors_of(case.call)]
    mine, theirs = (_results(make(False), call, needs, case.layout) for make in (ours, torchs))
    for own, other in zip(mine, theirs, strict=True):
        assert (own.shape, own.dtype) == (other.shape, other.dtype)
    y = mine[0]
    assert y.stride() == theirs[0].stride()
    if all(map(torch.equal, mine, theirs)):
        return
    judged = y.dtype in (torch.float32, torch.float16, torch.bfloat16)
    if not judged or (yardstick is not torchs and y.dtype == torch.float32):
        torch.testing.assert_close(mine, theirs)
    if not judged:
        return

    def results() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        nonlocal call
        both = ((ours, False), (yardstick, False), (yardstick, True))
        found = [_results(make(wide), call, needs, case.layout, wide) for make, wide in both]
        call = mapped(_shuffled, call)
        return ((a, b, c) for a, b, c in zip(*found, strict=True) if a.is_floating_point())

    smallest = min(t.numel() for t in mine if t.numel() > 0)
    assert_as_right(results, smallest, draws=3 if IS_INTERPRETED else 16)  # that is slow


def instance_norm_by_group_norm(
    input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
    weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Compute instance norm as this package does where its kernels don't run.

    The result of torch's group norm has other rounding errors than that of torch's instance norm,
    whose gradients are wrong for one sample in channels last.
    """
    y = F.instance_norm(
        input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )
    if not use_input_stats or input.numel() == 0:
        return y
    if weight is None and bias is not None:
        weight = torch.ones_like(bias)  # without a weight, torch 2.11 has no gradient of the bias
    return F.group_norm(input.contiguous(), input.shape[1], weight, bias, eps)


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors in tuples, lists and dicts."""
    found: list[Tensor] = []
    mapped(found.append, value)
    return found


def _results(
    target: Target, call: Call, needs: list[bool], layout: str, wide: bool = False
) -> list[Tensor]:
    """Return the output, all gradients, and the tensors without gradient after the call.

    Random numbers are those of one seed, so each call of a dropout draws the same mask.
    """
    positional, keywords = _copies(call, wide)
    given = tensors_of((positional, keywords))
    for tensor, need in zip(given, needs, strict=True):
        tensor.requires_grad_(need)
    leaves = [*target.leaves, *(t for t in given if t.requires_grad)]
    torch.manual_seed(0)
    y = target.function(*positional, **keywords)
    results = [y.detach(), *target.states, *(t for t in given if not t.requires_grad)]
    if leaves:
        values = torch.randn(y.shape, device=y.device).bfloat16().to(y.dtype)  # exact in each dtype
        results += torch.autograd.grad(y, leaves, laid_out(values, layout))
    return results


def _copies(call: Call, wide: bool = False) -> Call:
    """Return copies of the tensors, in the same memory layout; in float64 if ``wide``."""

    def copy(t: Tensor) -> Tensor:
        if wide and t.is_floating_point():
            t = t.double()
        strides = t.stride()
        return torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device).copy_(t)

    copies: Call = mapped(copy, call)
    return copies


def _shuffled(x: Tensor) -> Tensor:
    """Return ``x`` with its elements in another order."""
    order = torch.randperm(x.numel(), device=x.device)
    return torch.empty_like(x).copy_(x.flatten()[order].view(x.shape))
