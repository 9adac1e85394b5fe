"""Every class of shapes that is measured has a call whose machine code is read."""

from typing import Any

import pytest

from benchmarks import shapes
from benchmarks.launches import CALLS, channels, drops, launches_of, rows
from benchmarks.launches.inputs import BF16, NCHW, NHWC
from benchmarks.machine_code import Launch, record_launches
from benchmarks.shapes import Shape

MEMORY_FORMATS = {"contiguous": NCHW, "channels_last": NHWC}

ROWS: list[tuple[Any, tuple[Shape, ...]]] = [
    (
        rows._layer_norm,
        (
            *shapes.VIT, *shapes.GPT_2, *shapes.LLAMA, *shapes.QK_NORM, *shapes.CONVNEXT_ROWS,
            *shapes.TINY,
        ),
    ),
    (rows._rms_norm, shapes.RMS_NORM),
    (rows._add_norm, (*shapes.VIT, *shapes.GPT_2, *shapes.LLAMA, *shapes.TINY)),
    (channels._batch_norm1d, shapes.BATCH_NORM_1D),
    (drops._dropout, shapes.DROPOUT),
    (drops._dropout_activation, (*shapes.FEED_FORWARD, *shapes.TINY)),
]  # fmt: skip
IMAGES: list[tuple[Any, dict[str, bool], tuple[Shape, ...]]] = [
    (rows._layer_norm2d, {}, shapes.CONVNEXT_STEMS),
    (channels._batch_norm, {}, shapes.BATCH_NORM),
    (channels._batch_norm, {"residual": True}, shapes.BATCH_NORM),
    (channels._group_norm, {}, shapes.GROUP_NORM),
    (channels._instance_norm, {}, shapes.INSTANCE_NORM),
    (drops._dropout2d, {}, shapes.RESNET_50),
    (drops._stochastic_depth, {}, shapes.CONVNEXT),
    (drops._drop_block, {}, shapes.DROP_BLOCK),
]


def specialisation(launch: Launch) -> tuple[Any, ...]:
    """Return what the compiler knows of a launch: launches with the same one share their code."""
    args = tuple(
        (arg == 1, arg % 16 == 0, abs(arg) < 2**31)
        if type(arg) is int
        else float
        if type(arg) is float
        else arg
        for arg in launch.args
    )
    return launch.name, args, tuple(sorted(launch.constants.items(), key=str))


@pytest.fixture(scope="module")
def covered() -> set[tuple[Any, ...]]:
    return {specialisation(launch) for name in CALLS for launch in launches_of(name)}


@pytest.mark.parametrize(("function", "measured"), ROWS)
def test_every_measured_row_has_a_call(
    function: Any, measured: tuple[Shape, ...], covered: set[tuple[Any, ...]]
) -> None:
    for shape in measured:
        with record_launches() as launches:
            function(BF16, shape.dims)
        assert covered.issuperset(map(specialisation, launches)), f"add a call for {shape}"


@pytest.mark.parametrize(("function", "options", "measured"), IMAGES)
def test_every_measured_image_has_a_call(
    function: Any,
    options: dict[str, bool],
    measured: tuple[Shape, ...],
    covered: set[tuple[Any, ...]],
) -> None:
    for shape in measured:
        for layout in shape.layouts:
            with record_launches() as launches:
                function(BF16, shape.dims, MEMORY_FORMATS[layout], **options)
            assert covered.issuperset(map(specialisation, launches)), f"add {layout} {shape}"
