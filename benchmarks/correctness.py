"""Check the results of a provider against float64, or those of dropout against its distribution."""

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from benchmarks.providers import Function, Inputs, as_they_are

OUR_FACTOR = 1.5  # limit of our error, as a multiple of torch's own error
PEER_FACTOR = 2.0  # the same limit for peers
# Activations whose kernels compute an exponential by approximate instructions. By the PTX manual
# ex2.approx may be off by 2 units of 2**-23 of its result, and the quotient of div.full by 2.
EXPONENTIAL = frozenset({"elu", "selu", "silu", "gelu"})
APPROXIMATE = (2 + 2) * 2.0**-23
_SIGMAS = 5.0  # allowed deviation of the share of zeros, in standard deviations


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The outcome of a check.

    Attributes:
        reason: Description of the fault; ``None`` if the result is correct.
        error: Largest relative error of the result and the gradients: norm of the error divided by
            the norm of the exact tensor.
        allowed: Limit of this error.
    """

    reason: str | None = None
    error: float | None = None
    allowed: float | None = None


def unit(result: Tensor, activation: str | None = None, on_gpu: bool | None = None) -> float:
    """Return the relative error that a result may have besides :data:`OUR_FACTOR` times torch's.

    It is half a unit in the last place, for the rounding of the result. On a GPU
    :data:`APPROXIMATE` is added for an activation of :data:`EXPONENTIAL`, which is 8 of these
    halves in float32, and nothing to speak of in 16 bits. Statistics get no such allowance: kernels
    correct the approximate instructions there.

    Args:
        result: A result or a gradient.
        activation: Name of the activation that the function includes.
        on_gpu: Whether instructions are those of a GPU; by default where ``result`` is.
    """
    on_gpu = result.is_cuda if on_gpu is None else on_gpu
    approximate = APPROXIMATE if on_gpu and activation in EXPONENTIAL else 0.0
    return torch.finfo(result.dtype).eps / 2 + approximate


def run(function: Function, inputs: Inputs, grad: Tensor) -> list[Tensor]:
    """Return ``function(*inputs)`` and, if it is differentiable, the inputs' gradients.

    Memory that the results will probably use is filled with nan first. This reveals elements that
    the function never writes.
    """
    poison = [torch.full_like(tensor, math.nan) for tensor in (grad, *inputs)]
    del poison
    y = function(*inputs)
    right = y.requires_grad and y.shape == grad.shape
    gradients = torch.autograd.grad(y, inputs, grad) if right else ()
    return [y.detach(), *gradients]


class Float64:
    """The exact result for some inputs, and the error of torch's own result.

    Args:
        eager: The reference implementation.
        inputs: Inputs in the dtype that is measured.
        grad: Gradient of the result.
        prepare: Function that converts ``inputs`` to the arguments of ``eager``.
        activation: Name of the activation that ``eager`` includes, see :func:`unit`.
    """

    def __init__(
        self, eager: Function, inputs: Inputs, grad: Tensor,
        prepare: Callable[[Inputs], Inputs] = as_they_are, activation: str | None = None,
    ) -> None:  # fmt: skip
        wide = tuple(t.detach().double().requires_grad_(t.requires_grad) for t in inputs)
        self.exact = run(eager, prepare(wide), grad.double())
        theirs = run(eager, prepare(inputs), grad)
        self.dtype = theirs[0].dtype
        self.errors = [
            _norm(t.double() - e).item() for t, e in zip(theirs, self.exact, strict=True)
        ]
        self.roundings = [
            (unit(t, activation) * _norm(e)).item() for t, e in zip(theirs, self.exact, strict=True)
        ]

    def check(self, function: Function, inputs: Inputs, grad: Tensor, factor: float) -> Verdict:
        """Check that each error is at most ``factor`` times torch's error plus :func:`unit`."""
        results = run(function, inputs, grad)
        y, exact_y = results[0], self.exact[0]
        if y.dtype != self.dtype or y.shape != exact_y.shape:
            expected = f"{self.dtype} of shape {list(exact_y.shape)}"
            return Verdict(f"returns {y.dtype} of shape {list(y.shape)}, not {expected}")
        if len(results) != len(self.exact):
            return Verdict("its result can't be differentiated")
        worst = Verdict(error=0.0, allowed=math.inf)
        for i, (mine, exact) in enumerate(zip(results, self.exact, strict=True)):
            name = f"gradient of input {i - 1}" if i else "result"
            error = _norm(mine.double() - exact).item()
            size = max(_norm(exact).item(), torch.finfo(torch.float64).tiny)
            allowed = factor * self.errors[i] + self.roundings[i]
            if not error <= allowed:  # nan never passes
                ratio = f"{error / allowed:.3g} times the allowed error" if allowed else "not exact"
                relative = error / size if math.isfinite(error) else None
                return Verdict(f"{name}: error {error / size:.3g}, {ratio}", relative)
            if worst.error is not None and error / size >= worst.error:
                worst = Verdict(error=error / size, allowed=allowed / size)
        return worst


def check_dropout(
    function: Function, inputs: Inputs, grad: Tensor, rate: float, block_size: int | None = None
) -> Verdict:
    """Check the share of zeros, the scale of the survivors, and the mask of the gradient.

    The gradient must have the mask of the result. With ``block_size`` the zeros must form blocks,
    and the scale must be the number of all elements divided by the number of kept elements.
    Packages differ in where a block may begin near the edge of a map, and drop up to twice the
    rate, so the share of zeros may be 0.5 to 2.5 times the rate, and what chance adds to that.
    """
    x = inputs[0].detach()
    y, grad_x = run(function, inputs, grad)
    if y.dtype != x.dtype or y.shape != x.shape:
        return Verdict(f"returns {y.dtype} {list(y.shape)}, not {x.dtype} {list(x.shape)}")
    present = x != 0
    kept = (y != 0) & present
    numel = int(present.sum())
    dropped = 1 - int(kept.sum()) / numel
    sigma = math.sqrt(rate * (1 - rate) / numel)
    scale, units = 1 / (1 - rate), 1
    if block_size is None:
        right = abs(dropped - rate) <= _SIGMAS * sigma
    else:
        # About as many independent draws as there is room for blocks.
        noise = _SIGMAS * sigma * math.sqrt(min(block_size ** (x.dim() - 2), numel))
        right = 0.5 * rate - noise <= dropped <= 2.5 * rate + noise
        scale, units = 1 / (1 - dropped), 2  # the provider may round the count too
        if right and not _are_blocks(kept, present, block_size):
            return Verdict(f"the dropped elements are no blocks of {block_size}")
    if not right:
        return Verdict(f"drops {dropped:.6f} of the elements, not {rate} (sigma {sigma:.2g})")
    for name, result, source in (("survivors", y, x), ("gradients", grad_x, grad)):
        expected = torch.where(kept, source.double() * scale, 0)
        error = torch.where(present, (result.double() - expected).abs(), 0)
        # Half a unit for the rounding of the result, and half a unit for a scale rounded before.
        info = torch.finfo(x.dtype)
        wrong = ~(error <= units * info.eps * expected.abs().clamp(min=info.smallest_normal))
        if bool(wrong.any()):
            share = wrong.double().mean().item()
            return Verdict(
                f"{name} differ from the kept values times {scale:.6g}: {share:.3g} of them"
            )
    return Verdict()


def _are_blocks(kept: Tensor, present: Tensor, size: int) -> bool:
    """Return whether the dropped elements form blocks, which the edges of a map may cut.

    Zeros of the input are not ``present``: they may have been dropped or not.
    """
    height, width = (min(size, n) for n in kept.shape[-2:])
    margins = (width - 1, width - 1, height - 1, height - 1)
    padded = F.pad(kept.float(), margins)  # pad with dropped elements beyond the edges
    begin = 1 - F.max_pool2d(padded, (height, width), stride=1)
    covered = F.max_pool2d(begin, (height, width), stride=1)
    return bool((covered.bool() != kept)[present].all())


def _norm(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor)
    return norm
