"""DropBlock in place, compiled, checkpointed and differentiated again, and what it touches."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from lightning_kernels import drop_block2d, drop_block3d, route
from lightning_kernels._core.launch import multiprocessor_count
from lightning_kernels._drop_block import layout as _drop_block_layout
from lightning_kernels._drop_block import operator as _drop_block_operator
from tests.kernels.reference import guard_launches

OPS = torch.ops.lightning_kernels


def factor_of(y: Tensor) -> Tensor:
    """Return what was multiplied with, from a result that is not 0 where kept."""
    kept = y.detach() != 0
    return kept * (kept.numel() / kept.sum())


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "sliced", "transposed"])
def test_in_place(layout: str, device: str) -> None:
    leaf = (torch.rand(4, 6, 5, 8, device=device) + 1).requires_grad_()
    views: dict[str, Any] = {
        "contiguous": lambda x: x,
        "channels last": lambda x: x.permute(0, 3, 1, 2),
        "sliced": lambda x: x[::2, :, 1:],
        "transposed": lambda x: x.transpose(0, 3),
    }
    view = views[layout]
    x = view(leaf.clone())
    original = x.detach().clone()
    y = drop_block2d(x, 0.4, 3, inplace=True)
    assert y is x
    factor = factor_of(y)
    torch.testing.assert_close(y.detach(), original * factor)
    (grad,) = torch.autograd.grad(y.square().sum(), leaf)
    expected = torch.zeros_like(leaf)
    view(expected).copy_(2 * original * factor**2)
    torch.testing.assert_close(grad, expected)


def test_in_place_as_not_in_place(device: str) -> None:
    x = torch.rand(3, 4, 6, 7, device=device) + 1
    for per_channel in (True, False):
        torch.manual_seed(3)
        y = drop_block2d(x, 0.4, 3, per_channel=per_channel)
        torch.manual_seed(3)
        copy = x.clone()
        assert drop_block2d(copy, 0.4, 3, inplace=True, per_channel=per_channel) is copy
        assert torch.equal(copy, y)


def test_in_place_is_guarded_by_autograd(device: str) -> None:
    leaf = torch.ones(1, 2, 4, 4, device=device, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        drop_block2d(leaf, 0.5, 2, inplace=True)
    y = drop_block2d(leaf.exp(), 0.5, 2, inplace=True)  # exp keeps its result for its backward
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_second_derivatives_replay_the_mask(device: str) -> None:
    x = (torch.rand(2, 3, 5, 6, device=device) + 1).requires_grad_()
    y = drop_block2d(x, 0.5, 3)
    factor = factor_of(y)
    (grad,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x)
    torch.testing.assert_close(second, 6 * x.detach() * factor**3)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_replays_the_mask(reentrant: bool, device: str) -> None:
    leaf = (torch.rand(2, 3, 5, 6, device=device) + 1).requires_grad_()
    seen: list[Tensor] = []

    def block(x: Tensor) -> Tensor:
        seen.append(drop_block2d(x, 0.5, 3))
        return seen[-1].square()  # needs it in its backward: replayed

    checkpoint(block, leaf, use_reentrant=reentrant).sum().backward()
    assert len(seen) == 2
    assert torch.equal(*seen)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, 2 * leaf.detach() * factor_of(seen[0]) ** 2)


def test_the_seed_and_nothing_else_decides(device: str) -> None:
    x = torch.rand(4, 4, 6, 6, device=device)
    torch.manual_seed(3)
    first = drop_block2d(x, 0.5, 3)
    second = drop_block2d(x, 0.5, 3)
    torch.manual_seed(3)
    assert torch.equal(drop_block2d(x, 0.5, 3), first)
    assert not torch.equal(second, first)


def test_the_default_type_does_not_matter(device: str) -> None:
    results = []
    for default in (torch.float32, torch.float16):
        torch.set_default_dtype(default)
        torch.manual_seed(3)
        try:
            x = torch.ones(2, 3, 40, 9, device=device, dtype=torch.float32)
            results += [drop_block2d(x, 0.2, 3), drop_block2d(x[..., :4, :4], 0.5, 3)]
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[3])


@pytest.mark.parametrize("per_channel", [True, False])
def test_only_bits_and_counts_are_kept(per_channel: bool, device: str) -> None:
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = torch.ones(8, 16, 14, 28, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        drop_block2d(x, 0.5, 3, per_channel=per_channel)
    size = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    planes = 8 * 16 if per_channel else 8
    if route(x) != "aten":
        counts = 4 * _drop_block_operator._PROGRAMS * multiprocessor_count(x.device)
        assert size == planes * 14 * 4 + counts  # a word of 32 bits for a row of 28
    else:
        assert size == planes * 14 * 28


def test_functorch_transforms_and_forward_mode(device: str) -> None:
    x = torch.rand(2, 3, 6, 6, device=device) + 1
    y, tangent, *_ = torch.func.jvp(
        lambda x: drop_block2d(x, 0.5, 3), (x,), (torch.full_like(x, 3.0),)
    )
    torch.testing.assert_close(tangent, 3 * y / x)
    mapped = torch.func.vmap(lambda x: drop_block2d(x, 0.5, 3), randomness="different")(
        x.expand(2, 2, 3, 6, 6)
    )
    assert not torch.equal(mapped[0] == 0, mapped[1] == 0)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("inplace", [False, True])
def test_compiles_whole(inplace: bool, backend: str, device: str) -> None:
    def block(x: Tensor) -> Tensor:
        return drop_block2d(x * 2, 0.5, 3, inplace)

    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    x = (torch.rand(2, 4, 7, 6, device=device) + 1).requires_grad_()
    y = compiled(x)
    torch.testing.assert_close(y, 2 * x * factor_of(y))
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(grad, 8 * x.detach() * factor_of(y) ** 2)
    assert not torch.equal(compiled(x) == 0, y == 0)
    volume = torch.compile(drop_block3d, fullgraph=True, backend=backend)
    y = volume(torch.ones(2, 2, 4, 5, 6, device=device), 0.5, 2)
    torch.testing.assert_close(y, factor_of(y))


def test_compiled_masks_follow_the_law(device: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(drop_block2d, fullgraph=True, backend="aot_eager")
    x = torch.ones(64, 16, 4, 6, device=device)
    rate = torch.tensor(0.4, device=device)
    corner = 0.4 * 24 / (2 * 2 * 3 * 5)  # one block alone covers it
    for p in (0.4, rate):
        share = (compiled(x, p, 2) == 0)[:, :, 0, 0].double().mean().item()
        assert abs(share - corner) < 5 * math.sqrt(corner * (1 - corner) / 1024)


# torch's own check reads .grad of a tensor that is not a leaf
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.kernel
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_opcheck(layout: torch.memory_format, per_channel: bool, device: str) -> None:
    x = torch.rand(2, 4, 6, 5, device=device).contiguous(memory_format=layout).requires_grad_()
    state = torch.tensor([3, 8], device=device)
    for rate, stream in ((None, (None, 3, 8)), (torch.tensor(0.5, device=device), (state, 0, 0))):
        arguments = (x, 0.4, rate, [3, 2], 1e-6, per_channel, *stream)
        # Counts that no program has written are whatever was there, so results are not compared.
        torch.library.opcheck(
            OPS.drop_block.default, arguments,
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )  # fmt: skip
    with torch.no_grad():
        _, words, counts = OPS.drop_block(*arguments)
    last = layout == torch.channels_last
    grad = torch.rand_like(x).detach().requires_grad_()
    torch.library.opcheck(
        OPS.drop_block_backward.default, (grad, words, counts, [3, 2], 1e-6, per_channel, last)
    )


def test_fake_tensors_go_through(device: str) -> None:
    with FakeTensorMode():
        x = torch.rand(2, 3, 6, 5, dtype=torch.bfloat16, device=device)
        last = x.to(memory_format=torch.channels_last).requires_grad_()
        y = drop_block2d(last, 0.5, 3)
        (grad,) = torch.autograd.grad(y.sum(), last)
    assert (y.shape, y.stride(), y.dtype) == (x.shape, last.stride(), torch.bfloat16)
    assert (grad.shape, grad.dtype) == (x.shape, torch.bfloat16)


MAPS = [((5, 9), 4), ((4, 33), 3), ((12, 12), 2), ((3, 5, 6), 2)]


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("dtype", "per_channel"), [(torch.float32, True), (torch.float16, False)], ids=str
)
@pytest.mark.parametrize(("sizes", "block_size"), MAPS, ids=str)
def test_kernels_touch_only_their_tensors(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], block_size: int, per_channel: bool,
    dtype: torch.dtype, device: str,
) -> None:  # fmt: skip
    function, layout = (
        (drop_block2d, torch.channels_last)
        if len(sizes) == 2
        else (drop_block3d, torch.channels_last_3d)
    )
    given = torch.rand(3, 5, *sizes, device=device).to(dtype) + 1

    def results() -> list[Tensor]:
        torch.manual_seed(1)
        tensors = []
        for x in (given, given.contiguous(memory_format=layout)):
            x = x.detach().requires_grad_()
            y = function(x, 0.1, block_size, per_channel=per_channel)
            tensors += [y.detach(), *torch.autograd.grad(y.square().sum(), x)]
        return tensors

    expected = results()
    guard_launches(monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(results(), expected, strict=True))


@pytest.mark.kernel
@pytest.mark.parametrize(("sizes", "block_size"), MAPS, ids=str)
def test_the_launch_does_not_change_the_mask(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], block_size: int, device: str
) -> None:
    function = drop_block2d if len(sizes) == 2 else drop_block3d
    x = torch.rand(6, 11, *sizes, device=device) + 1

    def draw() -> list[Tensor]:
        torch.manual_seed(1)
        _drop_block_layout.cut_of.cache_clear()
        return [function(x, 0.2, block_size), function(x, 0.2, block_size, per_channel=False)]

    expected = draw()
    monkeypatch.setattr(_drop_block_operator, "_PROGRAMS", 1)
    assert all(torch.equal(a, b) for a, b in zip(draw(), expected, strict=True))
    for name, value in (("_WORDS", 256), ("_TILE_BYTES", 1024)):
        monkeypatch.setattr(_drop_block_layout, name, value)
        assert all(torch.equal(a, b) for a, b in zip(draw(), expected, strict=True))
    monkeypatch.undo()
    _drop_block_layout.cut_of.cache_clear()


@pytest.mark.kernel
def test_a_change_of_the_bits_before_the_backward_pass_raises(device: str) -> None:
    y, words, _ = OPS.drop_block(
        torch.ones(1, 1, 4, 4, device=device, requires_grad=True), 0.5, None, [2, 2], 1e-6, True,
        None, 3, 8,
    )  # fmt: skip
    words.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.gpu
def test_a_captured_graph_draws_a_new_mask_at_every_replay() -> None:
    x = torch.ones(16, 16, 14, 14, device="cuda", requires_grad=True)
    drop_block2d(x, 0.5, 7).sum().backward()  # compiles, outside the capture
    graph = torch.cuda.CUDAGraph()
    x.grad = None
    with torch.cuda.graph(graph):
        y = drop_block2d(x, 0.5, 7)
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
    x = torch.ones(2**15 + 8, 64, 32, 32, device="cuda", dtype=torch.bfloat16)
    y = drop_block2d(x, 0.1, 5)
    kept = int((y != 0).sum(dtype=torch.int64))
    assert y.max() == torch.tensor(x.numel() / kept).to(torch.bfloat16)
    corner = 0.1 * 32 * 32 / (5 * 5 * 28 * 28)
    for part in (y[:4096], y[-4096:]):
        share = (part[:, :, 0, 0] == 0).double().mean().item()
        assert abs(share - corner) < 5 * math.sqrt(corner / part[:, :, 0, 0].numel())
    assert not torch.equal(y[:8], y[-8:])
