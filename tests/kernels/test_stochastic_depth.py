"""``lightning_kernels.stochastic_depth``, on whichever route this run has."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import stochastic_depth as torchvisions

import lightning_kernels
from lightning_kernels import stochastic_depth
from tests.kernels.reference import assert_as_right_as_torch
from tests.kernels.stochastic_depths import CASES, composed, draw, kept_after, kept_of

MEASURED = [
    *((case, "row", torch.float32) for case in CASES),
    *((case, "batch", torch.float32) for case in ("NCHW", "channels last", "batch in the middle")),
    ("NCHW", "row", torch.bfloat16),
    ("channels last", "row", torch.float16),
    ("tokens", "row", torch.bfloat16),
    ("batch in the middle", "row", torch.float16),
]


@pytest.mark.parametrize(
    ("case", "mode", "dtype", "with_scale", "with_residual"),
    [
        *((*measured, both, both) for measured in MEASURED for both in (True, False)),
        *(("tokens", "row", torch.float32, scale, not scale) for scale in (True, False)),
    ],
    ids=str,
)
def test_as_right_as_torch(
    case: str, mode: str, dtype: torch.dtype, with_scale: bool, with_residual: bool, device: str
) -> None:
    shape, scale_shape, order = CASES[case]
    constants: list[tuple[Tensor, Tensor | None]] = []  # the mask and the layer scale

    def ours(x: Tensor, residual: Tensor | None = None) -> Tensor:
        torch.manual_seed(5)
        return stochastic_depth(x, 0.3, mode, residual=residual, layer_scale=constants[-1][1])

    def torchs(x: Tensor, residual: Tensor | None = None) -> Tensor:
        kept, layer_scale = constants[-1]
        layer_scale = None if layer_scale is None else layer_scale.to(x.dtype)
        return composed(x, kept, 0.3, residual, layer_scale)

    def draw_all() -> tuple[list[Tensor | None], Tensor]:
        tensors: list[Tensor | None] = [draw(shape, order, device).to(dtype)]
        if with_residual:
            tensors.append(torch.randn(shape, device=device).to(dtype))
        layer_scale = (torch.rand(scale_shape, device=device) + 1).to(dtype) if with_scale else None
        grad = torch.randn(shape, device=device).to(dtype)
        kept = kept_after(5, shape, 0.3, mode, device)
        constants.append((kept, layer_scale))
        return tensors, grad

    assert_as_right_as_torch(ours, torchs, draw_all)


@pytest.mark.parametrize(("case", "mode", "dtype"), MEASURED, ids=str)
def test_gradient_of_the_layer_scale(case: str, mode: str, dtype: torch.dtype, device: str) -> None:
    """Within the bound of a sum in a tree: log2(n) roundings of the sum of the terms' sizes."""
    shape, scale_shape, order = CASES[case]
    x = draw(shape, order, device).to(dtype).requires_grad_()
    layer_scale = (torch.rand(scale_shape, device=device) + 1).to(dtype).requires_grad_()
    grad = torch.randn(shape, device=device).to(dtype)
    torch.manual_seed(5)
    y = stochastic_depth(x, 0.3, mode, residual=torch.zeros_like(x), layer_scale=layer_scale)
    grad_x, mine = torch.autograd.grad(y, (x, layer_scale), grad)
    kept = kept_after(5, shape, 0.3, mode, device)
    terms = grad.double() * x.detach().double() * kept / 0.7
    exact, sizes = (t.sum_to_size(scale_shape) for t in (terms, terms.abs()))
    eps = torch.finfo(dtype).eps
    levels = math.log2(max(2, terms.numel() // exact.numel()))
    bound = (levels * torch.finfo(torch.float32).eps + 4 * eps) * sizes
    assert (mine.dtype, mine.shape) == (dtype, layer_scale.shape)
    assert ((mine.double() - exact).abs() <= bound).all()
    expected = grad.double() * layer_scale.detach().double() * kept / 0.7
    torch.testing.assert_close(grad_x.double(), expected, rtol=4 * eps, atol=0)


@pytest.mark.parametrize("case", ["NCHW", "channels last", "tokens", "each sample of a vector"])
def test_float64_is_computed_in_float64(case: str, device: str) -> None:
    shape, scale_shape, order = CASES[case]
    x = draw(shape, order, device).double()
    residual = torch.randn_like(x)
    layer_scale = torch.rand(scale_shape, device=device)  # float32
    torch.manual_seed(5)
    y = stochastic_depth(x, 0.3, "row", residual=residual, layer_scale=layer_scale)
    kept = kept_after(5, shape, 0.3, "row", device, torch.float64)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, composed(x, kept, 0.3, residual, layer_scale.double()))


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1)], ids=["NCHW", "channels last"])
def test_only_the_gradients_that_are_needed(
    order: tuple[int, ...], needs: tuple[int, ...], device: str
) -> None:
    tensors = (
        draw((9, 5, 4, 3), order, device),
        torch.randn(9, 5, 4, 3, device=device),
        torch.rand(5, 1, 1, device=device) + 1,
    )
    for tensor, need in zip(tensors, needs, strict=True):
        tensor.requires_grad_(bool(need))
    x, residual, layer_scale = tensors
    torch.manual_seed(2)
    y = stochastic_depth(x, 0.5, "row", residual=residual, layer_scale=layer_scale)
    kept = kept_after(2, tuple(x.shape), 0.5, "row", device)
    wanted = [t for t in tensors if t.requires_grad]
    grad = torch.randn(9, 5, 4, 3, device=device)
    expected = composed(x, kept, 0.5, residual, layer_scale)
    mine = torch.autograd.grad(y, wanted, grad)
    for one, other in zip(mine, torch.autograd.grad(expected, wanted, grad), strict=True):
        torch.testing.assert_close(one, other)
    if needs == (0, 1, 0):
        assert mine[0].data_ptr() == grad.data_ptr()  # passed on, not copied


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", ["NCHW", "tokens"])
def test_float32_residual_and_layer_scale_with_16_bits(
    case: str, dtype: torch.dtype, device: str
) -> None:
    shape, scale_shape, order = CASES[case]
    x = draw(shape, order, device).to(dtype).requires_grad_()
    residual = torch.randn(shape, device=device, requires_grad=True)
    layer_scale = (torch.rand(scale_shape, device=device) + 1).requires_grad_()
    torch.manual_seed(3)
    y = stochastic_depth(x, 0.25, "row", residual=residual, layer_scale=layer_scale)
    torch.manual_seed(3)
    kept = kept_of(stochastic_depth(x, 0.25, "row", residual=torch.zeros_like(residual)), "row")
    assert y.dtype == torch.float32
    exact = composed(x.double(), kept, 0.25, residual.double(), layer_scale.double())
    torch.testing.assert_close(y.double(), exact, rtol=1e-6, atol=1e-6)
    inputs = (x, residual, layer_scale)
    grads = torch.autograd.grad(y, inputs, torch.ones_like(y))
    rights = torch.autograd.grad(exact, inputs, torch.ones_like(exact))
    assert [g.dtype for g in grads] == [dtype, torch.float32, torch.float32]
    for mine, right in zip(grads, rights, strict=True):
        torch.testing.assert_close(mine, right, rtol=2 * torch.finfo(mine.dtype).eps, atol=1e-5)
    narrow = stochastic_depth(x, 0.25, "row", layer_scale=layer_scale)
    assert narrow.dtype == dtype


@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("p", [0.01, 0.3, 0.9])
def test_the_rate_and_no_correlation(p: float, as_tensor: bool, device: str) -> None:
    x = torch.ones(4000, 2, device=device)
    rate = torch.tensor(p, device=device) if as_tensor else p
    calls = torch.stack(
        [kept_of(stochastic_depth(x, rate, "row"), "row").squeeze(1).double() for _ in range(2)]
    )
    sigma = math.sqrt(p * (1 - p))
    calls = (calls - (1 - p)) / sigma
    for part in (calls[0], calls[1], *(calls[0][i::4] for i in range(4))):
        assert abs(part.mean().item()) < 5 / math.sqrt(part.numel())
    for lag in (1, 2, 3, 4, 16, 512):
        products = calls[0, lag:] * calls[0, :-lag]
        assert abs(products.mean().item()) < 5 / math.sqrt(products.numel()), lag
    assert abs((calls[0] * calls[1]).mean().item()) < 5 / math.sqrt(x.shape[0])
    x = torch.ones(2, 3, device=device)
    drawn = [kept_of(stochastic_depth(x, rate, "batch"), "batch")[0].item() for _ in range(60)]
    assert abs(sum(drawn) / 60 - (1 - p)) < 5 * sigma / math.sqrt(60)


def test_the_sample_decides_whatever_the_layout(device: str) -> None:
    if lightning_kernels.route(torch.ones(1, device=device)) == "aten":
        pytest.skip("torch's generator decides it there")
    elements = torch.ones(40, device=device)
    torch.manual_seed(4)
    expected = lightning_kernels.dropout(elements, 0.5) != 0
    scale = torch.ones(6, 1, 1, device=device)
    for order in ((0, 1, 2, 3), (0, 2, 3, 1)):
        for layer_scale in (None, scale):
            x = draw((40, 6, 2, 3), order, device)
            torch.manual_seed(4)
            y = stochastic_depth(x, 0.5, "row", layer_scale=layer_scale)
            assert y.stride() == x.stride()
            assert torch.equal(kept_of(y, "row").flatten(), expected)
    first = stochastic_depth(x, 0.5, "row")
    assert not torch.equal(first, stochastic_depth(x, 0.5, "row"))


def test_any_strides_and_gradients(device: str) -> None:
    base = torch.rand(6, 4, 10, 8, device=device) + 1
    layouts = (
        base.transpose(0, 3),
        base[::2, :, 1:],
        base[:1].expand(5, -1, -1, -1),
        base.to(memory_format=torch.channels_last)[:, :, ::2],
    )
    for i, x in enumerate(layouts):
        x = x.detach().requires_grad_()
        scale = torch.rand(x.shape[1], 1, 1, device=device) + 1
        for mode in ("row", "batch"):
            torch.manual_seed(i)
            y = stochastic_depth(x, 0.5, mode, residual=torch.ones_like(x), layer_scale=scale)
            torch.manual_seed(i)
            kept = kept_of(stochastic_depth(x, 0.5, mode), mode)
            torch.testing.assert_close(y, composed(x, kept, 0.5, torch.ones_like(x), scale))
            grad = torch.rand(y.shape[::-1], device=device).permute(3, 2, 1, 0)
            (grad_x,) = torch.autograd.grad(y, x, grad, retain_graph=True)
            torch.testing.assert_close(grad_x, grad * scale * kept * 2)
            (expanded,) = torch.autograd.grad(y.sum(), x)
            torch.testing.assert_close(expanded, (scale * kept * 2).expand_as(x))


@pytest.mark.parametrize("p", [1.0, torch.tensor(1.0)], ids=["number", "tensor"])
def test_all_is_dropped_at_one(p: Any, device: str) -> None:
    p = p.to(device) if isinstance(p, Tensor) else p
    x = torch.randn(6, 5, device=device, requires_grad=True)
    residual, scale = torch.randn(6, 5, device=device), torch.ones(5, device=device)
    for mode in ("row", "batch"):
        assert torch.equal(stochastic_depth(x, p, mode), torch.zeros_like(x))
        y = stochastic_depth(x, p, mode, residual=residual, layer_scale=scale)
        assert torch.equal(y, residual)
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.zeros_like(x))


def test_the_rest_is_computed_when_nothing_is_dropped(device: str) -> None:
    x, residual = torch.randn(2, 6, 5, device=device)
    scale = torch.rand(5, device=device, requires_grad=True)
    for options in ((0.5, "row", False), (0.0, "batch", True), (0.0, "row", False)):
        assert stochastic_depth(x, *options) is x
        before = torch.random.get_rng_state()
        torch.testing.assert_close(
            stochastic_depth(x, *options, residual=residual), residual + x, rtol=0, atol=0
        )
        y = stochastic_depth(x, *options, layer_scale=scale)
        torch.testing.assert_close(y, x * scale)
        torch.testing.assert_close(torch.autograd.grad(y.sum(), scale)[0], x.sum(0))
        y = stochastic_depth(x, *options, residual=residual, layer_scale=scale)
        torch.testing.assert_close(y, residual + x * scale)
        assert torch.equal(torch.random.get_rng_state(), before)
    zero = torch.zeros((), device=device)
    assert torch.equal(stochastic_depth(x, zero, "row"), x)
    assert stochastic_depth(x, zero, "row", False) is x


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty_tensors(shape: tuple[int, ...], device: str) -> None:
    x = torch.empty(shape, device=device, requires_grad=True)
    scale = torch.ones(shape[1], 1, device=device, requires_grad=True)
    for mode in ("row", "batch"):
        y = stochastic_depth(x, 0.5, mode, residual=x.detach(), layer_scale=scale)
        assert y.shape == shape
        grads = torch.autograd.grad(y.sum(), (x, scale))
        assert grads[0].shape == shape
        assert torch.equal(grads[1], torch.zeros_like(scale))


def test_a_number_in_a_batch(device: str) -> None:
    x = torch.tensor(3.0, device=device)
    drawn = {stochastic_depth(x, 0.5, "batch").item() for _ in range(40)}
    assert drawn == {0.0, 6.0}
    with pytest.raises(RuntimeError, match=r"shape \(N, \*\) for mode 'row', but got \[\]"):
        stochastic_depth(x, 0.5, "row")


@pytest.mark.kernel
@pytest.mark.parametrize("layer_scale", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1)], ids=["NCHW", "channels last"])
def test_what_is_dropped_beside_a_residual_is_not_read(
    order: tuple[int, ...], layer_scale: bool, device: str
) -> None:
    """Neither branch nor gradient: what is nan there shows nowhere."""
    shape = (20, 5, 4, 3)
    x = draw(shape, order, device)
    kept = kept_after(6, tuple(x.shape), 0.5, "row", device)
    x = torch.where(kept, x, math.nan).requires_grad_()
    scale = (torch.rand(5, 1, 1, device=device) + 1).requires_grad_() if layer_scale else None
    residual = torch.randn(shape, device=device)
    torch.manual_seed(6)
    y = stochastic_depth(x, 0.5, "row", residual=residual, layer_scale=scale)
    assert 0 < kept.sum() < 20
    clean = torch.where(kept, x.detach(), 0).requires_grad_()
    expected = composed(clean, kept, 0.5, residual, scale)
    torch.testing.assert_close(y, expected)
    assert torch.equal(y[~kept.flatten()], residual[~kept.flatten()])
    grad = torch.where(kept, torch.randn_like(y), math.nan)
    inputs = [x] if scale is None else [x, scale]
    same = [clean] if scale is None else [clean, scale]
    rights = torch.autograd.grad(expected, same, torch.where(kept, grad, 0))
    for mine, right in zip(torch.autograd.grad(y, inputs, grad), rights, strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.kernel
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1)], ids=["NCHW", "channels last"])
@pytest.mark.parametrize("trained", [False, True])
def test_an_infinite_layer_scale_adds_nothing_where_dropped(
    trained: bool, order: tuple[int, ...], device: str
) -> None:
    shape = (20, 5, 4, 3)
    x = draw(shape, order, device).requires_grad_()
    scale = torch.full((5, 1, 1), math.inf, device=device, requires_grad=trained)
    residual = torch.randn(shape, device=device)
    dropped = ~kept_after(6, shape, 0.5, "row", device).flatten()
    torch.manual_seed(6)
    y = stochastic_depth(x, 0.5, "row", residual=residual, layer_scale=scale)
    assert torch.equal(y[dropped], residual[dropped])
    assert (y[~dropped] == math.inf).all()
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(grad[dropped], torch.zeros_like(grad[dropped]))
    assert (grad[~dropped] == math.inf).all()


def test_without_a_residual_nan_stays_nan_as_in_torchvision(device: str) -> None:
    x = torch.full((64, 3), math.nan, device=device)
    assert stochastic_depth(x, 0.5, "row").isnan().all()
    assert torchvisions(x, 0.5, "row").isnan().all()
    x = torch.full((64, 3), math.inf, device=device)
    y = stochastic_depth(x, 0.5, "row")
    assert (y.isnan() | (y == math.inf)).all()
    assert 0 < y.isnan().sum() < y.numel()


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan, math.inf])
@pytest.mark.parametrize("training", [True, False])
def test_p_outside_the_unit_interval(training: bool, p: float, device: str) -> None:
    with pytest.raises(ValueError, match=rf"between 0 and 1, but got {p}"):
        stochastic_depth(torch.ones(2, 1, device=device), p, "row", training)


@pytest.mark.parametrize("training", [True, False])
def test_an_unknown_mode(training: bool, device: str) -> None:
    x = torch.ones(2, 1, device=device)
    for function in (stochastic_depth, torchvisions):
        with pytest.raises(ValueError, match="mode has to be either 'batch' or 'row', but got col"):
            function(x, 0.5, "col", training)


@pytest.mark.parametrize(
    ("shape", "x_shape"),
    [((4,), (2, 3, 5)), ((3, 5), (2, 3, 5)), ((1, 1, 1, 5), (2, 3, 5)), ((5,), (2, 3, 1)),
     ((0,), (2, 3, 1))],
)  # fmt: skip
def test_a_layer_scale_of_no_dimension(
    shape: tuple[int, ...], x_shape: tuple[int, ...], device: str
) -> None:
    with pytest.raises(RuntimeError, match=r"one dimension of more than 1 element, but got \["):
        stochastic_depth(
            torch.ones(x_shape, device=device), 0.5, "row",
            layer_scale=torch.ones(shape, device=device),
        )  # fmt: skip


def test_bad_tensors(device: str) -> None:
    x = torch.ones(2, 3, device=device)
    with pytest.raises(RuntimeError, match=r"residual like x, \[2, 3\].*but got \[3\]"):
        stochastic_depth(x, 0.5, "row", residual=torch.ones(3, device=device))
    for residual in (x.half(), x.double(), x.to("meta")):
        with pytest.raises(RuntimeError, match="stochastic_depth expects residual like x"):
            stochastic_depth(x, 0.5, "row", residual=residual)
    for scale in (x[0].half(), x[0].double(), x[0].to("meta")):
        with pytest.raises(RuntimeError, match=r"expects layer_scale of torch\.float32"):
            stochastic_depth(x, 0.5, "row", layer_scale=scale)
    with pytest.raises(RuntimeError, match=r"floating-point input, but got torch\.int64"):
        stochastic_depth(x.long(), 0.5, "row")
    with pytest.raises(RuntimeError, match="stochastic_depth expects p as a number, or"):
        stochastic_depth(x, torch.ones(2, device=device), "row")
