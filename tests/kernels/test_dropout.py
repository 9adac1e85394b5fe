"""``lightning_kernels.dropout`` on whichever route this run has."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_kernels import dropout

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {  # each from (6, 4, 10, 8)
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3),
    "sliced": lambda x: x[::2, :, 1:],
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("numel", [1, 3, 127, 4097])
@pytest.mark.parametrize("p", [0.2, 0.5])
def test_survivors_are_exactly_rescaled(
    p: float, numel: int, dtype: torch.dtype, device: str
) -> None:
    x = (torch.rand(numel, device=device) + 1).to(dtype)  # never zero, so y == 0 means dropped
    y = dropout(x, p)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scaled = x.to(wide) * torch.tensor(1 / (1 - p), dtype=wide)
    assert y.dtype == dtype
    torch.testing.assert_close(y, torch.where(y == 0, 0, scaled.to(dtype)))


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9, 1 / 3])
def test_the_rate_is_p_at_every_place_in_a_group_of_four(p: float, device: str) -> None:
    dropped = dropout(torch.ones(80_000, device=device), p) == 0
    for subset in (dropped, *(dropped[i::4] for i in range(4))):
        sigma = math.sqrt(p * (1 - p) / subset.numel())
        assert abs(subset.double().mean().item() - p) < 5 * sigma


def test_no_correlation_between_elements(device: str) -> None:
    kept = (dropout(torch.ones(200_000, device=device), 0.5) > 0).double() * 2 - 1
    for lag in (1, 2, 3, 4, 8, 1024, 2048, 4096):
        correlation = (kept[lag:] * kept[:-lag]).mean().item()
        assert abs(correlation) < 5 / math.sqrt(kept.numel() - lag), lag


def test_no_correlation_between_calls(device: str) -> None:
    x = torch.ones(50_000, device=device)
    calls = torch.stack([(dropout(x, 0.5) > 0).double() * 2 - 1 for _ in range(4)])
    correlations = (calls @ calls.T / x.numel()).triu(diagonal=1)
    assert correlations.abs().max().item() < 5 / math.sqrt(x.numel())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_and_its_gradient(layout: str, device: str) -> None:
    x = LAYOUTS[layout](torch.rand(6, 4, 10, 8, device=device) + 1).requires_grad_()
    y = dropout(x, 0.4)
    assert y.stride() == torch.empty_like(x).stride()
    mask = (y != 0) / 0.6
    torch.testing.assert_close(y, x * mask)
    for grad in (torch.rand_like(y), torch.rand(y.shape[::-1], device=device).permute(3, 2, 1, 0)):
        torch.testing.assert_close(
            torch.autograd.grad(y, x, grad, retain_graph=True)[0], grad * mask
        )
    (expanded,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(expanded, mask)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
def test_in_place(layout: str, device: str) -> None:
    leaf = (torch.rand(6, 4, 10, 8, device=device) + 1).requires_grad_()
    x = LAYOUTS[layout](leaf.clone())
    original = x.detach().clone()
    y = dropout(x, 0.4, inplace=True)
    assert y is x
    mask = (x.detach() != 0) / 0.6
    torch.testing.assert_close(x.detach(), original * mask)
    (grad,) = torch.autograd.grad(x.square().sum(), leaf)
    expected = torch.zeros_like(leaf)
    LAYOUTS[layout](expected).copy_(2 * original * mask**2)
    if layout != "channels last":  # .to() copies there: nothing to write through
        torch.testing.assert_close(grad, expected)
    else:
        torch.testing.assert_close(grad, 2 * original * mask**2)


def test_in_place_is_guarded_by_autograd(device: str) -> None:
    leaf = torch.ones(8, device=device, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        dropout(leaf, 0.5, inplace=True)
    x = leaf.exp()  # keeps its result for its backward
    y = dropout(x, 0.5, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("inplace", [False, True])
def test_p_one_drops_all_and_p_zero_none(inplace: bool, device: str) -> None:
    x = torch.randn(2, 7, device=device)
    assert dropout(x, 0.0, inplace=inplace) is x
    assert dropout(x, 0.7, training=False, inplace=inplace) is x
    leaf = x.clone().requires_grad_()
    y = dropout(leaf * 1, 1.0, inplace=inplace)
    assert torch.equal(y, torch.zeros_like(x))
    assert torch.equal(torch.autograd.grad(y.sum(), leaf)[0], torch.zeros_like(x))


def test_an_empty_tensor(device: str) -> None:
    x = torch.empty(0, 5, device=device, requires_grad=True)
    y = dropout(x, 0.5)
    assert y.shape == (0, 5)
    assert torch.autograd.grad(y.sum(), x)[0].shape == (0, 5)


def test_nan_and_infinity_as_in_torch(device: str) -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf], device=device).repeat(40)
    y = dropout(x, 0.5)
    assert y[0::3].isnan().all()  # nan * 0 and inf * 0 are nan
    assert (y[1::3].isnan() | (y[1::3] == math.inf)).all()
    assert y[1::3].isnan().any()
    assert y[1::3].isinf().any()
    assert (y[2::3].isnan() | (y[2::3] == -math.inf)).all()
    theirs = F.dropout(torch.full((64,), math.nan, device=device), 0.5)
    assert theirs.isnan().all()


def test_the_seed_and_nothing_else_decides(device: str) -> None:
    x = torch.rand(1000, device=device)

    def draw() -> Tensor:
        torch.manual_seed(3)
        return dropout(x, 0.5)

    first = draw()
    assert torch.equal(draw(), first)
    assert not torch.equal(dropout(x, 0.5), first)
    with torch.random.fork_rng():
        inside = dropout(x, 0.5)
    assert torch.equal(dropout(x, 0.5), inside)
    copied = copy.deepcopy(torch.nn.Sequential(torch.nn.Dropout(0.5)))
    torch.manual_seed(3)
    copied(torch.empty(0, device=device))  # a copied layer has no stream of its own
    assert torch.equal(draw(), first)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_replays_the_mask(reentrant: bool, device: str) -> None:
    leaf = torch.rand(500, device=device, requires_grad=True)
    seen: list[Tensor] = []

    def block(x: Tensor) -> Tensor:
        y = dropout(x, 0.5)
        seen.append(y.detach())
        return y.square()  # needs y in its backward: replayed

    y = checkpoint(block, leaf, use_reentrant=reentrant)
    y.sum().backward()
    assert len(seen) == 2
    assert torch.equal(*seen)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, 2 * seen[0] * (seen[0] != 0) / 0.5)


def test_second_derivatives_replay_the_mask(device: str) -> None:
    x = torch.rand(300, device=device, requires_grad=True)
    y = dropout(x, 0.5)
    mask = (y.detach() != 0) / 0.5
    (grad,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x)
    torch.testing.assert_close(second, 6 * x.detach() * mask**3)


def test_functorch_transforms_and_forward_mode(device: str) -> None:
    x = torch.rand(200, device=device) + 1
    y, tangent, *_ = torch.func.jvp(lambda x: dropout(x, 0.5), (x,), (torch.full_like(x, 3.0),))
    torch.testing.assert_close(tangent, 3 * y / x)
    mapped = torch.func.vmap(lambda x: dropout(x, 0.5), randomness="different")(x.expand(2, 200))
    assert not torch.equal(mapped[0] == 0, mapped[1] == 0)


@pytest.mark.kernel
def test_nothing_is_kept_for_the_backward_pass(device: str) -> None:
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = torch.ones(100, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        dropout(x, 0.5)
    assert not kept


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan, math.inf])
@pytest.mark.parametrize("training", [True, False])
def test_p_outside_the_unit_interval(p: float, training: bool, device: str) -> None:
    with pytest.raises(ValueError, match=rf"between 0 and 1, but got {p}"):
        dropout(torch.ones(1, device=device), p, training)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_only_floating_point_is_dropped(dtype: torch.dtype, device: str) -> None:
    x = torch.ones(4, device=device).to(dtype)
    with pytest.raises(RuntimeError, match=f"floating-point.*{dtype}"):
        dropout(x, 0.5)
    assert dropout(x, 0.5, training=False) is x


@pytest.mark.gpu
def test_a_captured_graph_draws_a_new_mask_at_every_replay() -> None:
    x = torch.ones(4096, device="cuda", requires_grad=True)
    dropout(x, 0.5).sum().backward()  # compiles, outside the capture
    graph = torch.cuda.CUDAGraph()
    x.grad = None
    with torch.cuda.graph(graph):
        y = dropout(x, 0.5)
        y.sum().backward()
    masks: list[Tensor] = []
    for _ in range(3):
        graph.replay()
        assert x.grad is not None
        assert torch.equal(x.grad, y.detach())
        masks.append(y.detach().clone())
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2])


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements() -> None:
    x = torch.ones(2**31 + 4096, device="cuda", dtype=torch.bfloat16)
    y = dropout(x, 0.5)
    tail = (y[-4096:] == 0).double().mean().item()
    assert abs(tail - 0.5) < 5 * 0.5 / math.sqrt(4096)
    assert not torch.equal(y[:4096], y[-4096:])
    assert not torch.equal(y[:4096], y[2**31 : 2**31 + 4096])


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_that_is_not_the_current_one() -> None:
    x = torch.ones(1000, device="cuda:1", requires_grad=True)
    y = dropout(x, 0.5)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], y)
