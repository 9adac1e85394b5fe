"""``lightning_kernels.alpha_dropout``, and rates that are tensors, on whichever route."""

import math

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from lightning_kernels import alpha_dropout, dropout
from lightning_kernels._dropout.dropout import alpha_constants

SATURATED = -1.7580993408473766  # SELU's limit, -scale * alpha


def constants(p: float) -> tuple[float, float]:
    """Return a and b of the paper's affine transformation."""
    a = ((1 - p) * (1 + p * SATURATED**2)) ** -0.5
    return a, -a * p * SATURATED


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("p", "as_tensor"), [(0.1, True), (0.5, False)])
def test_alpha_values_and_gradient(
    p: float, as_tensor: bool, dtype: torch.dtype, device: str
) -> None:
    a, b = constants(p)
    x = torch.linspace(-3, 3, 4097, device=device).to(dtype).requires_grad_()
    y = alpha_dropout(x, torch.tensor(p, device=device) if as_tensor else p, training=True)
    (grad,) = torch.autograd.grad(y.sum(), x)
    kept = grad != 0
    exact = torch.where(kept, a * x.double() + b, a * SATURATED + b)
    tolerance = 2 * max(torch.finfo(dtype).eps, 1e-7 if as_tensor else 0)
    torch.testing.assert_close(y.double(), exact, rtol=tolerance, atol=4 * tolerance)
    torch.testing.assert_close(grad.double(), kept.double() * a, rtol=tolerance, atol=0)
    sigma = math.sqrt(p * (1 - p) / x.numel())
    assert abs(kept.double().mean().item() - (1 - p)) < 5 * sigma


@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
def test_alpha_keeps_mean_and_variance(as_tensor: bool, device: str) -> None:
    x = torch.randn(80_000, device=device)
    x = (x - x.mean()) / x.std()
    y = alpha_dropout(x, torch.tensor(0.3, device=device) if as_tensor else 0.3, training=True)
    assert abs(y.mean().item()) < 5 / math.sqrt(x.numel())
    assert abs(y.var().item() - 1) < 5 * math.sqrt(2 / x.numel())


def test_alpha_in_place_and_second_derivatives(device: str) -> None:
    leaf = torch.rand(200, device=device, requires_grad=True)
    x = leaf * 1
    y = alpha_dropout(x, 0.4, training=True, inplace=True)
    assert y is x
    (grad,) = torch.autograd.grad(y.pow(3).sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), leaf)
    a, b = constants(0.4)
    kept = second != 0
    torch.testing.assert_close(second, kept * 6 * a**2 * (a * leaf.detach() + b))
    assert 0 < kept.sum() < 200


@pytest.mark.parametrize("p", [1.0, torch.tensor(1.0)], ids=["number", "tensor"])
def test_all_is_dropped_at_one(p: float | Tensor, device: str) -> None:
    x = torch.randn(300, device=device, requires_grad=True)
    p = p.to(device) if isinstance(p, Tensor) else p
    for function in (dropout, alpha_dropout):
        y = function(x, p, True)
        assert torch.equal(y, torch.zeros_like(x))
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.zeros_like(x))


def test_alpha_is_off_in_evaluation_and_by_default(device: str) -> None:
    x = torch.randn(5, device=device)
    assert alpha_dropout(x) is x
    assert alpha_dropout(x, 0.0, training=True) is x
    assert alpha_dropout(x, torch.tensor(0.4, device=device), training=False) is x


@pytest.mark.parametrize(("p", "inplace"), [(0.001, False), (0.25, True), (0.9, False)])
def test_a_rate_in_a_tensor(inplace: bool, p: float, device: str) -> None:
    rate = torch.tensor(p, device=device)
    leaf = (torch.rand(100_000, device=device) + 1).requires_grad_()
    x = leaf * 1
    original = x.detach().clone()
    y = dropout(x, rate, inplace=inplace)
    assert (y is x) == inplace
    dropped = y.detach() == 0
    sigma = math.sqrt(p * (1 - p) / x.numel())
    assert abs(dropped.double().mean().item() - p) < 5 * sigma
    torch.testing.assert_close(y.detach(), torch.where(dropped, 0, original / (1 - p)))
    (grad,) = torch.autograd.grad(y.sum(), leaf)
    torch.testing.assert_close(grad, torch.where(dropped, 0.0, 1 / (1 - rate)))


def test_a_rate_of_zero_in_a_tensor_drops_nothing(device: str) -> None:
    x = torch.randn(5000, device=device)
    assert torch.equal(dropout(x, torch.zeros((), device=device)), x)


@pytest.mark.kernel  # ATen keeps the mask itself
def test_a_rate_that_changed_before_the_backward_pass_raises(device: str) -> None:
    rate = torch.tensor(0.5, device=device)
    y = dropout(torch.ones(64, device=device, requires_grad=True), rate)
    rate.fill_(0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(
    "p",
    [
        torch.ones(2),
        torch.tensor(0.5, dtype=torch.float64),
        torch.tensor(0.5, requires_grad=True),
        torch.tensor(0.5, device="meta"),
    ],
    ids=["two", "float64", "gradient", "device"],
)
def test_a_tensor_that_is_no_rate(p: Tensor, device: str) -> None:
    p = p if p.is_meta else p.detach().to(device).requires_grad_(p.requires_grad)
    for function in (dropout, alpha_dropout):
        with pytest.raises(RuntimeError, match=f"{function.__name__} expects p as a number, or"):
            function(torch.ones(4, device=device), p, True)


def test_a_schedule_compiles_once(device: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(dropout, backend="aot_eager", fullgraph=True)
    rate = torch.tensor(0.1, device=device)
    x = torch.ones(20_000, device=device)
    with torch.compiler.set_stance("default"):
        compiled(x, rate)
    with torch.compiler.set_stance("fail_on_recompile"):
        for p in (0.2, 0.5, 0.9):
            rate.fill_(p)
            dropped = (compiled(x, rate) == 0).double().mean().item()
            assert abs(dropped - p) < 5 * math.sqrt(p * (1 - p) / x.numel())


# torch's own check reads .grad of a tensor that is not a leaf
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.kernel
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
def test_opcheck(alpha: bool, gradient: bool, device: str) -> None:
    x = torch.randn(100, device=device, requires_grad=True)
    for rate in (None, torch.tensor(0.5, device=device)):
        opcheck(
            torch.ops.lightning_kernels.dropout.default, (x, 0.5, rate, alpha, gradient, None, 7, 4)
        )


def test_constants_agree_with_torchs() -> None:
    x = torch.zeros(1000, dtype=torch.float64)
    y = torch.nn.functional.alpha_dropout(x, 0.2, training=True)
    _, shift, dropped = alpha_constants(0.2)
    assert y.unique().numel() == 2
    torch.testing.assert_close(y.max().item(), shift)
    torch.testing.assert_close(y.min().item(), dropped)
