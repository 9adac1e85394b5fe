"""Weights of layers at initialisation."""

from collections.abc import Iterator

from lightning_practices.advisor._gradient_paths import Paths
from lightning_practices.advisor._kinds import LAYERS
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._parameters import is_moved, trainable
from lightning_practices.advisor._trace import Call, Statistics

_ROWS = 64  # that are compared


def hidden_weights(seen: Observation) -> Iterator[tuple[str, Call, bool]]:
    """Yield the trainable weights of layers, their calls, and whether another layer follows."""
    paths = Paths(seen.step)
    names = set(trainable(seen))
    found = set()
    for call in seen.step.calls:
        if call.name not in LAYERS or call.name.startswith("embedding") or not call.data:
            continue
        if id(call) not in paths.reach:
            continue
        follows = any(
            other.name in LAYERS and other.parameters and id(other) in paths.reach
            for other in paths.after(call.outputs)
        )
        for name in call.parameters:
            if name in names and len(seen.weights[name].shape) > 1 and name not in found:
                found.add(name)
                yield name, call, follows


def is_grouped(call: Call) -> bool:
    """Whether a convolution has groups, whose units have inputs of their own."""
    groups = call.get(6, "groups", 1) if call.name.startswith("conv") else 1
    return isinstance(groups, int) and groups > 1


def is_symmetric(seen: Observation, name: str) -> bool:
    """Whether all rows of a weight are equal after the steps."""
    found = dict(seen.module.named_parameters()).get(name)
    if found is None:
        return False
    rows = found.detach()[:_ROWS].flatten(1)
    return bool((rows == rows[:1]).all()) or Statistics.of(found).std == 0


def moves(seen: Observation) -> int:
    """Return the number of steps in which optimizers moved parameters; 0 if none moved."""
    if not any(is_moved(seen, name) for name in trainable(seen)):
        return 0
    return sum(bool(step.stepped) for step in seen.steps)
