"""Images whose channels are moved by a reshape."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._scrambled import scrambled_images
from lightning_practices.advisor._trace import Call, Value

_RESHAPES = frozenset({"view", "reshape"})
_MOST_CHANNELS = 4


@rule(
    "LP328", "error",
    practice="Dimensions are exchanged by permute, not by a reshape",
    measures="a reshape of images (N, H, W, C) to (N, C, H, W) before a first layer, or in the"
    " dataset; differences of neighbouring pixels, as images are and as they were before a reshape",
    healthy="none; images that are smoother as they are",
    source="questions about numpy images that look scrambled after reshape",
)  # fmt: skip
def reshaped_images(seen: Observation) -> Iterator[Evidence]:
    found = [*_in_dataset(seen), *_in_step(seen)]
    yield from found or _by_roughness(seen)


def _in_step(seen: Observation) -> Iterator[Evidence]:
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


def _in_dataset(seen: Observation) -> Iterator[Evidence]:
    samples = seen.train.samples
    if samples is None:
        return
    with _Reshapes() as reshapes:
        samples.read(samples.spread(1))
    for name, before, after in reshapes.found[:1]:
        yield Evidence(
            f"the dataset's {name} gives images of shape {before} the shape {after} without moving"
            " an element: pixels and channels are mixed up",
            "x = x.movedim(-1, -3)",
        )


def _by_roughness(seen: Observation) -> Iterator[Evidence]:
    found = scrambled_images(seen)
    if found is not None:
        _, channels, height, width = found.shape
        order = "(N, H, W, C)" if found.was_last else "(N, C, H, W)"
        yield Evidence(
            f"neighbouring pixels of the images of shape {found.shape} differ"
            f" {found.rough / found.smooth:.1f} times as much as if their elements were read in the"
            f" order {order}: a reshape has mixed up pixels and channels",
            "np.moveaxis(x, -1, -3), or x.movedim(-1, -3), in place of the reshape"
            if found.was_last
            else f"x.reshape({channels}, {height}, {width}), and only then"
            " np.moveaxis(x, 0, -1) for channels last",
            numbers={"rough": found.rough, "smooth": found.smooth},
        )


class _Reshapes(TorchFunctionMode):
    """Notes the reshapes in a block that move channels."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in _RESHAPES and isinstance(result, Tensor) and args:
            before, after = tuple(args[0].shape), tuple(result.shape)
            if _moves_channels(before, after):
                self.found.append((name, before, after))
        return result


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
