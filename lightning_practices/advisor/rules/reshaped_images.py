"""Images whose channels are moved by a reshape."""

from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call, Value

_RESHAPES = frozenset({"view", "reshape"})
_MOST_CHANNELS = 4


@rule(
    "LP328", "error",
    practice="Dimensions are exchanged by permute, not by a reshape",
    measures="a reshape of images (N, H, W, C) to (N, C, H, W) before a first layer",
    healthy="none",
    source="questions about numpy images that look scrambled after reshape",
)  # fmt: skip
def reshaped_images(seen: Observation) -> Iterator[Evidence]:
    for call, value in seen.step.first_layers:
        for made in _makers(value):
            if made.name in _RESHAPES and _moves_channels(made.inputs[0].shape, made.output.shape):
                before, after = made.inputs[0].shape, made.output.shape
                yield Evidence(
                    f"{made} gives images of shape {before} the shape {after} without moving an"
                    f" element: {call} gets pixels and channels mixed up",
                    "x = x.movedim(-1, -3)",
                    (call.module,) if call.module else (),
                )


def _moves_channels(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    if len(before) < 3 or len(before) != len(after) or before[:-3] != after[:-3]:
        return False
    (height, width, channels), moved = before[-3:], after[-3:]
    is_image = 1 < channels <= _MOST_CHANNELS < min(height, width)
    return is_image and moved in ((channels, height, width), (channels, width, height))


def _makers(value: Value) -> Iterator[Call]:
    """Yield the calls that lead to a first layer, along its first inputs."""
    while value.call is not None and value.call.inputs:
        yield value.call
        value = value.call.inputs[0]
