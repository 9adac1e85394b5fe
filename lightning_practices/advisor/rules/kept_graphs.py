"""States, sums and lists that keep the graphs of earlier steps."""

import dis
import re
from collections.abc import Iterator
from types import CodeType
from typing import Any

from lightning_practices._names import some
from lightning_practices.advisor._fit import codes_of
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._plain_objects import held_by
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP251", "error",
    practice="A state that goes into the next step is detached",
    measures="whether the second step's loss depends on a tensor with a graph that an attribute of"
    " the module, or of a plain object in it, holds since the first",
    healthy="it doesn't: state.detach()",
    source="Williams and Peng, 1990, truncated backpropagation through time; torch's word language"
    " model example, repackage_hidden",
)  # fmt: skip
def state_with_graph(seen: Observation) -> Iterator[Evidence]:
    if not seen.carried_graphs:
        return
    names = [f"self.{name}" for name in seen.carried_graphs]
    then = (
        "backward fails in the second step, as the graph of the first is freed"
        if seen.failure is not None
        else "each step goes back through all steps before it"
    )
    yield Evidence(
        f"{some(names)} keeps tensors of a step with their graph, and the next step's loss depends"
        f" on them: {then}",
        f"{names[0]} = {names[0]}.detach(), or tuple(x.detach() for x in {names[0]}), at the end of"
        " the step",
    )


@rule(
    "LP252", "warning",
    practice="Values that are kept from step to step are detached",
    measures="tensors with a graph in attributes of the module and of plain objects in it, after"
    " one step and after the next",
    healthy="no more after two steps; lists that a hook clears",
    source="torch's FAQ: don't accumulate history across the training loop",
    explained_by=("LP251",),
)  # fmt: skip
def kept_graphs(seen: Observation) -> Iterator[Evidence]:
    names = [name for name in seen.grown_graphs if not _is_cleared(seen, name)]
    if names:
        shown = [f"self.{name}" for name in names]
        yield Evidence(
            f"{some(shown)} keeps the graph of each step's tensors: memory grows with each step of"
            " the fit",
            f"keep loss.detach() in {shown[0]}; self.log('loss', loss, on_epoch=True) or"
            " torchmetrics.MeanMetric averages by itself",
        )


def _is_cleared(seen: Observation, name: str) -> bool:
    """Return whether a hook clears an attribute, or gives it a new value."""
    parts = name.split(".")
    end = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in seen.modules), 0)
    kind = type(seen.modules.get(".".join(parts[:end]), seen.module))
    attribute, _, rest = ".".join(parts[end:]).replace("[", ".").partition(".")
    if rest:
        return _may_be_emptied(seen, name, attribute)
    for code in codes_of(kind, lambda method: method.startswith("on_")):
        stored = {one.argval for one in dis.get_instructions(code) if one.opname == "STORE_ATTR"}
        if attribute in stored or ("clear" in code.co_names and attribute in code.co_names):
            return True
    return False


def _may_be_emptied(seen: Observation, name: str, attribute: str) -> bool:
    """Return whether a hook uses a plain object, or its class has a method that empties a list."""
    holder: Any = seen.module
    kinds = [type(seen.module)]
    for part in re.findall(r"[^.\[\]]+", name):
        holder = _within(holder, part)
        kinds.append(type(holder))
    hooks = codes_of(kinds[0], lambda method: method.startswith("on_"))
    methods = (code for kind in kinds for code in codes_of(kind, lambda m: m != "__init__"))
    return any(attribute in code.co_names for code in hooks) or any(
        not _EMPTYING.isdisjoint(code.co_names) or _stores_an_empty_list(code) for code in methods
    )


def _within(holder: Any, part: str) -> Any:
    """Return an attribute, an entry or an element by its name as it is written."""
    found = next((x for place, x in held_by(holder) if place in (f".{part}", f"[{part}]")), None)
    return getattr(holder, part, None) if found is None else found


def _stores_an_empty_list(code: CodeType) -> bool:
    """Return whether a function sets an attribute to a new empty list or dict."""
    names = [(one.opname, one.argval) for one in dis.get_instructions(code)]
    stores = [i for i, (name, _) in enumerate(names) if name == "STORE_ATTR"]
    return any((kind, 0) in names[max(i - 3, 0) : i] for i in stores for kind in _BUILDS)


_EMPTYING = frozenset({"clear", "pop", "popleft", "popitem", "deque", "reset", "flush"})
_BUILDS = ("BUILD_LIST", "BUILD_MAP")
