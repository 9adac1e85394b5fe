"""Whether a norm stands directly behind a layer."""

from lightning_practices.advisor._kinds import NORMS
from lightning_practices.advisor._trace import Call


def is_normed(layer: Call, calls: list[Call]) -> bool:
    """Whether a norm normalises the output of a first layer, before a second layer."""
    return any(
        call.name in NORMS
        and call.outputs
        and call.output.depth == layer.output.depth
        and layer in call.output.before()
        for call in calls
    )
