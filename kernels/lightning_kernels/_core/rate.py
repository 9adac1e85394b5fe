"""Drop rates: a number on the host, or a tensor on the device that a schedule can change."""

import torch
from torch import Tensor

from lightning_kernels._core.parameters import not_a_tensor, number_of
from lightning_kernels._core.triton import tl, triton

_WORDS = 2**32
_MAX_THRESHOLD = tl.constexpr(4294967040.0)  # the largest float32 below 2**32


def resolve_rate(function: str, p: float | Tensor, x: Tensor) -> tuple[float, Tensor | None]:
    """Return (p, ``None``) if ``p`` is a number, or (0, ``p``) if ``p`` is a tensor.

    Raises:
        TypeError: If ``x`` is not a tensor, or ``p`` neither a number nor a tensor.
        ValueError: If ``p`` is a number outside ``[0, 1]`` or nan.
        RuntimeError: If ``p`` is a tensor, but not a float32 of one element on the device of ``x``,
            or if it requires a gradient.
    """
    if not isinstance(x, Tensor):
        raise not_a_tensor(function, "the input", x)
    if type(p) is float or not isinstance(p, Tensor):  # the cheaper test first
        number = p if type(p) is float else number_of(function, "p", p)
        if not 0.0 <= number <= 1.0:
            raise ValueError(f"{function} probability p has to be between 0 and 1, but got {p}")
        return number, None
    if p.numel() != 1 or p.dtype != torch.float32 or p.device != x.device or p.requires_grad:
        raise RuntimeError(
            f"{function} expects p as a number, or as one torch.float32 on {x.device} without"
            f" gradient, but got {list(p.shape)} of {p.dtype} on {p.device}"
            + (" that requires one" if p.requires_grad else "")
        )
    return 0.0, p


def threshold_of(p: float) -> int:
    """Return the threshold for rate ``p``: an element is dropped if its random word is below it.

    Random words have 32 bits, so the rate is exact to 2**-32.
    """
    return min(round(p * _WORDS), _WORDS - 1)


def survivors_scale(p: float) -> float:
    """Return the factor 1 / (1 - p) of kept elements, which preserves the mean; 0 if ``p`` is 1."""
    return 1.0 / (1.0 - p) if p < 1.0 else 0.0


@triton.jit
def load_rate(rate_ptr, threshold, scale):
    """Return the threshold and the scale of kept elements.

    If ``rate_ptr`` is given, both are computed from the rate in memory.
    """
    if rate_ptr is not None:
        p = tl.load(rate_ptr)
        threshold = tl.minimum(p * 4294967296.0, _MAX_THRESHOLD).to(tl.uint32)
        scale = tl.where(p < 1, 1 / (1 - p), 0.0)
    return threshold.to(tl.uint32), scale


def aten_factor(x: Tensor, shape: list[int] | torch.Size, rate: Tensor) -> Tensor:
    """Draw factors of ``shape``: 0 with probability ``rate``, else the scale 1 / (1 - rate)."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    kept = torch.rand(shape, dtype=dtype, device=x.device) >= rate
    scale = torch.where(rate < 1, 1 / (1 - rate), 0.0)
    return torch.where(kept, scale, 0.0).to(x.dtype)
