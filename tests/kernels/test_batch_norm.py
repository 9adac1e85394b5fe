"""``lightning_kernels.batch_norm`` on whichever route this run has."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_kernels import batch_norm
from tests.kernels.batch_norms import ACTIVATIONS, LAST, LAST_3D, both, check, make, running
from tests.kernels.reference import assert_as_right_as_torch, run

SHAPES: list[tuple[tuple[int, ...], torch.memory_format | None]] = [
    ((2, 1), None),
    ((127, 3), None),
    ((9, 136), None),
    ((4, 6, 5), None),
    ((2, 3, 4097), None),
    ((3, 5, 7, 9), None),
    ((40, 3, 14, 14), None),  # planes smaller than a tile, in more than one
    ((3, 5, 7, 9), LAST),
    ((5, 72, 3, 1), LAST),
    ((1, 1, 3, 3), LAST),
    ((2, 3, 3, 4, 5), None),
    ((2, 3, 3, 4, 5), LAST_3D),
    ((2, 3, 2, 2, 2, 2), None),
]


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("shape", "layout", "training"),
    [*((*case, True) for case in SHAPES), *((*case, False) for case in SHAPES[::3])],
    ids=str,
)
def test_as_right_as_torch(
    shape: tuple[int, ...], layout: torch.memory_format | None, training: bool, device: str
) -> None:
    check(shape, layout, device, training=training, present=(True, True, False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(("layout", "activation"), [(None, "silu"), (LAST, "relu"), (LAST, None)])
def test_types(
    dtype: torch.dtype, layout: torch.memory_format | None, activation: str | None, device: str
) -> None:
    check((4, 11, 6, 5), layout, device, dtype, activation=activation)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize(("layout", "residual"), [(LAST, False), (None, True)], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(
    activation: str, residual: bool, layout: torch.memory_format | None, training: bool, device: str
) -> None:
    present = (True, True, residual)
    check((3, 9, 5, 7), layout, device, training=training, activation=activation, present=present)


@pytest.mark.parametrize(("training", "activation"), [(True, "gelu"), (False, None)])
@pytest.mark.parametrize("affine", [(True, False), (False, True), (False, False)], ids=str)
def test_weight_and_bias_are_optional(
    affine: tuple[bool, bool], activation: str | None, training: bool, device: str
) -> None:
    check((33, 5), None, device, present=(*affine, True), training=training, activation=activation)


@pytest.mark.parametrize(("name", "parameter"), [("leaky_relu", 0.3), ("elu", 1.7)])
def test_activation_parameters(name: str, parameter: float, device: str) -> None:
    def ours(x: Tensor, r: Tensor) -> Tensor:
        return batch_norm(
            x, None, None, training=True,
            activation=name, activation_parameter=parameter, residual=r,
        )  # fmt: skip

    def torchs(x: Tensor, r: Tensor) -> Tensor:
        z = F.batch_norm(x, None, None, training=True) + r
        return F.leaky_relu(z, parameter) if name == "leaky_relu" else F.elu(z, parameter)

    def draw() -> tuple[list[Tensor | None], Tensor]:
        x, _, _, residual = make((17, 5), device=device)
        return [x, residual], torch.randn_like(x)

    assert_as_right_as_torch(ours, torchs, draw)


@pytest.mark.kernel
@pytest.mark.parametrize(("shape", "layout"), [((64, 9), None), ((3, 4, 8, 9), None)], ids=str)
def test_a_large_mean_keeps_the_variance(
    shape: tuple[int, ...], layout: torch.memory_format | None, device: str
) -> None:
    check(shape, layout, device, offset=1e4, present=(True, True, False))


@pytest.mark.kernel  # torch on the CPU is less right
def test_the_shift_need_not_be_near(device: str) -> None:
    """Let the first tile's mean be far from that of all: the bound on what cancels must hold."""
    x = torch.randn(6000, 2, device=device) / 10
    x[:300] += 1000
    running_mean, running_var = torch.zeros(2, 2, device=device).unbind()
    batch_norm(x, running_mean, running_var, training=True, momentum=1.0)
    torch.testing.assert_close(running_var.double(), x.double().var(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(running_mean.double(), x.double().mean(0), rtol=1e-5, atol=0)


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("shape", "layout", "momentum"),
    [
        *((*case, 0.37) for case in SHAPES[1:9]),
        *(((3, 5, 7, 9), LAST, momentum) for momentum in (0.1, 0.0, 1.0)),
    ],
    ids=str,
)
def test_running_statistics(
    shape: tuple[int, ...], layout: torch.memory_format | None, momentum: float, device: str
) -> None:
    x = make(shape, layout, device=device)[0]
    mine, right = running(x), running(x, torch.float64)
    batch_norm(x, *mine, training=True, momentum=momentum)
    F.batch_norm(x.double(), *right, training=True, momentum=momentum)
    for a, b in zip(mine, right, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_types_and_strides_of_running_statistics(dtype: torch.dtype, device: str) -> None:
    x = make((16, 6), dtype=torch.bfloat16, device=device)[0]
    mean, var = torch.stack(running(x, dtype), dim=1).unbind(1)  # each a column
    right = mean.double(), var.double()
    batch_norm(x, mean, var, training=True)
    F.batch_norm(x.double(), *right, training=True)
    bound = torch.finfo(dtype).eps
    for a, b in zip((mean, var), right, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=bound, atol=2 * bound)


def test_parameters_in_the_inputs_own_type(device: str) -> None:
    x, weight, bias, residual = make((12, 5), dtype=torch.bfloat16, device=device)
    grad = torch.randn_like(x)
    narrow = [t.bfloat16() for t in (weight, bias)]
    mine = run(both(activation="relu")[0], (x, *narrow, residual), grad)
    wide = [t.double() for t in (x, *narrow, residual)]
    right = run(both(activation="relu")[1], wide, grad.double())
    for a, b in zip(mine, right, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.double() - b).norm() <= 2**-8 * b.norm()


@pytest.mark.kernel  # torch leaves rounding errors there
def test_a_constant_channel_becomes_the_bias(device: str) -> None:
    for shape in ((77, 5), (3, 5, 11, 7)):
        _, weight, bias, _ = make(shape, device=device)
        x = torch.full(shape, 7.1, device=device)
        y, *grads = run(both()[0], (x, weight, bias), torch.randn(shape, device=device))
        assert torch.equal(y, bias.reshape(-1, *[1] * (len(shape) - 2)).expand(shape))
        assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("layout", [None, LAST], ids=str)
@pytest.mark.parametrize("residual", [False, True])
def test_a_bad_channel_stays_that_channel(
    residual: bool, layout: torch.memory_format | None, poison: float, device: str
) -> None:
    tensors = make((3, 9, 5, 7), layout, device=device)[: 4 if residual else 3]
    grad = torch.randn(3, 9, 5, 7, device=device)
    clean = run(both(activation="relu")[0], tensors, grad)
    tensors[0][1, 4, 2, 2] = poison
    y, grad_x, *_ = run(both(activation="relu")[0], tensors, grad)
    others = [channel for channel in range(9) if channel != 4]
    assert y[:, 4].isnan().all()
    assert torch.equal(y[:, others], clean[0][:, others])
    assert torch.equal(grad_x[:, others], clean[1][:, others])


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3, 3), (2, 4, 0, 3)], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_an_empty_batch(shape: tuple[int, ...], training: bool, device: str) -> None:
    x, weight, bias, residual = make(shape, device=device)
    statistics, before = running(x), running(x)

    def ours(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
        return batch_norm(x, *statistics, w, b, training, activation="relu", residual=r)

    y, grad_x, grad_weight, grad_bias, grad_residual = run(ours, (x, weight, bias, residual), x)
    assert y.shape == grad_x.shape == grad_residual.shape == x.shape
    assert not grad_weight.any()
    assert not grad_bias.any()
    assert all(torch.equal(a, b) for a, b in zip(statistics, before, strict=True))


@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 1, 1)], ids=str)
def test_a_single_value_per_channel(shape: tuple[int, ...], device: str) -> None:
    x = make(shape, device=device)[0]
    statistics, before = running(x), running(x)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        batch_norm(x, *statistics, training=True)
    assert all(torch.equal(a, b) for a, b in zip(statistics, before, strict=True))
    batch_norm(x, *statistics)


@pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "bias"])
@pytest.mark.parametrize(
    "wrong", [torch.ones(5), torch.ones(2, 2), torch.ones(4, dtype=torch.float64)], ids=str
)
def test_one_bad_parameter_leaves_the_running_statistics(
    wrong: Tensor, name: str, device: str
) -> None:
    x = torch.randn(6, 4, device=device)
    given: dict[str, Any] = {"running_mean": torch.zeros(4), "running_var": torch.ones(4)}
    given |= {"weight": torch.ones(4), "bias": torch.zeros(4)}
    given = {key: t.to(device) for key, t in (given | {name: wrong}).items()}
    before = {key: t.clone() for key, t in given.items()}
    with pytest.raises(RuntimeError, match=f"batch_norm expects {name} of"):
        batch_norm(x, **given, training=True)
    assert all(torch.equal(t, before[key]) for key, t in given.items())


def _views(device: str) -> dict[str, Tensor]:
    x = torch.randn(4, 6, 5, 7, device=device)
    return {
        "transposed batch": x.transpose(0, 1)[:, :4],
        "sliced space": torch.randn(4, 6, 5, 9, device=device)[..., 1:8],
        "sliced channels, channels last": x.contiguous(memory_format=LAST)[:, 1:5],
        "transposed space": x.transpose(2, 3),
        "expanded": x[:, :, :1, :1].expand(4, 6, 5, 7),
        "one pixel": torch.randn(9, 6, 1, 1, device=device).contiguous(memory_format=LAST),
        "one channel": x[:, :1].contiguous(memory_format=LAST),
        "length last": torch.randn(4, 5, 6, device=device).transpose(1, 2),
        "matrix": torch.randn(6, 9, device=device).t(),
        "every second row": torch.randn(18, 5, device=device)[::2],
    }


@pytest.mark.parametrize("name", _views("cpu"))
def test_strides_do_not_matter(name: str, device: str) -> None:
    x = _views(device)[name]
    residual = torch.randn(x.shape, device=device)
    grad = torch.randn(1, device=device).expand(x.shape)
    _, weight, bias, _ = make((2, x.shape[1]), device=device)
    expected_strides = F.batch_norm(x, None, None, training=True).stride()
    for training in (True, False):
        ours = both(training, "relu")[0]
        plain = run(ours, (x.contiguous(), weight, bias, residual.contiguous()), grad)
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias, residual)]
        y = ours(*leaves)
        assert y.stride() == expected_strides
        for a, b in zip([y, *torch.autograd.grad(y, leaves, grad)], plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_more_than_65536_rows(device: str) -> None:
    check((65_537, 2), None, device, activation="relu")


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 65_537), (2, 65_537, 2)], ids=str)
def test_more_than_65536_channels(shape: tuple[int, ...], device: str) -> None:
    check(shape, None, device, activation="relu")


@pytest.mark.parametrize("size", [6, 0])  # a kernel's, and one that goes to ATen
def test_autocast_keeps_the_inputs_type(size: int, device: str) -> None:
    x, weight, bias, residual = make((size, 5), dtype=torch.bfloat16, device=device)
    with torch.autocast(device, torch.bfloat16):
        y = both(activation="gelu")[0](x, weight, bias, residual)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, both(activation="gelu")[0](x, weight, bias, residual))


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"running_mean": torch.ones(7)}, RuntimeError, r"running_mean.*\[8\].*\[7\]"),
    ({"running_var": torch.ones(9)}, RuntimeError, r"running_var.*\[8\].*\[9\]"),
    ({"weight": torch.ones(7)}, RuntimeError, r"weight.*\[8\].*\[7\]"),
    ({"bias": torch.ones(8, dtype=torch.float64)}, RuntimeError, "bias.*float32.*float64"),
    ({"bias": torch.ones(8, device="meta")}, RuntimeError, "bias on c.*meta"),
    ({"running_mean": torch.ones(8, requires_grad=True)}, RuntimeError, "gradient.*running_mean"),
    ({"running_mean": None, "training": False}, RuntimeError, "running_mean.*evaluation"),
    ({"running_mean": None, "running_var": None, "training": False}, RuntimeError, "evaluation"),
    ({"running_var": None}, ValueError, "both"),
    ({"eps": 0.0}, ValueError, "positive eps.*0.0"),
    ({"eps": -1.0, "training": False}, ValueError, "eps as a number of 0 or more.*-1.0"),
    ({"momentum": None}, TypeError, "momentum.*None"),
    ({"input": torch.ones(1, 8)}, ValueError, "more than 1 value"),
    ({"input": torch.ones(8)}, RuntimeError, r"\(N, C, \*\).*\[8\]"),
    ({"input": torch.ones(4, 8, dtype=torch.int32)}, RuntimeError, "floating.*int32"),
    ({"input": torch.ones(4, 8, dtype=torch.bool)}, RuntimeError, "floating.*bool"),
    ({"input": torch.ones(4, 8, dtype=torch.complex64)}, RuntimeError, "floating.*complex64"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=str)
def test_bad_arguments(
    arguments: dict[str, Any], error: type[Exception], message: str, device: str
) -> None:
    def on_device(value: object) -> object:
        movable = isinstance(value, Tensor) and value.device.type != "meta"
        if not movable:
            return value
        assert isinstance(value, Tensor)
        return value.detach().to(device).requires_grad_(value.requires_grad)

    valid: dict[str, Any] = {
        "input": torch.randn(4, 8),
        "running_mean": torch.zeros(8),
        "running_var": torch.ones(8),
    }
    call = {key: on_device(v) for key, v in (valid | {"training": True} | arguments).items()}
    with pytest.raises(error, match=message):
        batch_norm(**call)  # type: ignore[arg-type]
    with pytest.raises(error):  # and torch raises the same class
        F.batch_norm(call.pop("input"), **call)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"activation": "tanh"}, ValueError, "relu, relu6.*'tanh'"),
        ({"activation": "relu", "activation_parameter": 0.2}, ValueError, "0.2.*'relu'"),
        ({"activation_parameter": 0.2}, ValueError, "0.2.*None"),
        ({"residual": torch.ones(8)}, RuntimeError, r"residual.*\[4, 8\].*\[8\]"),
        ({"residual": torch.ones(4, 8).half()}, RuntimeError, "float32.*float16"),
    ],
    ids=str,
)
def test_bad_arguments_of_our_own(
    arguments: dict[str, Any], error: type[Exception], message: str, device: str
) -> None:
    moved: dict[str, Any] = {
        k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()
    }
    with pytest.raises(error, match=message):
        batch_norm(torch.randn(4, 8, device=device), None, None, training=True, **moved)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=str)
def test_more_than_two_to_the_31_elements(layout: torch.memory_format) -> None:
    shape = (2**13 + 3, 64, 64, 65)
    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16).to(memory_format=layout)
    x[-1] += 3  # what sums miss of the end shows
    residual = torch.ones_like(x).requires_grad_()
    x.requires_grad_()
    mean, var = torch.zeros(64, device="cuda"), torch.ones(64, device="cuda")
    y = batch_norm(x, mean, var, training=True, momentum=1.0, activation="relu", residual=residual)
    grad_x, grad_residual = torch.autograd.grad(y, (x, residual), torch.ones_like(y))
    with torch.no_grad():
        parts = [part.double().sum((0, 2, 3)) for part in x.split(256)]
        right_mean = torch.stack(parts).sum(0) / (x.numel() // 64)
        torch.testing.assert_close(mean.double(), right_mean, rtol=1e-4, atol=1e-6)
        tail = x[-3:].double()
        z = (tail - mean.double()[:, None, None]) / (var.double()[:, None, None] + 1e-5).sqrt() + 1
        torch.testing.assert_close(y[-3:].double(), z.relu(), rtol=0.01, atol=0.01)
        assert ((grad_residual[-3:] == 1) == (y[-3:] > 0)).float().mean() > 0.999
        assert grad_x[-3:].isfinite().all()
