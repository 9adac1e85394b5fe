"""Parameters that the loss reaches and that the module doesn't register."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_practices._names import count, some
from lightning_practices.advisor._observation import Observation, once
from lightning_practices.advisor._plain_objects import held_by, is_plain
from lightning_practices.advisor._rule import Evidence, rule

_DEEP = 4  # lists, dicts and plain objects within each other that are searched


@rule(
    "LP107", "error",
    practice="A module registers its layers",
    measures="leaves of the loss's graph that neither the module nor the batch holds",
    healthy="none, but for inputs that a step makes, as for a gradient penalty",
    source="torch.nn.ModuleList; NeuraLint; questions about an optimizer that got an empty list",
)  # fmt: skip
def unregistered_parameters(seen: Observation) -> Iterator[Evidence]:
    yield from _unregistered(seen, is_held=False)


@rule(
    "LP118", "hint",
    practice="A module registers the parameters that its optimizer holds",
    measures="leaves of the loss's graph that an optimizer holds and the module doesn't register",
    healthy="none",
    source="torch.nn.Module.state_dict: checkpoints hold what is registered",
)  # fmt: skip
def unregistered_and_optimized(seen: Observation) -> Iterator[Evidence]:
    yield from _unregistered(seen, is_held=True)


def _unregistered(seen: Observation, is_held: bool) -> Iterator[Evidence]:
    held = {id(p) for o in seen.optimizers for g in o.param_groups for p in g["params"]}
    reached = {id(x): x for step in seen.steps for x in step.unregistered}
    at_start = {id(x) for x in seen.step.unregistered}
    places = _places(seen)
    own = {id(p) for p in seen.module.parameters()}  # such as one that a step made anew
    named: dict[str, list[Tensor]] = {}
    made: list[Tensor] = []
    for key, x in reached.items():
        if key in own or key in seen.originals or (key in held) != is_held:
            continue
        if key in places:
            named.setdefault(places[key], []).append(x)
        elif isinstance(x, nn.Parameter) and key in at_start:
            made.append(x)
    for place, tensors in named.items():
        holder, _, attribute = place.rpartition(".")
        why = (
            "checkpoints and .to() leave them out" if is_held
            else "no optimizer trains them, and checkpoints and .to() leave them out"
        )  # fmt: skip
        yield Evidence(
            f"The loss reaches {count(len(tensors), 'tensor')} in {place} ({_shapes(tensors)}) that"
            f" the module doesn't register: {why}",
            f"self.{attribute} = {_remedy(getattr(seen.modules[holder], attribute))}",
            tuple(one for one in (place, holder) if one),
            {"tensors": len(tensors)},
        )
    if made and not is_held:
        calls = [
            call
            for call in seen.step.calls
            if any(
                call.output.is_data and value.requires_grad and value.parameter is None
                and value.shape in {tuple(x.shape) for x in made}
                for value in call.inputs
            )
        ]  # fmt: skip
        where = some([str(call) for call in calls]) if calls else "a function"
        yield Evidence(
            f"The loss reaches {count(len(made), 'parameter')} ({_shapes(made)}) that no module"
            f" registers, at {where}: no optimizer trains them",
            "make layers in __init__, as attributes of the module",
            tuple(dict.fromkeys(call.module for call in calls if call.module)),
            {"tensors": len(made)},
        )


def _remedy(value: Any) -> str:
    if isinstance(value, Tensor):
        return "nn.Parameter(...)"
    if is_plain(value):
        return f"{type(value).__name__}(...), of a class {type(value).__name__}(nn.Module)"
    return "nn.ModuleDict(...)" if isinstance(value, Mapping) else "nn.ModuleList(...)"


def _shapes(tensors: list[Tensor]) -> str:
    return some([str(tuple(x.shape)) for x in tensors])


@once
def _places(seen: Observation) -> dict[int, str]:
    """Return the attributes of tensors in the modules' plain attributes, by ``id``."""
    found = {}
    for name, module in seen.modules.items():
        for attribute, value in vars(module).items():
            if attribute.startswith("_") and attribute in vars(nn.Module()):
                continue
            for x in _tensors(value, _DEEP):
                found[id(x)] = f"{name}.{attribute}".removeprefix(".")
    return found


def _tensors(value: Any, deep: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
        for part in value.modules() if deep else ():
            for name, each in vars(part).items():
                if not name.startswith("_"):
                    yield from _tensors(each, deep - 1)
    elif deep:
        is_object = is_plain(value)  # which may hold what a step has made, such as an attack
        for _, each in held_by(value):
            if not (is_object and isinstance(each, Tensor) and not isinstance(each, nn.Parameter)):
                yield from _tensors(each, deep - 1)
