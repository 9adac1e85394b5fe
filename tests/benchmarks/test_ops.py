"""The ops: their floors against a table made by hand, their inputs, their providers."""

import math
from collections.abc import Iterator

import pytest
import torch

from benchmarks.ops import DIRECTIONS, DTYPES, LAYOUTS, OPS, Op, sizes_of, with_gradients
from benchmarks.providers import AUTOTUNED
from benchmarks.rows import EAGER, OURS
from benchmarks.shapes import Shape

# Bytes per element in 16 bits: forward, backward.
FLOORS = {
    "layer_norm": (4, 6),
    "layer_norm2d": (4, 6),
    "rms_norm": (4, 6),
    "add_dropout_layer_norm": (8, 8),  # 10 if the sum has a gradient of its own
    "batch_norm": (6, 10),
    "batch_norm_relu": (6, 10),
    "batch_norm_add_relu": (8.125, 12.25),
    "group_norm": (4, 6),
    "group_norm_silu": (4, 6),
    "instance_norm": (4, 6),
    "dropout": (4, 4),
    "drop_block2d": (4.125, 4.125),
    "dropout2d": (4, 4),
    "stochastic_depth": (6, 6),
    "dropout_activation": (4, 6),
    "clip_grad_norm_": (2, 0),
    "clip_grad_norm_clipped": (6, 0),
    "clip_grad_adaptive_": (4, 0),
}


@pytest.mark.parametrize("name", FLOORS)
def test_the_floor_per_element_in_16_bits(name: str) -> None:
    floors = (OPS[name].floor_bytes((8,), 2, direction) / 8 for direction in DIRECTIONS)
    assert tuple(floors) == (*FLOORS[name], sum(FLOORS[name]))


def test_every_op_has_a_floor_in_this_table() -> None:
    assert set(FLOORS) == {name for name, op in OPS.items() if op.shapes}


def test_floors_of_whole_shapes_by_hand() -> None:
    norm, dropout = OPS["layer_norm"], OPS["dropout"]
    # ViT-B's tokens, 256 * 197 * 768 = 38 731 776 elements: 74 MiB in bf16.
    assert norm.floor_bytes((256, 197, 768), 2, "forward") == 154_927_104
    assert norm.floor_bytes((256, 197, 768), 2, "backward") == 232_390_656
    assert norm.floor_bytes((256, 197, 768), 2, "both") == 387_317_760
    assert norm.floor_bytes((256, 197, 768), 4, "forward") == 309_854_208
    assert dropout.floor_bytes((8192, 4096), 2, "both") == 268_435_456


def all_shapes() -> Iterator[tuple[str, Shape]]:
    return ((name, shape) for name, op in OPS.items() for shape in op.shapes)


def test_the_quick_shapes_are_few_and_some_are_large() -> None:
    for op in OPS.values():
        if not op.shapes:
            continue
        quick = [shape for shape in op.shapes if shape.quick]
        assert 3 <= sum(len(shape.layouts) for shape in quick) <= 8
        assert max(math.prod(shape.dims) for shape in quick) * 2 >= 64 << 20
        tuned = any(provider.name == AUTOTUNED for provider in op.providers)
        assert tuned <= sum(shape.autotune for shape in quick) <= 2 * tuned
        names = [shape.name for shape in op.shapes]
        assert len(set(names)) == len(names)
        assert set(op.directions) <= set(DIRECTIONS)


def test_layer_norm_has_the_shapes_that_the_goals_name() -> None:
    dims = {shape.dims for shape in OPS["layer_norm"].shapes}
    assert {(256, 197, 768), (128, 197, 1024), (262144, 128), (1, 128), (256, 1024)} <= dims
    assert {(8, 1024, size) for size in (768, 1024, 1280, 1600)} <= dims
    assert {(8192, size) for size in (2048, 4096, 5120, 8192)} <= dims
    assert {(128, 56, 56, 96), (128, 7, 7, 768), (128, 56, 56, 128), (128, 7, 7, 1024)} <= dims


def test_a_shrunk_shape_keeps_its_rank_and_rows() -> None:
    for _, shape in all_shapes():
        small = shape.shrunk(1 << 16)
        assert math.prod(small.dims) <= 1 << 16
        assert small.dims[-1] == shape.dims[-1]
        assert len(small.dims) == len(shape.dims)
        assert all(0 < a <= b for a, b in zip(small.dims, shape.dims, strict=True))
    assert Shape("row", (1, 4096)).shrunk(10).dims == (1, 4096)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_random_leaves_in_the_layout(dtype: str) -> None:
    for name, shape in all_shapes():
        for layout in shape.layouts:
            small = shape.shrunk(4096)
            first, second = (
                OPS[name].draw(small.dims, layout, DTYPES[dtype], torch.device("cpu"))
                for _ in range(2)
            )
            assert first[0].shape == small.dims
            assert first[0].is_contiguous(memory_format=LAYOUTS[layout])
            for one, other in zip(first, second, strict=True):
                assert one.dtype == DTYPES[dtype]
                assert one.is_leaf
                assert one.requires_grad == ("backward" in OPS[name].directions)
                assert one.count_nonzero() > 0.9 * one.numel()
                assert not torch.equal(one, other)


def test_an_op_without_a_backward_pass_needs_no_gradients() -> None:
    op = Op(torch.sum, torch.sum, directions=("forward",))
    (x,) = op.draw((4,), "contiguous", torch.float32, torch.device("cpu"))
    assert not x.requires_grad


def test_every_op_has_ours_and_torchs() -> None:
    for op in OPS.values():
        names = [provider.name for provider in op.providers]
        assert names[:2] == [OURS, EAGER]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "tensors", "first"),
    [
        ("ResNet-50", 161, (64, 3, 7, 7)),
        ("ViT-L", 296, (1, 1, 1024)),
        ("2000 tensors", 2000, (64, 64)),
    ],
)
def test_gradients_have_the_sizes_of_the_model(
    name: str, tensors: int, first: tuple[int, ...]
) -> None:
    (shape,) = (shape for shape in OPS["clip_grad_norm_"].shapes if shape.name == name)
    sizes = sizes_of(math.prod(shape.dims))
    assert (len(sizes), sizes[0]) == (tensors, first)
    assert sum(map(math.prod, sizes)) == math.prod(shape.dims)


def test_gradients_are_copies_of_all_there_is() -> None:
    x = torch.randn(1037, 8)
    weights = with_gradients((x,))
    grads = [w.grad for w in weights if w.grad is not None]
    assert len(grads) == len(weights) > 1
    assert torch.equal(torch.cat([g.flatten() for g in grads]), x.flatten())
    assert all(w.shape == g.shape for w, g in zip(weights, grads, strict=True))
    grads[0].zero_()
    assert x.count_nonzero() == x.numel()


@pytest.mark.parametrize("name", OPS)
def test_ours_and_torchs_compute_the_same(name: str) -> None:
    op = OPS[name]
    dims = (op.cpu or tuple(shape.shrunk(1 << 12).dims for shape in op.shapes))[0]
    torch.manual_seed(0)
    drawn = op.draw(dims, "contiguous", torch.float32, torch.device("cpu"))
    results = []
    for function in (op.ours, op.eager):
        torch.manual_seed(1)  # on the CPU ours draws the same masks as torch
        results.append(function(*op.prepare(drawn)))
    if name == "clip_grad_scale":  # which has no equal
        norm = results[1]
        assert results[0] == (norm / 1e6).clamp(min=1)
    elif name not in _OTHER_DRAWS:
        torch.testing.assert_close(*results)


# Ops that drop by a random number of their own: of the same law, which test_correctness checks.
_OTHER_DRAWS = {"drop_block2d", "drop_block3d"}
