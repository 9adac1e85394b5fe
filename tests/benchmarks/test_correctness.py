"""Providers that are wrong in the ways that providers are wrong."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torchvision import ops

import lightning_kernels
from benchmarks.correctness import OUR_FACTOR, PEER_FACTOR, Float64, check_dropout
from benchmarks.ops import DTYPES, OPS
from benchmarks.providers import Function

EPS = 1e-5
RATE = 0.1


def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, EPS)


def composed(*inputs: Tensor, eps: float = EPS, wide: torch.dtype = torch.float32) -> Tensor:
    """Return layer norm from its formula, with all in type ``wide``."""
    x, weight, bias = (tensor.to(wide) for tensor in inputs)
    centred = x - x.mean(-1, keepdim=True)
    rstd = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (centred * rstd * weight + bias).to(inputs[0].dtype)


def reference(dtype: str = "bf16") -> tuple[Float64, tuple[Tensor, ...], Tensor]:
    inputs = OPS["layer_norm"].draw((64, 256), "contiguous", DTYPES[dtype], torch.device("cpu"))
    grad = torch.randn(64, 256, dtype=DTYPES[dtype])
    return Float64(eager, inputs, grad), inputs, grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [eager, composed])
def test_right_functions_pass(function: Callable[..., Tensor], dtype: str) -> None:
    exact, inputs, grad = reference(dtype)
    for factor in (OUR_FACTOR, PEER_FACTOR):
        verdict = exact.check(function, inputs, grad, factor)
        assert verdict.reason is None
        assert verdict.error is not None
        assert verdict.allowed is not None
        assert 0 < verdict.error <= verdict.allowed < 0.05


def wrong_gradient(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return eager(x, weight, bias) + (bias - bias.detach())


def one_element_unwritten(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = eager(x, weight, bias).clone()
    with torch.no_grad():
        y[3, 5] = math.nan
    return y


WRONG: dict[str, tuple[Callable[..., Tensor], str]] = {
    "eps 1e-2": (lambda *a: composed(*a, eps=1e-2), "result: error"),
    "all in bf16": (lambda *a: composed(*a, wide=torch.bfloat16), "times the allowed error"),
    "no bias": (lambda x, w, b: eager(x, w, b * 0), "result: error"),
    "gradient of the bias doubled": (wrong_gradient, "gradient of input 2: error"),
    "an element never written": (one_element_unwritten, "result: error nan"),
    "float64 returned": (lambda *a: eager(*a).double(), "returns torch.float64"),
    "another shape": (lambda *a: eager(*a).detach().T, "of shape [256, 64], not"),
    "no gradient": (lambda *a: eager(*a).detach(), "can't be differentiated"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_functions_do_not(name: str) -> None:
    function, reason = WRONG[name]
    exact, inputs, grad = reference("fp32")  # torch's own error in bf16 is large on the CPU
    verdict = exact.check(function, inputs, grad, PEER_FACTOR)
    assert verdict.reason is not None
    assert reason in verdict.reason


def test_parameters_may_be_wider_than_the_activations() -> None:
    (prepare,) = (p.prepare for p in OPS["layer_norm"].providers if p.name == "quack-kernels")
    exact, inputs, grad = reference("bf16")
    own = prepare(inputs)
    assert own[0] is inputs[0]
    assert [t.dtype for t in own[1:]] == [torch.float32] * 2
    assert exact.check(composed, own, grad, PEER_FACTOR).reason is None


@pytest.mark.gpu
def test_memory_that_is_never_written_shows() -> None:
    inputs = OPS["layer_norm"].draw((64, 256), "contiguous", torch.float32, torch.device("cuda"))
    grad = torch.randn(64, 256, device="cuda")
    exact = Float64(eager, inputs, grad)

    def last_row_unwritten(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = torch.empty_like(x)
        y[:-1] = eager(x, weight, bias)[:-1]
        return y

    for _ in range(3):  # the right result has been in this memory before
        exact.check(eager, inputs, grad, PEER_FACTOR)
        assert exact.check(last_row_unwritten, inputs, grad, PEER_FACTOR).reason is not None


def dropout(x: Tensor, p: float = RATE, scale: float = 1 / (1 - RATE)) -> Tensor:
    return x * ((torch.rand(x.shape) >= p).to(x.dtype) * scale)


class ForgetfulDropout(torch.autograd.Function):
    """Draws another mask for its backward pass."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return F.dropout(x, RATE)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return F.dropout(grad, RATE)


def check(function: Callable[..., Tensor], dtype: str = "fp32") -> str | None:
    x = torch.randn(200, 500, dtype=DTYPES[dtype], requires_grad=True)
    return check_dropout(function, (x,), torch.randn_like(x), RATE).reason


@pytest.mark.parametrize("dtype", DTYPES)
def test_torchs_dropout_passes(dtype: str) -> None:
    assert check(lambda x: F.dropout(x, RATE), dtype) is None


WRONG_DROPOUTS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "the rate in 256ths": (lambda x: dropout(x, p=28 / 256), "drops 0.1"),
    "nothing dropped": (lambda x: x * (1 / (1 - RATE)), "drops 0.000000"),
    "not rescaled": (lambda x: dropout(x, scale=1.0), "survivors differ"),
    "scale of another rate": (lambda x: dropout(x, scale=256 / 230), "survivors differ"),
    "another mask backward": (ForgetfulDropout.apply, "gradients differ"),
    "another type": (lambda x: dropout(x).double(), "returns torch.float64"),
}


@pytest.mark.parametrize("name", WRONG_DROPOUTS)
def test_wrong_dropouts_do_not_pass(name: str) -> None:
    function, reason = WRONG_DROPOUTS[name]
    found = check(lambda x: function(x))
    assert found is not None
    assert reason in found


def check_blocks(function: Function) -> str | None:
    x = torch.randn(64, 32, 14, 14, dtype=torch.bfloat16)
    x = (x * (torch.rand_like(x) < 0.99)).requires_grad_()  # an input may hold zeros
    return check_dropout(function, (x,), torch.randn_like(x), RATE, 7).reason


@pytest.mark.parametrize("op", [lightning_kernels.drop_block2d, ops.drop_block2d])
def test_drop_blocks_pass(op: Function) -> None:
    assert check_blocks(lambda x: op(x, RATE, 7)) is None


def test_wrong_drop_blocks_do_not_pass() -> None:
    def unscaled(x: Tensor) -> Tensor:
        kept: Tensor = ops.drop_block2d(torch.ones_like(x), RATE, 7) != 0
        return x * kept

    wrong: dict[str, Function] = {
        "drops 0.3": lambda x: ops.drop_block2d(x, 0.4, 7),
        "no blocks of 7": lambda x: ops.drop_block2d(x, RATE, 5),
        "survivors differ": unscaled,
    }
    for reason, function in wrong.items():
        assert reason in (check_blocks(function) or "")
