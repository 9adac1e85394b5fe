"""What ``torch.library`` and compilers see of batch norm, and what its kernels touch in memory."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import lightning_kernels
from tests.kernels.reference import guard_launches

pytestmark = pytest.mark.kernel

OPS = torch.ops.lightning_kernels
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def tensors(device: str, layout: torch.memory_format, dtype: torch.dtype) -> list[Tensor]:
    """Return x, residual, weight, bias, and a running mean and variance."""
    x, residual = (
        torch.randn(3, 11, 3, 5, device=device, dtype=dtype).to(memory_format=layout)
        for _ in range(2)
    )
    weight, bias = (torch.randn(11, device=device).requires_grad_() for _ in range(2))
    statistics = torch.zeros(11, device=device), torch.ones(11, device=device)
    return [x.requires_grad_(), residual.requires_grad_(), weight, bias, *statistics]


# torch's own check reads .grad of a tensor that is not a leaf
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize(
    ("training", "activation", "keep_signs", "layout"),
    [
        (True, "relu", True, LAYOUTS[1]),
        (False, "elu", False, LAYOUTS[0]),
    ],
)
def test_opcheck(
    training: bool,
    activation: str | None,
    keep_signs: bool,
    layout: torch.memory_format,
    device: str,
) -> None:
    x, residual, weight, bias, *statistics = tensors(device, layout, torch.float32)
    given = [None, None] if training else statistics
    numbers = (1e-5, activation, 0.1 if activation == "leaky_relu" else 1.0)
    arguments = (x, residual, weight, bias, *given, *numbers, keep_signs, None)
    torch.library.opcheck(OPS.batch_norm.default, arguments)
    with torch.no_grad():
        y, measured, signs = OPS.batch_norm(*arguments)
    detached = [None if t is None else t.detach() for t in (x, residual, weight, bias, *given)]
    for needs in ([True] * 4, [False, True, False, False]):
        torch.library.opcheck(
            OPS.batch_norm_backward.default,
            (y, *detached, measured, signs, *numbers, None, needs),
        )


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    ("activation", "with_residual", "training", "layout"),
    [
        (None, False, True, LAYOUTS[1]),
        ("relu", True, True, LAYOUTS[0]),
        ("relu", True, True, LAYOUTS[1]),
        ("silu", True, False, LAYOUTS[0]),
    ],
)
def test_compiles_whole_and_agrees_with_eager(
    activation: str | None, with_residual: bool, training: bool, layout: torch.memory_format,
    backend: str, device: str,
) -> None:  # fmt: skip
    def block(x: Tensor, r: Tensor, w: Tensor, b: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        y = lightning_kernels.batch_norm(
            x, mean, var, w, b, training,
            activation=activation, residual=r if with_residual else None,
        )  # fmt: skip
        return y * 2 + r

    torch.compiler.reset()  # each case would count as a recompilation of the last
    results = []
    for function in (torch.compile(block, fullgraph=True, backend=backend), block):
        torch.manual_seed(0)
        arguments = tensors(device, layout, torch.float32)
        y = function(*arguments)
        grads = torch.autograd.grad(y.square().sum(), arguments[:4])
        results.append([y, *grads, *arguments[4:]])
        assert y.stride() == arguments[0].stride()
    for compiled, eager in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)
    assert training is bool(results[0][-2].any())  # the running mean moved


def test_fake_tensors_go_through(device: str) -> None:
    with FakeTensorMode():
        arguments = tensors(device, torch.channels_last, torch.bfloat16)
        x, residual, weight, bias, mean, var = arguments
        y = lightning_kernels.batch_norm(
            x, mean, var, weight, bias, True, activation="relu", residual=residual
        )
        inputs = (x, residual, weight, bias)
        grads = torch.autograd.grad(y.sum(), inputs) if device == "cpu" else ()
    assert (y.shape, y.dtype, y.stride()) == (x.shape, torch.bfloat16, x.stride())
    assert all(
        (g.shape, g.dtype) == (t.shape, t.dtype) for g, t in zip(grads, inputs, strict=False)
    )


@pytest.mark.parametrize(
    ("layout", "dtype"), [(LAYOUTS[0], torch.float16), (LAYOUTS[1], torch.float32)], ids=str
)
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_kernels_touch_only_their_tensors(
    activation: str | None, layout: torch.memory_format, dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch, device: str,
) -> None:  # fmt: skip
    def results() -> list[Tensor]:
        torch.manual_seed(1)
        x, residual, weight, bias, mean, var = tensors(device, layout, dtype)
        outputs: list[Any] = []
        for training in (True, False):
            y = lightning_kernels.batch_norm(
                x, mean, var, weight, bias, training, activation=activation, residual=residual
            )
            outputs += [y, *torch.autograd.grad(y.sum(), (x, residual, weight, bias))]
        return [*outputs, mean, var]

    expected = results()
    guard_launches(monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(results(), expected, strict=True))
