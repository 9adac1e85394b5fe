"""Parameters that the optimizer holds and the loss doesn't reach."""

import inspect
import sys
from collections.abc import Iterator
from types import CodeType

from lightning_practices._names import count, some
from lightning_practices.advisor._gradient_paths import Paths
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._parameters import (
    concerned,
    has_gradient,
    is_copy,
    is_moved,
    is_stepped,
    optimized,
    outermost,
    owner,
    trainable,
)
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call

_MAKERS = ("__init__", "configure_optimizers", "configure_model", "setup")
_DYNAMIC = ("getattr", "children", "named_children", "modules", "named_modules", "_modules",
            "get_submodule")  # fmt: skip


@rule(
    "LP103", "warning",
    practice="The loss reaches all parameters of the optimizer",
    measures="the call at which the graph from parameters without a gradient ends",
    healthy="a gradient in one of the first steps; parameters behind no_grad or detach in modules"
    " in eval mode, in copies of trained modules, or moved by hand",
    source="TheDeepChecker (Ben Braiek and Khomh, 2023): parameters that training doesn't change",
    explained_by=("LP111", "LP225", "LP226", "LP227"),
)  # fmt: skip
def graph_is_cut(seen: Observation) -> Iterator[Evidence]:
    if not any(root.requires_grad for root in seen.step.roots):
        return  # the rule on losses without a graph
    paths = Paths(seen.step)
    by_cut: dict[int, tuple[Call, list[str]]] = {}
    for name in _without_gradient(seen):
        call = paths.cut([name])
        if call is not None and seen.step.modes.get(owner(name), True):
            by_cut.setdefault(call.index, (call, []))[1].append(name)
    # Each layer under no_grad is a cut of its own.
    under = [names for call, names in by_cut.values() if call in paths.users_of(names[0])]
    merged = [(None, [name for names in under for name in names])] if under else []
    others = [(call, names) for call, names in by_cut.values() if names not in under]
    for call, names in [*others, *merged]:
        modules = [one for one in outermost(seen, names) if not is_copy(seen, one)]
        if not modules:
            continue
        shown = str(call).replace("__get__", ".data")
        how = f"the graph ends at {shown}" if call else "the layers run under no_grad"
        yield Evidence(
            f"The optimizer holds {count(len(names), 'parameter')} of {some(modules)} without a"
            f" gradient in {count(len(seen.steps), 'step')}: {how}",
            f"remove {call.name.replace('__get__', '.data')}"
            if call
            else "remove no_grad, or freeze by requires_grad_(False)",
            concerned(seen, names),
            {"parameters": len(names), "steps": len(seen.steps)},
        )


@rule(
    "LP104", "warning",
    practice="Each layer is called",
    measures="modules whose parameters the optimizer holds, that no step calls and no method names",
    healthy="called in one of the first steps or the validation step, or named by a method",
    source="NeuraLint and questions about find_unused_parameters: a layer that forward leaves out",
)  # fmt: skip
def layer_is_never_called(seen: Observation) -> Iterator[Evidence]:
    yield from _never_called(seen, is_sure=True)


@rule(
    "LP114", "hint",
    practice="Each layer is called",
    measures="as LP104, for modules that a method names, modules of libraries, entries of"
    " lists and single parameters",
    healthy="called in one of the first steps",
    source="the notes on find_unused_parameters of torch's DistributedDataParallel",
)  # fmt: skip
def layer_is_perhaps_never_called(seen: Observation) -> Iterator[Evidence]:
    yield from _never_called(seen, is_sure=False)


def _never_called(seen: Observation, is_sure: bool) -> Iterator[Evidence]:
    called = {name for step in seen.steps for call in step.calls for name in call.stack}
    if seen.validation_step is not None:
        called |= {name for call in seen.validation_step.calls for name in call.stack}
    paths = [Paths(step) for step in seen.steps]
    unused = [
        name
        for name in _without_gradient(seen)
        if not any(each.users_of(name) for each in paths)
        and (owner(name) not in called or not is_sure)
    ]
    for name in outermost(seen, unused):
        own = [each for each in unused if f"{each}.".startswith(f"{name}.")]
        is_module = name in seen.modules
        if is_copy(seen, name) or (is_module and _is_forgotten(seen, name)) != is_sure:
            continue
        what = f"{name} is never called" if is_module else f"{name} is never used"
        yield Evidence(
            f"{what} in {count(len(seen.steps), 'step')}: the optimizer holds"
            f" {count(len(own), 'parameter')} of it without a gradient",
            f"call self.{name} in forward, or remove it",
            concerned(seen, own),
            {"parameters": len(own), "steps": len(seen.steps)},
        )


def _is_forgotten(seen: Observation, name: str) -> bool:
    """Whether a module is an attribute of a user's class whose methods don't mention it.

    A layer that a method mentions may be called in other steps, such as for another task.
    """
    parts = name.split(".")
    parents = [seen.modules.get(".".join(parts[:length])) for length in range(len(parts))]
    path = getattr(sys.modules.get(type(parents[-1]).__module__), "__file__", None) or ""
    if "site-packages" in path or "dist-packages" in path:
        return False
    mentioned = {word for parent in parents for word in _words(type(parent))}
    return not mentioned & {parts[-1], *_DYNAMIC}


def _words(kind: type) -> Iterator[str]:
    """Yield the names that the methods of a class use, but for those that make or list layers."""
    for each in kind.__mro__:
        if each.__module__.startswith(("torch.", "lightning.", "pytorch_lightning.")):
            continue
        for name, method in vars(each).items():
            code = getattr(inspect.unwrap(getattr(method, "fget", method)), "__code__", None)
            if name not in _MAKERS and isinstance(code, CodeType):
                yield from _names_in(code)


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _without_gradient(seen: Observation) -> list[str]:
    """Return the parameters without a gradient in all steps, whose optimizer made a step."""
    places = optimized(seen)
    return [
        name
        for name in trainable(seen)
        if all(name in step.gradients for step in seen.steps)
        and not has_gradient(seen.steps, name)
        and is_stepped(seen, name, places)
        and not is_moved(seen, name)
    ]
