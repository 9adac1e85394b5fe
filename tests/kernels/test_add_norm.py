"""``add_dropout_layer_norm`` and ``add_dropout_rms_norm`` on the route that this run has."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_kernels import add_dropout_layer_norm, add_dropout_rms_norm
from tests.kernels.reference import assert_as_right_as_torch

FUNCTIONS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "layer_norm": add_dropout_layer_norm,
    "rms_norm": add_dropout_rms_norm,
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((2, 9, 127), (127,)),
    ((3, 4, 5, 6), (5, 6)),
    ((5, 128), (128,)),
    ((24,), (24,)),
]
each_norm = pytest.mark.parametrize("norm", FUNCTIONS)
OUTPUTS = {"both": (True, True), "the norm": (True, False), "the sum": (False, True)}


def norm_of(norm: str, z: Tensor, shape: Sequence[int], w: Tensor | None, b: Tensor | None) -> Any:
    w, b = (None if t is None else t.to(z.dtype) for t in (w, b))
    if norm == "layer_norm":
        return F.layer_norm(z, [*shape], w, b, 1e-5)
    return F.rms_norm(z, [*shape], w, 1e-5)


def call(
    norm: str, x: Tensor, residual: Tensor | None, shape: Sequence[int], w: Tensor | None,
    b: Tensor | None, **options: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    parameters = (w, b) if norm == "layer_norm" else (w,)
    return FUNCTIONS[norm](x, residual, shape, *parameters, eps=1e-5, **options)


def draw(
    shape: Sequence[int], normalized: Sequence[int], device: str, norm: str = "layer_norm"
) -> tuple[Tensor, ...]:
    """Return x, at least 1 in size, residual, layer scale, at least 1 too, weight and bias."""
    x, residual = torch.randn(2, *shape, device=device)
    scale, weight, bias = torch.randn(3, *normalized, device=device)
    x, scale = (t + t.sign() for t in (x, scale))
    tensors = (
        (x, residual, scale, weight) if norm == "rms_norm" else (x, residual, scale, weight, bias)
    )
    return tuple(t.requires_grad_() for t in tensors)


def factor_of(z: Tensor, x: Tensor, residual: Tensor, scale: Tensor, survivor: float) -> Tensor:
    """Return what each element of the branch was multiplied by, after checking that it is one."""
    factor = ((z - residual) / (scale * x)).detach()
    kept = factor > survivor / 2
    torch.testing.assert_close(factor, kept * survivor, rtol=1e-3, atol=1e-3)
    return kept * survivor


def both_as_one(y: Tensor, z: Tensor) -> Tensor:
    return torch.stack([y, z.to(y.dtype)])


@pytest.mark.parametrize(
    ("shape", "normalized", "dtype"),
    [
        *((*case, torch.float32) for case in SHAPES),
        *((*SHAPES[1], dtype) for dtype in DTYPES[1:]),
    ],
    ids=str,
)
@each_norm
def test_as_right_as_torch(
    norm: str, shape: tuple[int, ...], normalized: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    """Nothing dropped: torch's functions one after the other are at most as right."""
    wide = torch.promote_types(dtype, torch.float32)

    def inputs() -> tuple[list[Tensor | None], Tensor]:
        x, residual = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
        parameters = torch.randn(3, *normalized, device=device, dtype=wide).unbind()
        return [x, residual, *parameters[: 3 if norm == "layer_norm" else 2]], torch.randn(
            2, *shape, device=device
        ).to(dtype)

    def ours(x: Tensor, residual: Tensor, scale: Tensor, w: Tensor, *b: Tensor) -> Tensor:
        bias = b[0] if b else None
        return both_as_one(*call(norm, x, residual, normalized, w, bias, layer_scale=scale))

    def torchs(x: Tensor, residual: Tensor, scale: Tensor, w: Tensor, *b: Tensor) -> Tensor:
        z = torch.addcmul(residual, x, scale.to(x.dtype))
        return both_as_one(norm_of(norm, z, normalized, w, b[0] if b else None), z)

    assert_as_right_as_torch(ours, torchs, inputs)


@pytest.mark.parametrize(
    ("size", "used"),
    [*((size, "both") for size in (3, 6, 127, 128)), (6, "the norm"), (127, "the sum")],
)
@each_norm
def test_is_its_composition_under_the_same_mask(
    norm: str, size: int, used: str, device: str
) -> None:
    """Result and all gradients, into the norm, the sum or both."""
    x, residual, scale, *parameters = tensors = draw((4, 5, size), (size,), device, norm)
    weight, bias = (*parameters, None)[:2]
    y, z = call(
        norm, x, residual, (size,), weight, bias, p=0.4, drop_path=0.5, layer_scale=scale
    )  # fmt: skip
    survivor = 1 / (0.6 * 0.5)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    factor = factor_of(z, x, residual, scale, survivor).double()
    right_z = wide[1] + wide[2] * wide[0] * factor
    right_y = norm_of(norm, right_z, (size,), *(*wide[3:], None)[:2])
    outputs = [
        (a, b)
        for (a, b), use in zip(((y, right_y), (z, right_z)), OUTPUTS[used], strict=True)
        if use
    ]
    grads = [torch.randn_like(a) for a, _ in outputs]
    mine = torch.autograd.grad([a for a, _ in outputs], tensors, grads, allow_unused=True)
    right = torch.autograd.grad(
        [b for _, b in outputs], wide, [g.double() for g in grads], allow_unused=True
    )
    torch.testing.assert_close(y.double(), right_y, rtol=1e-4, atol=1e-4)
    for a, b in zip(mine, right, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


@pytest.mark.parametrize("with_scale", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_what_is_left_out(with_residual: bool, with_scale: bool, device: str) -> None:
    """Nothing dropped, without affine parameters: each subset of gradients is right."""
    x, residual, scale, *_ = draw((3, 4, 12), (12,), device)
    branch = x * scale if with_scale else x
    right_z = branch + residual if with_residual else branch
    right_y = F.layer_norm(right_z, [12])
    inputs = [x, *([residual] if with_residual else []), *([scale] if with_scale else [])]
    y, z = add_dropout_layer_norm(
        x, residual if with_residual else None, (12,), layer_scale=scale if with_scale else None
    )
    grads = torch.randn_like(y), torch.randn_like(z)
    for kept in ([0, 1], [0], [1]):
        for wanted in (inputs, inputs[:1], inputs[-1:]):
            results = [
                torch.autograd.grad(
                    [outputs[i] for i in kept], wanted, [grads[i] for i in kept], retain_graph=True
                )
                for outputs in ((y, z), (right_y, right_z))
            ]
            torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    if not with_residual and not with_scale:
        assert z is x


@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_float32_residual(half: torch.dtype, p: float, device: str) -> None:
    x, residual, scale, weight, bias = draw((4, 5, 32), (32,), device)
    low = x.detach().to(half).requires_grad_()
    narrow = weight.detach().to(half)
    y, z = add_dropout_layer_norm(low, residual, (32,), narrow, bias, p=p, layer_scale=scale)
    assert (y.dtype, z.dtype) == (half, torch.float32)
    factor = factor_of(z, low, residual, scale, 1 / (1 - p))  # of 1/2: exact in 16 bits
    torch.testing.assert_close(z, residual + scale * low * factor)
    right = F.layer_norm(z, [32], narrow.float(), bias)
    torch.testing.assert_close(y, right.to(half))
    grads = torch.autograd.grad((y, z), (low, residual), (torch.randn_like(y), torch.randn_like(z)))
    assert [g.dtype for g in grads] == [half, torch.float32]
    torch.testing.assert_close(grads[0], (grads[1] * scale * factor).to(half), rtol=1e-2, atol=1e-6)


@pytest.mark.kernel  # torch's mask goes by memory
@each_norm
def test_strided_inputs(norm: str, device: str) -> None:
    x, residual = torch.randn(2, 6, 4, 5, 16, device=device)[..., ::2].transpose(1, 2)
    scale, grads = (
        torch.randn(16, device=device)[::2],
        torch.randn(2, 8, *x.shape[:3], device=device),
    )
    order = (1, 2, 3, 0)
    results = []
    for change in (Tensor.detach, Tensor.contiguous):
        torch.manual_seed(3)
        leaves = a, b, w = [change(t).requires_grad_() for t in (x, residual, scale)]
        rates: Any = {"p": 0.3, "drop_path": 0.4}
        y, z = call(norm, a, b, (8,), w, None, layer_scale=w, **rates)
        strided = [change(g.permute(order)) for g in grads]
        results.append([y, z, *torch.autograd.grad((y, z), leaves, strided)])
    for mine, right in zip(*results, strict=True):
        assert torch.equal(mine, right)


@pytest.mark.parametrize("number", [True, False])
def test_the_law_of_the_masks(number: bool, device: str) -> None:
    """Rates, and independence of samples, rows, columns and of the two masks."""
    x = torch.ones(600, 4, 30, device=device)

    def rate(value: float) -> Any:
        return value if number else torch.tensor(value, device=device)

    _, z = add_dropout_layer_norm(x, x * 0, (30,), p=rate(0.2), drop_path=rate(0.4))
    assert set(z.unique().tolist()) <= {0.0, z.max().item()}
    assert z.max().item() == pytest.approx(1 / (0.8 * 0.6))
    kept = (z > 0).double()
    paths = kept.flatten(1).amax(1)
    assert paths.mean().item() == pytest.approx(0.6, abs=5 * math.sqrt(0.24 / 600))
    assert (paths[1:] * paths[:-1]).mean().item() == pytest.approx(0.36, abs=0.1)
    inside = kept[paths > 0]
    assert inside.mean().item() == pytest.approx(0.8, abs=5 * math.sqrt(0.16 / inside.numel()))
    for dim in (0, 1, 2):
        pairs = inside.narrow(dim, 1, inside.shape[dim] - 1) * inside.narrow(
            dim, 0, inside.shape[dim] - 1
        )
        assert pairs.mean().item() == pytest.approx(0.64, abs=5 * math.sqrt(0.6 / pairs.numel()))
    again = add_dropout_layer_norm(x, x * 0, (30,), p=rate(0.2), drop_path=rate(0.4))[1]
    assert not torch.equal(again, z)


@pytest.mark.plain  # the kernels draw other masks
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_the_cpu_the_masks_are_those_of_torch(dtype: torch.dtype) -> None:
    x = torch.randn(5, 7, 128).to(dtype)
    # In the second tensor the elements have another order in memory than by index.
    inputs = [x, x.transpose(0, 1).contiguous().transpose(0, 1)]
    nothing = torch.zeros_like(x)
    torch.manual_seed(4)
    ours = [add_dropout_layer_norm(x, nothing, (128,), p=p)[1] for p in (0.1, 0.7) for x in inputs]
    after = torch.get_rng_state()
    torch.manual_seed(4)
    dropped = [F.dropout(x, p) for p in (0.1, 0.7) for x in inputs]
    assert torch.equal(torch.get_rng_state(), after)
    for z, branch in zip(ours, dropped, strict=True):
        assert torch.equal(z == 0, branch == 0)
        torch.testing.assert_close(z, branch)


def test_all_is_dropped_at_one(device: str) -> None:
    x, residual, scale, weight, bias = draw((5, 12), (12,), device)
    for rates in ({"p": 1.0}, {"drop_path": 1.0}, {"drop_path": torch.ones((), device=device)}):
        y, z = add_dropout_layer_norm(x, residual, (12,), weight, bias, layer_scale=scale, **rates)
        assert torch.equal(z, residual)
        torch.testing.assert_close(y, F.layer_norm(residual, [12], weight, bias, 1e-5))
        for grad in torch.autograd.grad(y.sum() + z.sum(), (x, scale)):
            assert torch.equal(grad, torch.zeros_like(grad))


def test_no_random_numbers_where_nothing_is_dropped(device: str) -> None:
    x, residual = torch.randn(2, 5, 12, device=device)
    generator = torch.cuda if device == "cuda" else torch
    before = generator.get_rng_state()
    for options in ({}, {"p": 0.5, "drop_path": 0.5, "training": False}):
        _, z = add_dropout_layer_norm(x, residual, (12,), **options)  # type: ignore[arg-type]
        assert torch.equal(z, x + residual)
    assert torch.equal(generator.get_rng_state(), before)
    add_dropout_layer_norm(x, residual, (12,), drop_path=0.5)
    assert not torch.equal(generator.get_rng_state(), before)


@pytest.mark.parametrize("reentrant", [False, True])
@each_norm
def test_activation_checkpointing_replays_the_masks(
    norm: str, reentrant: bool, device: str
) -> None:
    x, residual, scale, weight, *_ = draw((6, 3, 20), (20,), device)

    def block(x: Tensor, residual: Tensor) -> Tensor:
        y, z = call(norm, x, residual, (20,), weight, None, p=0.4, drop_path=0.4, layer_scale=scale)
        return y.square() + z

    inputs = (x, residual, scale, weight)
    torch.manual_seed(4)
    expected = torch.autograd.grad(block(x, residual).square().sum(), inputs)
    torch.manual_seed(4)
    checkpoint(block, x, residual, use_reentrant=reentrant).square().sum().backward()
    for tensor, right in zip(inputs, expected, strict=True):
        assert tensor.grad is not None
        assert torch.equal(tensor.grad, right)


@pytest.mark.parametrize("used", OUTPUTS)
@each_norm
def test_second_derivatives(norm: str, used: str, device: str) -> None:
    x, residual, scale, *parameters = tensors = draw((5, 2, 7), (7,), device, norm)
    torch.manual_seed(5)
    y, z = call(
        norm, x, residual, (7,), *(*parameters, None)[:2], p=0.3, drop_path=0.3, layer_scale=scale
    )
    wide = [t.detach().double().requires_grad_() for t in tensors]
    factor = factor_of(z, x, residual, scale, 1 / 0.49).double()
    right_z = wide[1] + wide[2] * wide[0] * factor
    right_y = norm_of(norm, right_z, (7,), *(*wide[3:], None)[:2])
    results = []
    for a, b, inputs in ((y, z, tensors), (right_y, right_z, wide)):
        loss = OUTPUTS[used][0] * a.pow(3).sum() + OUTPUTS[used][1] * b.pow(3).sum()
        first = torch.autograd.grad(loss, inputs, create_graph=True, materialize_grads=True)
        total = torch.stack([g.square().sum() for g in first]).sum()
        results.append(torch.autograd.grad(total, inputs, materialize_grads=True))
    for mine, right in zip(*results, strict=True):
        error = (mine.double() - right).norm().item()
        assert error <= 1e-4 * max(1.0, right.norm().item())


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_bad_row_stays_that_row(poison: float, device: str) -> None:
    x, residual, scale, weight, bias = (t.detach() for t in draw((9, 2, 21), (21,), device))
    results: list[Any] = []
    for bad in (False, True):
        branch = x.clone()
        branch[4, 1, 17] = poison if bad else 0.0
        torch.manual_seed(6)
        results.append(
            add_dropout_layer_norm(branch, residual, (21,), weight, bias, layer_scale=scale)
        )
    others = torch.ones(9, 2, dtype=torch.bool, device=device)
    others[4, 1] = False
    assert results[1][0][4, 1].isnan().any()
    assert all(torch.equal(a[others], b[others]) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4)])
def test_empty_tensors(shape: tuple[int, ...], device: str) -> None:
    x = torch.empty(shape, device=device, requires_grad=True)
    weight = torch.ones(4, device=device, requires_grad=True)
    y, z = add_dropout_layer_norm(x, x, (4,), weight, p=0.3, drop_path=0.3, layer_scale=weight)
    assert y.shape == z.shape == shape
    grads = torch.autograd.grad(y.sum() + z.sum(), (x, weight))
    assert grads[0].shape == shape
    assert torch.equal(grads[1], torch.zeros_like(weight))


def bad(**options: Any) -> Callable[[str], object]:
    def attempt(device: str) -> object:
        valid: dict[str, Any] = {
            "x": torch.randn(4, 8), "residual": torch.randn(4, 8), "normalized_shape": (8,)
        }  # fmt: skip
        arguments = {
            key: value.to(device)
            if isinstance(value, Tensor) and value.device.type == "cpu"
            else value
            for key, value in (valid | options).items()
        }
        return add_dropout_layer_norm(**arguments)  # type: ignore[arg-type]

    return attempt


@pytest.mark.parametrize(
    ("attempt", "error", "message"),
    [
        (bad(p=1.2), ValueError, "add_dropout_layer_norm probability.*1.2"),
        (bad(p=math.nan, training=False), ValueError, "between 0 and 1, but got nan"),
        (bad(drop_path=-0.1), ValueError, "drop_path.*between 0 and 1, but got -0.1"),
        (bad(drop_path=torch.ones(2)), RuntimeError, r"drop_path.*one torch.float32.*\[2\]"),
        (bad(x=torch.ones(4, 8).int()), RuntimeError, "floating-point input, but got torch.int32"),
        (bad(normalized_shape=8), TypeError, "sequence of ints, got 8"),
        (bad(normalized_shape=(7,)), RuntimeError, r"add_dropout_layer_norm.*\[7\].*\[4, 8\]"),
        (bad(weight=torch.ones(7)), RuntimeError, r"expects weight of shape \[8\].*\[7\]"),
        (bad(bias=torch.ones(8).double()), RuntimeError, "expects bias of torch.float32"),
        (bad(layer_scale=torch.ones(8, 1)), RuntimeError, r"layer_scale of shape \[8\].*\[8, 1\]"),
        (bad(residual=torch.ones(8)), RuntimeError, r"residual like x, \[4, 8\].*but got \[8\]"),
        (bad(residual=torch.ones(4, 8).half()), RuntimeError, "residual like x.*torch.float16"),
        (bad(residual=torch.ones(4, 8, device="meta")), RuntimeError, "residual like x.*meta"),
        (bad(normalized_shape=(4, 8), drop_path=0.5), RuntimeError, "samples.*set drop_path to 0"),
    ],
)  # fmt: skip
def test_bad_arguments(
    attempt: Callable[[str], object], error: type[Exception], message: str, device: str
) -> None:
    with pytest.raises(error, match=message):
        attempt(device)
