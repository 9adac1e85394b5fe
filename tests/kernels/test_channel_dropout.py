"""Dropout of whole channels, on whichever route this run has."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

import lightning_kernels
from lightning_kernels import dropout, dropout1d, dropout2d, dropout3d, feature_alpha_dropout
from lightning_kernels._dropout.dropout import alpha_constants
from tests.kernels.reference import guard_launches

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
Function = Callable[..., Tensor]

SHAPES: list[tuple[Function, tuple[int, ...], int]] = [  # and how many dimensions count channels
    (dropout1d, (5, 7), 1),
    (dropout1d, (3, 5, 127), 2),
    (dropout1d, (2, 3, 4097), 2),
    (dropout2d, (4, 3, 5, 7), 2),
    (dropout2d, (1, 1, 1, 1), 2),
    (dropout2d, (3, 127, 1, 1), 2),
    (dropout3d, (6, 2, 3, 4), 1),
    (dropout3d, (2, 5, 2, 3, 4), 2),
]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {  # each from (6, 4, 10, 8)
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "channels last, sliced": lambda x: x.to(memory_format=torch.channels_last)[:, :, ::2],
    "transposed": lambda x: x.transpose(0, 3),
    "sliced": lambda x: x[::2, :, 1:],
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
}


def mask_of(y: Tensor, leading: int = 2) -> Tensor:
    """Return which channels were kept, after checking that each is of one piece."""
    kept = (y.detach() != 0).flatten(leading)
    assert torch.equal(kept, kept[..., :1].expand_as(kept))
    return kept[..., :1].reshape(*y.shape[:leading], *[1] * (y.dim() - leading))


@pytest.mark.parametrize(
    ("function", "shape", "leading", "dtype"),
    [*((*case, torch.float32) for case in SHAPES), *((*SHAPES[1], dtype) for dtype in DTYPES[1:])],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_whole_channels_and_their_gradient(
    function: Function, shape: tuple[int, ...], leading: int, dtype: torch.dtype, device: str
) -> None:
    x = (torch.rand(shape, device=device) + 1).to(dtype).requires_grad_()
    grad = torch.randn(shape, device=device).to(dtype)
    y = function(x, 0.4)
    kept = mask_of(y, leading)
    assert y.dtype == dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    # The composition rounds the scale to 16 bits first, as torch does.
    rtol = 2 * torch.finfo(dtype).eps
    scaled = torch.where(kept, x.detach().to(wide) / 0.6, 0)
    torch.testing.assert_close(y.to(wide), scaled, rtol=rtol, atol=0)
    (grad_x,) = torch.autograd.grad(y, x, grad)
    assert grad_x.dtype == dtype
    scaled = torch.where(kept, grad.to(wide) / 0.6, 0)
    torch.testing.assert_close(grad_x.to(wide), scaled, rtol=rtol, atol=0)


@pytest.mark.parametrize("p", [0.01, 0.25, 0.9])
@pytest.mark.parametrize(("layout", "as_tensor"), [("contiguous", False), ("channels last", True)])
def test_the_rate_and_no_correlation(p: float, as_tensor: bool, layout: str, device: str) -> None:
    x = torch.ones(20, 660, 2, 1, device=device)
    x = x.to(memory_format=torch.channels_last) if layout == "channels last" else x
    rate = torch.tensor(p, device=device) if as_tensor else p
    calls = [mask_of(dropout2d(x, rate))[:, :, 0, 0].double() for _ in range(2)]
    for kept in calls:
        sigma = math.sqrt(p * (1 - p) / kept.numel())
        for part in (kept, *(kept.flatten()[i::4] for i in range(4))):
            distance = abs(part.mean().item() - (1 - p))
            assert distance < 5 * sigma * math.sqrt(kept.numel() / part.numel())
    first, second = ((kept - (1 - p)) / math.sqrt(p * (1 - p)) for kept in calls)
    pairs = {
        "calls": first * second,
        "channels": first[:, 1:] * first[:, :-1],
        "four channels": first[:, 4:] * first[:, :-4],
        "samples": first[1:] * first[:-1],
    }
    for name, products in pairs.items():
        assert abs(products.mean().item()) < 5 / math.sqrt(products.numel()), name


@pytest.mark.parametrize("channels", [1, 3, 64, 130, 132])
def test_masks_are_the_same_in_both_layouts(channels: int, device: str) -> None:
    if lightning_kernels.route(torch.ones(1, device=device)) == "aten":
        pytest.skip("torch's function decides it there")
    x = torch.rand(5, channels, 9, 4, device=device) + 1
    results = []
    for image in (x, x.to(memory_format=torch.channels_last)):
        torch.manual_seed(5)
        results.append(dropout2d(image, 0.5))
    assert torch.equal(*results)
    torch.manual_seed(5)  # the numbers of the channels are the places of a plain matrix
    elements = dropout(torch.ones(5, channels, device=device), 0.5)
    assert torch.equal(mask_of(results[0])[:, :, 0, 0], elements != 0)


@pytest.mark.parametrize("function", [dropout2d, feature_alpha_dropout])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_and_its_gradient(layout: str, function: Function, device: str) -> None:
    x = LAYOUTS[layout](torch.rand(6, 4, 10, 8, device=device) + 1).requires_grad_()
    y = function(x, 0.4, training=True)
    if layout in ("contiguous", "channels last"):
        assert y.stride() == x.stride()
    (factor,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    mask_of(factor)
    scale, shift, dropped = alpha_constants(0.4) if function is not dropout2d else (1 / 0.6, 0, 0)
    torch.testing.assert_close(y, x * factor + torch.where(factor == 0, dropped, shift))
    torch.testing.assert_close(factor, torch.where(factor == 0, 0.0, scale))
    for grad in (torch.rand_like(y), torch.rand(y.shape[::-1], device=device).permute(3, 2, 1, 0)):
        (grad_x,) = torch.autograd.grad(y, x, grad, retain_graph=True)
        torch.testing.assert_close(grad_x, grad * factor)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
@pytest.mark.parametrize(
    ("function", "as_tensor"), [(dropout2d, False), (feature_alpha_dropout, True)]
)
def test_in_place(function: Function, as_tensor: bool, layout: str, device: str) -> None:
    leaf = (torch.rand(6, 4, 10, 8, device=device) + 1).requires_grad_()
    x = LAYOUTS[layout](leaf * 1)
    original = x.detach().clone()
    p = torch.tensor(0.4, device=device) if as_tensor else 0.4
    y = function(x, p, True, True)
    assert y is x
    assert y.grad_fn is not None
    (factor,) = torch.autograd.grad(y.sum(), leaf)
    factor = LAYOUTS[layout](factor)
    _, shift, dropped = alpha_constants(0.4) if function is not dropout2d else (0, 0, 0)
    expected = original * factor + torch.where(factor == 0, dropped, shift)
    torch.testing.assert_close(y.detach(), expected)
    assert 0 < mask_of(factor).sum() < factor.shape[:2].numel()


@pytest.mark.parametrize("function", [dropout1d, dropout2d, dropout3d, feature_alpha_dropout])
def test_in_place_on_a_leaf_raises(function: Function, device: str) -> None:
    shape = (2, 3, 4, 5)[: 3 if function is dropout1d else 4]
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        function(torch.ones(shape, device=device, requires_grad=True), 0.5, True, True)
    batched = torch.ones(2, 3, device=device, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        dropout1d(batched, 0.5, inplace=True)


def test_in_place_without_a_batch(device: str) -> None:
    leaf = torch.rand(20, 3, device=device, requires_grad=True)
    x = leaf * 2
    y = dropout1d(x, 0.5, inplace=True)
    assert y is x
    kept = mask_of(y, 1)
    (grad,) = torch.autograd.grad(y.sum(), leaf)
    torch.testing.assert_close(grad, (kept * 4.0).expand(20, 3))


@pytest.mark.parametrize("p", [1.0, torch.tensor(1.0)], ids=["number", "tensor"])
def test_all_is_dropped_at_one(p: Any, device: str) -> None:
    p = p.to(device) if isinstance(p, Tensor) else p
    x = torch.randn(3, 5, 7, 2, device=device, requires_grad=True)
    for function in (dropout2d, dropout3d, feature_alpha_dropout):
        y = function(x, p, True)
        assert torch.equal(y, torch.zeros_like(x))
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.zeros_like(x))


def test_nothing_is_dropped_at_zero_and_in_evaluation(device: str) -> None:
    x = torch.randn(3, 5, 7, 2, device=device)
    assert feature_alpha_dropout(x) is x  # off by default, as torch's
    for function in (dropout2d, dropout3d, feature_alpha_dropout):
        assert function(x, 0.0, True) is x
        assert function(x, torch.tensor(0.5, device=device), False) is x
        assert torch.equal(function(x, torch.zeros((), device=device), True), x)
    assert dropout1d(x[0], 0.5, False).shape == (5, 7, 2)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty_tensors(shape: tuple[int, ...], device: str) -> None:
    x = torch.empty(shape, device=device, requires_grad=True)
    for p in (0.5, torch.tensor(0.5, device=device)):
        for function in (dropout1d, feature_alpha_dropout):
            y = function(x, p, training=True)
            assert y.shape == shape
            assert torch.autograd.grad(y.sum(), x)[0].shape == shape


def test_nan_and_infinity_as_in_torch(device: str) -> None:
    values = torch.tensor([math.nan, math.inf, -math.inf], device=device)
    y = dropout1d(values.reshape(1, 1, 3).expand(8, 9, 3), 0.5)
    assert y[..., 0].isnan().all()
    for i, value in ((1, math.inf), (2, -math.inf)):
        kept = y[..., i] == value
        assert torch.equal(y[..., i].isnan(), ~kept)
        assert 0 < kept.sum() < 72


def test_the_seed_and_nothing_else_decides(device: str) -> None:
    x = torch.rand(9, 50, 3, device=device) + 1
    torch.manual_seed(3)
    first = dropout1d(x, 0.5)
    assert not torch.equal(dropout1d(x, 0.5), first)
    torch.manual_seed(3)
    assert torch.equal(dropout1d(x, 0.5), first)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_replays_the_mask(reentrant: bool, device: str) -> None:
    leaf = torch.rand(8, 20, 3, device=device, requires_grad=True)
    seen: list[Tensor] = []

    def block(x: Tensor) -> Tensor:
        y = dropout1d(x, 0.5)
        seen.append(y.detach())
        return y.square()  # needs y in its backward: replayed

    checkpoint(block, leaf, use_reentrant=reentrant).sum().backward()
    assert torch.equal(*seen)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, 2 * seen[0] * (seen[0] != 0) / 0.5)


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_second_derivatives_replay_the_mask(layout: str, device: str) -> None:
    x = LAYOUTS[layout](torch.rand(6, 4, 10, 8, device=device)).requires_grad_()
    y = dropout2d(x, 0.5)
    (grad,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x)
    torch.testing.assert_close(second, 6 * x.detach() * (mask_of(y) / 0.5) ** 3)


@pytest.mark.kernel
def test_nothing_is_kept_for_the_backward_pass(device: str) -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = torch.ones(2, 3, 4, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        dropout1d(x, 0.5)
        feature_alpha_dropout(x, 0.5, True)
    assert not kept


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_compiles_whole(layout: str, inplace: bool, device: str) -> None:
    torch._dynamo.reset()

    def block(x: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        y = x * 2
        z = dropout2d(y, 0.5, inplace=inplace)
        return z, feature_alpha_dropout(x, rate, True)

    x = LAYOUTS[layout](torch.rand(6, 4, 10, 8, device=device) + 1).requires_grad_()
    rate = torch.tensor(0.5, device=device)
    y, alpha = torch.compile(block, fullgraph=True, backend="aot_eager")(x, rate)
    kept = mask_of(y)
    torch.testing.assert_close(y, x * 4 * kept)
    (grad,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    torch.testing.assert_close(grad, 32 * x.detach() * kept)
    _, shift, dropped = alpha_constants(0.5)
    (factor,) = torch.autograd.grad(alpha.sum(), x)
    torch.testing.assert_close(alpha, x * factor + torch.where(factor == 0, dropped, shift))
    assert 0 < mask_of(factor).sum() < 24


def test_functorch_and_forward_mode(device: str) -> None:
    x = torch.rand(4, 5, 6, device=device) + 1
    y, tangent, *_ = torch.func.jvp(lambda x: dropout1d(x, 0.5), (x,), (torch.full_like(x, 3.0),))
    torch.testing.assert_close(tangent, 3 * y / x)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's check
@pytest.mark.kernel
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed"])
def test_opcheck(layout: str, alpha: bool, device: str) -> None:
    x = LAYOUTS[layout](torch.randn(6, 4, 10, 8, device=device)).requires_grad_()
    state = torch.tensor([3, 8], device=device)
    for leading in (1, 2):
        arguments = (x, leading, 0.5, None, alpha, False)
        opcheck(torch.ops.lightning_kernels.channel_dropout.default, (*arguments, None, 7, 4))
        opcheck(torch.ops.lightning_kernels.channel_dropout.default, (*arguments, state, 0, 0))


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_kernels_touch_only_their_tensors(
    monkeypatch: pytest.MonkeyPatch, layout: str, dtype: torch.dtype, device: str
) -> None:
    def results() -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        x = LAYOUTS[layout](torch.randn(6, 4, 10, 8, device=device, dtype=dtype)).requires_grad_()
        y = feature_alpha_dropout(dropout2d(x, 0.3), 0.3, True)
        return y.detach(), *torch.autograd.grad(y.square().sum(), x)

    expected = results()
    guard_launches(monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(results(), expected, strict=True))


def outcome(
    function: Function, dims: int, training: bool, device: str
) -> tuple[type | None, list[str], int]:
    """Return what is raised, what is warned of, and how many dimensions count channels."""
    x = torch.ones((3, 5, 2, 2, 2, 2)[:dims], device=device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            drawn = torch.stack([function(x, 0.5, training) for _ in range(8)], dim=-1)
        except RuntimeError as error:
            return type(error), [], 0
    constant = [d for d in range(dims) if (drawn.flatten(d, -2).var(-2, correction=0) == 0).all()]
    texts = {str(warning.message).partition("D")[0] for warning in caught}
    return None, sorted(texts), min(constant, default=dims)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dims", range(7))
@pytest.mark.parametrize("function", [dropout1d, dropout2d, dropout3d, feature_alpha_dropout])
def test_dimensions_as_in_torch(function: Function, dims: int, training: bool, device: str) -> None:
    theirs = getattr(F, function.__name__)
    assert outcome(function, dims, training, device) == outcome(theirs, dims, training, device)


def test_warnings_point_at_the_caller(device: str) -> None:
    with pytest.warns(UserWarning, match="dropout2d: Received a 3D input") as caught:
        dropout2d(torch.ones(2, 3, 4, device=device))
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="dropout3d: Received a 3-D input") as caught:
        dropout3d(torch.ones(2, 3, 4, device=device))
    assert caught[0].filename == __file__


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan, math.inf])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("function", [dropout1d, feature_alpha_dropout])
def test_p_outside_the_unit_interval(
    function: Function, training: bool, p: float, device: str
) -> None:
    with pytest.raises(ValueError, match=rf"{function.__name__}.*between 0 and 1, but got {p}"):
        function(torch.ones(1, 2, 3, device=device), p, training)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_only_floating_point_is_dropped(dtype: torch.dtype, device: str) -> None:
    x = torch.ones(1, 2, 3, device=device).to(dtype)
    for function in (dropout1d, feature_alpha_dropout):
        with pytest.raises(RuntimeError, match=f"floating-point.*{dtype}"):
            function(x, 0.5, training=True)
        assert function(x, 0.5, training=False) is x


def test_a_tensor_that_is_no_rate(device: str) -> None:
    with pytest.raises(RuntimeError, match="dropout2d expects p as a number, or"):
        dropout2d(torch.ones(1, 2, 3, 4, device=device), torch.ones(2, device=device))


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_more_than_two_to_the_31_elements(layout: str) -> None:
    x = torch.ones(33, 64, 1024, 1024, device="cuda", dtype=torch.bfloat16)
    x = x.to(memory_format=torch.channels_last) if layout == "channels last" else x
    y = dropout2d(x, 0.5)
    for sample in (0, 31, 32):
        mask_of(y[sample : sample + 1])
    kept = (y[:, :, 0, 0] != 0).double()
    assert abs(kept.mean().item() - 0.5) < 5 * 0.5 / math.sqrt(kept.numel())
