"""Boxes that are taken for corners and aren't."""

from collections.abc import Iterator

from torch import Tensor

from lightning_practices.advisor._kinds import CASTS, CLAMPS
from lightning_practices.advisor._observation import Observation, Step
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call, Value

_SHARE, _FEW = 0.1, 4  # of inverted boxes, and their least number
_CORNERS = 4
_PARTS = frozenset({"unbind", "chunk", "split", "tensor_split"})


@rule(
    "LP354", "error",
    practice="Boxes that are taken for corners (x1, y1, x2, y2) are corners",
    measures="the share of target boxes with x2 < x1 or y2 < y1, where the area is the product of"
    " these differences, as in torchvision's functions",
    healthy="none, and under 0.1 with faulty labels",
    source="torchvision.ops.box_iou: boxes are expected in (x1, y1, x2, y2) format; reports of"
    " generalized_box_iou with (cx, cy, w, h)",
)  # fmt: skip
def inverted_boxes(seen: Observation) -> Iterator[Evidence]:
    for step in (*seen.steps[:1], seen.validation_step):
        for product, boxes, inverted in _areas(step) if step is not None else ():
            count, total = int(inverted.sum()), inverted.numel()
            if count < _FEW or count < _SHARE * total:
                continue
            name = boxes.origin().source or "the targets"
            yield Evidence(
                f"{product} takes boxes of {name} for corners, and {count} of {total} have x2 < x1"
                " or y2 < y1: they are in another format, as (cx, cy, w, h) or (x, y, w, h)",
                'torchvision.ops.box_convert(boxes, "cxcywh", "xyxy"), or from "xywh", before the'
                " call",
                numbers={"share": count / total},
            )
            return


def _areas(step: Step) -> Iterator[tuple[Call, Value, Tensor]]:
    """Yield products of two sides of target boxes, the boxes, and which of them are inverted."""
    for call in step.calls:
        if call.name == "prod" and call.inputs:
            sides = _side(call.inputs[0])
        elif call.name == "mul" and len(call.inputs) == len(call.args) == 2:
            sides = [*_side(call.inputs[0]), *_side(call.inputs[1])]
        else:
            continue
        if {0, 1} <= {place for place, _, _ in sides}:
            first, other = (next(x for x in sides if x[0] == place) for place in (0, 1))
            low = [side[2] for side in (first, other)]
            if first[1] is other[1] and low[0].shape == low[1].shape:
                yield call, first[1], low[0] | low[1]


def _side(value: Value) -> list[tuple[int, Value, Tensor]]:
    """Return the sides that a value holds: 0 or 1, the boxes, and where they are negative."""
    wanted: int | None = None
    while value.call is not None and value.call.name in CLAMPS | CASTS and value.call.inputs:
        value = value.call.inputs[0]
    if (place := _place(value)) is not None and place < 2 and value.call is not None:
        wanted, value = place, value.call.inputs[0]
        while value.call is not None and value.call.name in CLAMPS | CASTS and value.call.inputs:
            value = value.call.inputs[0]
    call = value.call
    if call is None or call.name != "sub" or len(call.inputs) != 2:
        return []
    high, low = call.inputs
    if high.tensor is None or low.tensor is None or high.requires_grad or high.depth:
        return []
    ends = [(x.call, _place(x), _half(x)) for x in (high, low)]
    boxes = [x.inputs[0] for x, _, _ in ends if x is not None and x.inputs]
    if len(boxes) != 2 or boxes[0] is not boxes[1] or not boxes[0].is_data:
        return []
    if high.tensor.shape != low.tensor.shape or boxes[0].shape[-1] != _CORNERS:
        return []
    negative = high.tensor < low.tensor
    (_, upper, second), (_, lower, first) = ends
    if second == 1 and first == 0:  # boxes[:, 2:] - boxes[:, :2]
        places = (0, 1) if wanted is None else (wanted,)
        return [(place, boxes[0], negative[..., place]) for place in places]
    if upper is not None and lower is not None and upper - lower == 2 and wanted is None:
        return [(lower, boxes[0], negative)]
    return []


def _index(value: Value) -> object:
    """Return the last index of the call that took a value as a part of another one."""
    call = value.call
    if call is None or call.name != "__getitem__" or len(call.args) != 2:
        return None
    index = call.args[1]
    return index[-1] if isinstance(index, tuple | list) and index else None


def _place(value: Value) -> int | None:
    """Return which part along the last dimension a value is of another one."""
    call = value.call
    if call is None or not call.inputs:
        return None
    if call.name in _PARTS and len(call.outputs) == call.inputs[0].shape[-1]:
        return next(i for i, x in enumerate(call.outputs) if x is value)
    index = _index(value)
    return index if isinstance(index, int) and not isinstance(index, bool) else None


def _half(value: Value) -> int | None:
    """Return which half along the last dimension a value is of another one."""
    call, index = value.call, _index(value)
    if call is not None and call.name in _PARTS and len(call.outputs) == 2:
        return next(i for i, x in enumerate(call.outputs) if x is value)
    if isinstance(index, slice) and index.step is None:
        return {(None, 2): 0, (0, 2): 0, (2, None): 1, (2, _CORNERS): 1}.get(
            (index.start, index.stop)
        )
    return None
