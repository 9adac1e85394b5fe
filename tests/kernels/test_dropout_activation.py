"""``lightning_kernels.dropout_activation``, on whichever route this run has."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_kernels import dropout, dropout_activation
from tests.kernels.reference import assert_as_right_as_torch

ACTIVATIONS: dict[str | None, tuple[float | None, Callable[[Tensor], Tensor]]] = {
    None: (None, lambda z: z),
    "relu": (None, F.relu),
    "relu6": (None, F.relu6),
    "leaky_relu": (0.2, lambda z: F.leaky_relu(z, 0.2)),
    "elu": (0.7, lambda z: F.elu(z, 0.7)),
    "selu": (None, F.selu),
    "silu": (None, F.silu),
    "hardswish": (None, F.hardswish),
    "gelu": (None, F.gelu),
}


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {  # each from (6, 4, 10, 8)
    "contiguous": lambda x: x,
    "permuted": lambda x: x.transpose(0, 2),
    "columns": lambda x: x.transpose(1, 3),
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "sliced": lambda x: x[::2, :, 1:, ::2],
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
}


@pytest.mark.parametrize(
    ("dtype", "training", "with_bias"),
    [
        (torch.float32, True, True),
        (torch.float32, False, False),
        (torch.bfloat16, True, False),
        (torch.float16, True, True),
    ],
    ids=str,
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_as_right_as_torch(
    activation: str | None, dtype: torch.dtype, training: bool, with_bias: bool, device: str
) -> None:
    parameter, function = ACTIVATIONS[activation]
    masks: list[Tensor] = []

    def ours(x: Tensor, bias: Tensor | None = None) -> Tensor:
        torch.manual_seed(5)
        return dropout_activation(
            x, activation, 0.3, training, activation_parameter=parameter, bias=bias
        )

    def torchs(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return function(x if bias is None else x + bias) * masks[-1].to(x.dtype) / 0.7

    def draw() -> tuple[list[Tensor | None], Tensor]:
        tensors: list[Tensor | None] = [torch.randn(5, 7, 12, device=device).to(dtype) * 2]
        if with_bias:
            tensors.append(torch.randn(12, device=device).to(dtype))
        grad = torch.randn(5, 7, 12, device=device).to(dtype)
        torch.manual_seed(5)
        ones = torch.ones(5, 7, 12, device=device, dtype=dtype)
        masks.append((dropout(ones, 0.3) != 0) if training else ones * 0.7)
        return tensors, grad

    if training:
        assert_as_right_as_torch(ours, torchs, draw, activation)
    else:
        masks.append(torch.ones((), device=device))
        assert_as_right_as_torch(
            ours,
            lambda x, bias=None: function(x if bias is None else x + bias),
            draw,
            activation,
        )


@pytest.mark.parametrize(("with_bias", "as_tensor"), [(False, True), (True, False)])
@pytest.mark.parametrize("shape", [(1,), (3,), (1, 1), (3, 127), (127, 3), (2, 4097), (130, 64)])
def test_sizes(as_tensor: bool, shape: tuple[int, ...], with_bias: bool, device: str) -> None:
    x = torch.randn(shape, device=device, requires_grad=True)
    bias = torch.randn(shape[-1], device=device, requires_grad=True) if with_bias else None
    p = torch.tensor(0.3, device=device) if as_tensor else 0.3
    torch.manual_seed(1)
    y = dropout_activation(x, "silu", p, bias=bias)
    torch.manual_seed(1)
    mask = dropout(torch.ones_like(x), p)
    expected = F.silu(x if bias is None else x + bias) * mask
    torch.testing.assert_close(y, expected)
    inputs = [x] if bias is None else [x, bias]
    grad = torch.randn_like(y)
    for mine, right in zip(
        torch.autograd.grad(y, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        strict=True,
    ):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_and_the_mask_of_dropout(layout: str, with_bias: bool, device: str) -> None:
    x = LAYOUTS[layout](torch.rand(6, 4, 10, 8, device=device) + 1).requires_grad_()
    bias = torch.rand(2 * x.shape[-1], device=device)[::2].requires_grad_() if with_bias else None
    torch.manual_seed(2)
    y = dropout_activation(x, "gelu", 0.4, bias=bias)
    mask = (y.detach() != 0) / 0.6
    torch.manual_seed(2)
    same = torch.empty_like(y).fill_(1)  # at the same places in memory
    assert torch.equal(dropout(same, 0.4) != 0, mask != 0)
    if layout == "permuted" or not with_bias:
        assert y.stride() == torch.empty_like(x).stride()
    expected = F.gelu(x if bias is None else x + bias) * mask
    torch.testing.assert_close(y, expected)
    inputs = [x] if bias is None else [x, bias]
    for grad in (torch.rand_like(y), torch.rand(y.shape[::-1], device=device).permute(3, 2, 1, 0)):
        for mine, right in zip(
            torch.autograd.grad(y, inputs, grad, retain_graph=True),
            torch.autograd.grad(expected, inputs, grad, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0]
    )


@pytest.mark.parametrize("p", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("columns", [64, 67])  # rows that begin at a group of four, or anywhere
def test_the_rate_and_no_correlation(columns: int, p: float, device: str) -> None:
    x, bias = torch.ones(600, columns, device=device), torch.zeros(columns, device=device)
    calls = torch.stack(
        [(dropout_activation(x, "relu", p, bias=bias) != 0).double() for _ in range(2)]
    )
    calls = (calls - (1 - p)) / math.sqrt(p * (1 - p))
    flat = calls[0].flatten()
    pairs = {"rows": calls[0, 1:] * calls[0, :-1], "calls": calls[0] * calls[1], "rate": flat}
    pairs |= {f"lag {lag}": flat[lag:] * flat[:-lag] for lag in (1, 2, 3, 4, 256)}
    pairs |= {f"place {i} in a group": flat[i::4] for i in range(4)}
    for name, products in pairs.items():
        assert abs(products.mean().item()) < 5 / math.sqrt(products.numel()), name


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_only_the_gradient_that_is_needed(needs: tuple[bool, bool], device: str) -> None:
    x = torch.randn(40, 12, device=device, requires_grad=needs[0])
    bias = torch.randn(12, device=device, requires_grad=needs[1])
    y = dropout_activation(x, "elu", 0.3, bias=bias)
    (wanted,) = (t for t in (x, bias) if t.requires_grad)
    expected = F.elu(x + bias) * (y.detach() != 0) / 0.7
    grad = torch.randn_like(y)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, wanted, grad)[0] for value in (y, expected)),
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_float32_bias(dtype: torch.dtype, device: str) -> None:
    x = torch.randn(9, 20, device=device).to(dtype).requires_grad_()
    bias = torch.randn(20, device=device, requires_grad=True)
    y = dropout_activation(x, "gelu", 0.3, bias=bias)
    assert y.dtype == dtype
    grads = torch.autograd.grad(y, (x, bias), torch.ones_like(y))
    assert [g.dtype for g in grads] == [dtype, torch.float32]
    exact = F.gelu(x.double() + bias.double()) * (y.detach() != 0) / 0.7
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), exact, rtol=4 * eps, atol=4 * eps)
    rights = torch.autograd.grad(exact, (x, bias), torch.ones_like(exact))
    torch.testing.assert_close(grads[0], rights[0], rtol=4 * eps, atol=4 * eps)
    summed = 9 * 4 * max(eps, torch.finfo(torch.float32).eps)
    torch.testing.assert_close(grads[1], rights[1], rtol=summed, atol=summed)


@pytest.mark.parametrize("p", [1.0, torch.tensor(1.0)], ids=["number", "tensor"])
def test_all_is_dropped_at_one(p: Any, device: str) -> None:
    p = p.to(device) if isinstance(p, Tensor) else p
    x, bias = torch.randn(6, 5, device=device), torch.randn(5, device=device)
    x.requires_grad_()
    bias.requires_grad_()
    y = dropout_activation(x, "gelu", p, bias=bias)
    assert torch.equal(y, torch.zeros_like(x))
    for grad in torch.autograd.grad(y.sum(), (x, bias)):
        assert torch.equal(grad, torch.zeros_like(grad))


def test_nothing_is_dropped_at_zero_and_in_evaluation(device: str) -> None:
    x, bias = torch.randn(6, 5, device=device), torch.randn(5, device=device)
    before = torch.random.get_rng_state()
    for p, training in ((0.0, True), (0.5, False), (torch.tensor(0.5, device=device), False)):
        y = dropout_activation(x, "relu", p, training, bias=bias)
        torch.testing.assert_close(y, F.relu(x + bias))
    assert torch.equal(torch.random.get_rng_state(), before)
    y = dropout_activation(x, "relu", torch.zeros((), device=device), bias=bias)
    torch.testing.assert_close(y, F.relu(x + bias))


def test_the_input_is_left_alone(device: str) -> None:
    x = torch.randn(6, 5, device=device)
    original = x.clone()
    for activation in ACTIVATIONS:
        dropout_activation(x, activation, 0.5)
        dropout_activation(x, activation, 0.5, False)
    assert torch.equal(x, original)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_empty_tensors(shape: tuple[int, ...], device: str) -> None:
    x = torch.empty(shape, device=device, requires_grad=True)
    bias = torch.ones(shape[-1], device=device, requires_grad=True)
    for p in (0.5, torch.tensor(0.5, device=device)):
        y = dropout_activation(x, "gelu", p, bias=bias)
        assert y.shape == shape
        grads = torch.autograd.grad(y.sum(), (x, bias))
        assert torch.equal(grads[1], torch.zeros_like(bias))


def test_nan_and_infinity_as_in_torch(device: str) -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf], device=device).repeat(40, 1)
    bias = torch.zeros(3, device=device)
    for activation in ("relu", "leaky_relu", "elu", "selu"):
        y = dropout_activation(x, activation, 0.5, bias=bias)
        assert y[:, 0].isnan().all()  # nan * 0 and inf * 0 are nan
        assert torch.equal(y[:, 1].isnan(), y[:, 1] != math.inf)
        assert 0 < y[:, 1].isnan().sum() < 40
        if activation == "relu":
            assert torch.equal(y[:, 2], torch.zeros(40, device=device))


def test_the_seed_and_nothing_else_decides(device: str) -> None:
    x = torch.rand(90, 50, device=device) + 1
    torch.manual_seed(3)
    first = dropout_activation(x, "silu", 0.5)
    assert not torch.equal(dropout_activation(x, "silu", 0.5), first)
    torch.manual_seed(3)
    assert torch.equal(dropout_activation(x, "silu", 0.5), first)


@pytest.mark.parametrize(("training", "with_bias"), [(True, True), (False, False)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_second_derivatives(
    activation: str | None, training: bool, with_bias: bool, device: str
) -> None:
    parameter, function = ACTIVATIONS[activation]
    x = torch.randn(7, 12, device=device, requires_grad=True)
    bias = torch.randn(12, device=device, requires_grad=True) if with_bias else None
    torch.manual_seed(7)
    y = dropout_activation(x, activation, 0.5, training, activation_parameter=parameter, bias=bias)
    torch.manual_seed(7)
    mask = dropout(torch.ones_like(x), 0.5, training)
    inputs = [x] if bias is None else [x, bias]
    results = []
    for value in (y, function(x if bias is None else x + bias) * mask):
        first = torch.autograd.grad(value.pow(3).sum(), inputs, create_graph=True)
        results.append(
            torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), inputs)
        )
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5 * right.abs().max().item())


def test_autocast_leaves_the_type_alone(device: str) -> None:
    x = torch.randn(4, 6, device=device, dtype=torch.bfloat16)
    bias = torch.randn(6, device=device)
    with torch.autocast(device, torch.bfloat16):
        assert dropout_activation(x, "gelu", 0.5, bias=bias).dtype == torch.bfloat16


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan, math.inf])
@pytest.mark.parametrize("training", [True, False])
def test_p_outside_the_unit_interval(training: bool, p: float, device: str) -> None:
    with pytest.raises(ValueError, match=rf"between 0 and 1, but got {p}"):
        dropout_activation(torch.ones(2, device=device), "relu", p, training)


def test_bad_arguments(device: str) -> None:
    x = torch.ones(2, 3, device=device)
    with pytest.raises(ValueError, match=r"activation must be None or one of .* but got 'swish'"):
        dropout_activation(x, "swish")
    with pytest.raises(ValueError, match=r"slope of leaky_relu.*got 0.1 with activation 'relu'"):
        dropout_activation(x, "relu", activation_parameter=0.1)
    for bias in (x[:, 0], x, x[0].to("meta")):
        with pytest.raises(RuntimeError, match=r"expects bias of shape \[3\] .* but got \["):
            dropout_activation(x, "relu", bias=bias)
    with pytest.raises(RuntimeError, match=r"bias of shape \[\] .*but got \[1\]"):
        dropout_activation(x[0, 0], "relu", bias=x[0, :1])
    for bias in (x[0].half(), x[0].double()):
        with pytest.raises(RuntimeError, match=rf"expects bias of torch\.float32 .*{bias.dtype}"):
            dropout_activation(x, "relu", bias=bias)
    for training in (True, False):
        with pytest.raises(RuntimeError, match=r"floating-point input, but got torch\.int64"):
            dropout_activation(x.long(), "relu", 0.5, training)
    with pytest.raises(RuntimeError, match="dropout_activation expects p as a number, or"):
        dropout_activation(x, "relu", torch.ones(2, device=device))
