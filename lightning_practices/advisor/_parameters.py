"""Parameters by the modules and optimizers that hold them."""

from collections.abc import Collection

from torch import nn

from lightning_practices._names import outermost_where as outermost_where
from lightning_practices.advisor._observation import Observation, Step

_NAMED = 8  # modules of a finding, besides the outermost


def owner(name: str) -> str:
    """Return the name of the module that holds a parameter."""
    return name.rpartition(".")[0]


def trainable(seen: Observation) -> list[str]:
    """Return the names of the parameters that require a gradient before the first step."""
    return [name for name, weight in seen.weights.items() if weight.is_trainable]


def outermost(seen: Observation, names: Collection[str]) -> list[str]:
    """Return the largest modules all of whose trainable parameters are among ``names``.

    Parameters in no such module stand for themselves.
    """
    every = set(trainable(seen))
    left, found = sorted(set(names)), []
    rest = every - set(names)
    while left:
        name = left[0]
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            prefix = ".".join(parts[:length])
            within = {one for one in left if f"{one}.".startswith(f"{prefix}.")}
            if not any(f"{one}.".startswith(f"{prefix}.") for one in rest):
                found.append(prefix)
                left = [one for one in left if one not in within]
                break
    return found


def concerned(seen: Observation, names: Collection[str]) -> tuple[str, ...]:
    """Return the modules to name for parameters: the outermost, then the innermost."""
    inner = list(dict.fromkeys(owner(name) for name in names if owner(name)))
    return tuple(dict.fromkeys([*outermost(seen, names), *inner[:_NAMED]]))


def optimized(seen: Observation) -> dict[str, list[int]]:
    """Return the optimizers of each parameter, as places, by the parameter's name."""
    found: dict[str, list[int]] = {}
    for place, optimizer in enumerate(seen.optimizers):
        for group in optimizer.param_groups:
            for p in group["params"]:
                if (name := seen.names.get(id(p))) is not None:
                    found.setdefault(name, []).append(place)
    return found


def shares_with_user(seen: Observation) -> bool:
    """Whether an optimizer holds parameters of the user's module, which the copy can't train."""
    return any(
        id(p) in seen.originals
        for optimizer in seen.optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    )


def is_stepped(seen: Observation, name: str, places: dict[str, list[int]]) -> bool:
    """Whether an optimizer that holds a parameter made a step."""
    return any(place in step.stepped for step in seen.steps for place in places.get(name, ()))


def has_gradient(steps: Collection[Step], name: str) -> bool:
    """Whether a parameter has a gradient after one of the steps, which may be 0."""
    return any(step.gradients.get(name) is not None for step in steps)


def is_moved(seen: Observation, name: str) -> bool:
    """Whether a parameter's values changed in the steps."""
    found = dict(seen.module.named_parameters()).get(name)
    if found is None:
        return True
    return type(seen.weights[name].statistics).of(found) != seen.weights[name].statistics


def is_copy(seen: Observation, module: str) -> bool:
    """Whether a module began as a copy of another one that has gradients, such as an EMA teacher.

    Its weights, with the names within the module, have the shapes and statistics of the other's.
    """
    own = _state(seen, module)
    if not own:
        return False
    kind = type(seen.modules.get(module, nn.Module()))
    return any(
        type(part) is kind
        and not f"{name}.".startswith(f"{module}.")
        and not f"{module}.".startswith(f"{name}.")
        and _state(seen, name) == own
        and any(has_gradient(seen.steps, f"{name}.{one}") for one in own)
        for name, part in seen.modules.items()
    )


def _state(seen: Observation, module: str) -> dict[str, object]:
    prefix = f"{module}."
    return {
        name.removeprefix(prefix): (weight.shape, weight.statistics)
        for name, weight in seen.weights.items()
        if name.startswith(prefix) and weight.statistics.std > 0
    }
