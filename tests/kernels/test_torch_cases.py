"""PyTorch's own test cases of its norms and dropouts, given to the functions of this package."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import lightning_kernels
from tests.conftest import IS_INTERPRETED
from tests.kernels import torch_cases
from tests.kernels.alike import Make, Target, assert_alike, instance_norm_by_group_norm
from tests.kernels.torch_cases import Case, laid_out

NORMS = torch_cases.FUNCTIONS[:5]
DROPOUTS = torch_cases.FUNCTIONS[5:]
_SATURATION = -1.7580993408473766  # the limit of SELU at minus infinity

# torch's own warning of its case of dropout2d with three dimensions
pytestmark = pytest.mark.filterwarnings("ignore:dropout2d. Received a 3")


@pytest.mark.parametrize("name", torch_cases.FUNCTIONS)
def test_results_and_gradients_are_those_of_torch(name: str, device: str) -> None:
    ours, torchs = getattr(lightning_kernels, name), getattr(F, name)
    mine, theirs = _always(ours), _always(torchs)
    yardstick = theirs
    if name == "instance_norm":
        yardstick = _always(instance_norm_by_group_norm)
    for case in torch_cases.cases("functions", name, IS_INTERPRETED):
        if not _draws_by_kernel(name, case, device):
            with torch_cases.naming(case):
                assert_alike(mine, theirs, case, device, yardstick)


@pytest.mark.kernel
@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_by_a_kernel_drops_the_right_share_and_scales_the_rest(
    name: str, device: str
) -> None:
    dropped, expected, variance = 0, 0.0, 0.0
    for case in torch_cases.cases("functions", name, interpreted=False):
        if _draws_by_kernel(name, case, device):
            with torch_cases.naming(case):
                kept = _kept_units(name, case, device)
            dropped += int((~kept).sum())
            expected += kept.numel() * _rate(case)
            variance += kept.numel() * _rate(case) * (1 - _rate(case))
    assert variance > 0
    assert abs(dropped - expected) <= 5 * math.sqrt(variance)


def _always(function: Callable[..., Tensor]) -> Make:
    """Return a function that returns a target, the same each time."""
    return lambda _: Target(function)


def _rate(case: Case) -> float:
    rate: float = case.call[1].get("p", 0.5)
    return rate


def _draws_by_kernel(name: str, case: Case, device: str) -> bool:
    """Return whether the function draws a mask in a kernel, which can't be the mask of torch."""
    (x, *_), keywords = case.call
    by_default = "alpha" not in name
    draws = keywords.get("training", by_default) and _rate(case) not in (0.0, 1.0)
    return name in DROPOUTS and draws and lightning_kernels.route(x.to(device)) != "aten"


def _kept_units(name: str, case: Case, device: str) -> Tensor:
    """Check the values that a dropout returns. Return which elements or channels it has kept."""
    (given, *_), keywords = case.call
    layout = "strided" if case.layout == "strided" else "contiguous"
    x = laid_out(given.detach().to(device), layout).requires_grad_()
    y = getattr(lightning_kernels, name)(x, **keywords)
    grad = laid_out(torch.randn(y.shape, device=device).to(y.dtype), case.layout)
    (grad_x,) = torch.autograd.grad(y, x, grad)
    wide, eps = x.detach().double(), torch.finfo(x.dtype).eps
    scale, shift, value = _constants(name, _rate(case))
    # Half a unit in the last place for each rounding: scale and product, shift, sum.
    size = (wide * scale).abs() + abs(shift)
    is_kept: Tensor = (y - (wide * scale + shift)).abs() <= 1.5 * eps * size
    is_dropped = (y - value).abs() <= eps * abs(value)
    if name not in ("dropout", "alpha_dropout"):  # one draw for each channel
        leading = 1 if (name, x.dim()) == ("dropout3d", 4) else 2
        is_kept, is_dropped = (t.flatten(leading).all(-1) for t in (is_kept, is_dropped))
    assert (is_kept | is_dropped).all()
    factor = (is_kept * scale).reshape(is_kept.shape + (1,) * (x.dim() - is_kept.dim()))
    exact = grad.double() * factor
    is_right = (grad_x - exact).abs() <= eps * exact.abs()
    # A dropped element of alpha dropout may have the value that it would have if it were kept.
    either = (is_kept & is_dropped).reshape(factor.shape)
    assert (is_right | (either & (grad_x == 0))).all()
    assert (grad_x.dtype, y.dtype) == (x.dtype, x.dtype)
    return is_kept


def _constants(name: str, p: float) -> tuple[float, float, float]:
    """Return the scale and the shift of kept elements, and the value of dropped ones."""
    if "alpha" not in name:
        return 1 / (1 - p), 0.0, 0.0
    scale = 1 / math.sqrt((1 - p) * (1 + p * _SATURATION**2))
    return scale, -p * scale * _SATURATION, (1 - p) * scale * _SATURATION


def test_errors_are_those_of_torch(device: str) -> None:
    cases = torch_cases.errors("functions")
    assert len(cases) >= 5  # torch 2.11's; newer releases have more
    for name, (positional, keywords), expected in cases:
        positional = torch_cases.mapped(lambda t: t.to(device), positional)
        with pytest.raises(expected) as theirs:
            getattr(F, name)(*positional, **keywords)
        with pytest.raises(type(theirs.value)):
            getattr(lightning_kernels, name)(*positional, **keywords)
