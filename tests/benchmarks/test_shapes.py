"""The ops' shapes and floors, against the table that they come from."""

import math
from collections.abc import Iterator

import pytest
import torch

from benchmarks.providers import AUTOTUNED, EAGER, OURS, PROVIDERS, providers_of, reference_of
from benchmarks.shapes import DIRECTIONS, DTYPES, LAYOUTS, OPS, Op, Shape

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
    "drop_block": (4.125, 4.125),
    "dropout2d": (4, 4),
    "stochastic_depth": (6, 6),
    "dropout_activation": (4, 6),
    "clip_grad_norm": (2, 0),
    "clip_grad_norm_clipped": (6, 0),
    "clip_grad_adaptive": (4, 0),
}


@pytest.mark.parametrize("name", FLOORS)
def test_the_floor_per_element_in_16_bits(name: str) -> None:
    op = OPS[name]
    assert (op.forward_bytes(2), op.backward_bytes(2)) == FLOORS[name]


def test_every_op_has_a_floor_in_this_table() -> None:
    assert set(FLOORS) == set(OPS)


def test_floors_of_whole_shapes_by_hand() -> None:
    norm, dropout = OPS["layer_norm"], OPS["dropout"]
    # ViT-B's tokens, 256 * 197 * 768 = 38 731 776 elements: 74 MiB in bf16.
    assert norm.floor_bytes((256, 197, 768), 2, "forward") == 154_927_104
    assert norm.floor_bytes((256, 197, 768), 2, "backward") == 232_390_656
    assert norm.floor_bytes((256, 197, 768), 2, "both") == 387_317_760
    assert norm.floor_bytes((256, 197, 768), 4, "forward") == 309_854_208
    assert dropout.floor_bytes((8192, 4096), 2, "both") == 268_435_456


def test_a_floor_may_be_a_fraction_of_a_byte_per_element() -> None:
    op = Op(shapes=(), forward_bytes=lambda size: 2 * size + 1 / 8, backward_bytes=lambda size: 0)
    assert op.floor_bytes((16,), 2, "forward") == 16 * 4 + 2


def all_shapes() -> Iterator[tuple[str, Shape]]:
    return ((name, shape) for name, op in OPS.items() for shape in op.shapes)


def test_the_quick_shapes_are_few_and_some_are_large() -> None:
    for name, op in OPS.items():
        quick = [shape for shape in op.shapes if shape.quick]
        assert 3 <= sum(len(shape.layouts) for shape in quick) <= 8
        assert max(math.prod(shape.dims) for shape in quick) * 2 >= 64 << 20
        tuned = any(provider.name == AUTOTUNED for provider in providers_of(name))
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
    op = Op((), lambda size: size, lambda size: 0, directions=("forward",))
    (x,) = op.draw((4,), "contiguous", torch.float32, torch.device("cpu"))
    assert not x.requires_grad


def test_every_op_has_ours_and_one_reference() -> None:
    for name in OPS:
        providers = providers_of(name)
        assert providers[0].name == OURS
        assert reference_of(name).name == EAGER
        assert len({provider.name for provider in providers}) == len(providers)
    assert {provider.op for provider in PROVIDERS} == set(OPS)
