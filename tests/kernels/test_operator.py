"""What ``torch.library`` and compilers see of the operators, and what kernels touch in memory."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import lightning_kernels
from tests.kernels.reference import guard_launches

pytestmark = pytest.mark.kernel

OPS = torch.ops.lightning_kernels


def layer_norm_arguments(device: str, dtype: torch.dtype = torch.float32) -> list[Any]:
    x = torch.randn(6, 24, device=device, dtype=dtype, requires_grad=True)
    weight, bias = (torch.randn(24, device=device, requires_grad=True) for _ in range(2))
    return [x, 24, weight, bias, 1e-5, True, None]


# torch's own check reads .grad of a tensor that is not a leaf
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_opcheck(device: str) -> None:
    x, size, weight, bias, eps, *_ = layer_norm_arguments(device)
    torch.library.opcheck(OPS.row_norm.default, (x, size, weight, bias, eps, True, None))
    torch.library.opcheck(OPS.row_norm.default, (x, size, None, None, eps, False, torch.bfloat16))
    with torch.no_grad():
        y, statistics = OPS.row_norm(x, size, weight, bias, eps, True, None)
        detached = [t.detach() for t in (x, weight, bias)]
    for needs in ([True, True, True], [False, True, False]):
        arguments = (y, detached[0], size, *detached[1:], statistics, needs)
        torch.library.opcheck(OPS.row_norm_backward.default, arguments)
    state = torch.tensor([3, 8], device=device)
    torch.library.opcheck(OPS.dropout.default, (x, 0.4, None, False, False, None, 3, 8))
    torch.library.opcheck(OPS.dropout.default, (x, 0.4, None, False, False, state, 0, 0))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.gpu)])
def test_compiles_whole_and_agrees_with_eager(backend: str, device: str) -> None:
    x, _, weight, bias, *_ = layer_norm_arguments(device)

    def block(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        y = lightning_kernels.layer_norm(x, (24,), weight, bias).exp()
        return y, lightning_kernels.dropout(y, 0.5)

    compiled = torch.compile(block, fullgraph=True, backend=backend)
    y, dropped = compiled(x, weight, bias)
    mask = (dropped.detach() != 0) / 0.5
    torch.testing.assert_close(dropped, y * mask)
    expected, _ = block(x, weight, bias)
    torch.testing.assert_close(y, expected)
    grads = torch.autograd.grad(dropped.square().sum(), (x, weight, bias))
    right = torch.autograd.grad((expected * mask).square().sum(), (x, weight, bias))
    for grad, other in zip(grads, right, strict=True):
        torch.testing.assert_close(grad, other)
    again = compiled(x, weight, bias)[1]
    assert not torch.equal(again == 0, dropped == 0)


def test_inplace_dropout_compiles(device: str) -> None:
    def block(x: Tensor) -> Tensor:
        y = x * 2
        lightning_kernels.dropout(y, 0.5, inplace=True)
        return y

    x = torch.rand(300, device=device) + 1
    y = torch.compile(block, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(y, x * 4 * (y != 0))
    assert 0 < (y == 0).sum().item() < 300


def test_fake_tensors_go_through(device: str) -> None:
    with FakeTensorMode():
        x, _, weight, bias, *_ = layer_norm_arguments(device, torch.bfloat16)
        y = lightning_kernels.dropout(lightning_kernels.layer_norm(x, (24,), weight, bias), 0.5)
        grads = torch.autograd.grad(y.sum(), (x, weight, bias)) if device == "cpu" else ()
    assert (y.shape, y.dtype, y.device.type) == (x.shape, torch.bfloat16, device)
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float32, torch.float32][: len(grads)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_kernels_touch_only_their_tensors(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, device: str
) -> None:
    def results() -> list[Tensor]:
        torch.manual_seed(1)
        x, _, weight, bias, *_ = layer_norm_arguments(device, dtype)
        y = lightning_kernels.dropout(lightning_kernels.layer_norm(x, (24,), weight, bias), 0.5)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), (x, weight, bias))]

    expected = results()
    guard_launches(monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(results(), expected, strict=True))
