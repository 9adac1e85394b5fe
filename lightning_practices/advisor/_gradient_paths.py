"""Paths of tensors through the calls of a step."""

from collections.abc import Collection, Iterator

from lightning_practices.advisor._observation import Step
from lightning_practices.advisor._trace import Call, Value

# Functions with a derivative of 0 almost everywhere.
STEPS = frozenset(
    {"round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside", "floor_divide",
     "__floordiv__"}
)  # fmt: skip


class Paths:
    """The calls of a step, to walk from a parameter to the loss.

    Args:
        step: The step.

    Attributes:
        reach: ``id`` of each call on which the differentiated values depend.
    """

    def __init__(self, step: Step) -> None:
        self.reach = step.reach
        self._step = step

    def users_of(self, name: str) -> list[Call]:
        """Return the calls that take a parameter."""
        return [call for value in self._step.values_of(name) for call in self._step.users(value)]

    def after(self, values: Collection[Value]) -> Iterator[Call]:
        """Yield the calls that depend on values, each once, the nearest first."""
        waiting, seen = list(values), set()
        while waiting:
            for call in self._step.users(waiting.pop(0)):
                if id(call) not in seen:
                    seen.add(id(call))
                    yield call
                    waiting += call.outputs

    def towards_loss(self, names: Collection[str]) -> Iterator[Call]:
        """Yield the calls that lead from parameters to the differentiated values.

        The walk ends at calls whose results have no gradient; these are yielded too.
        """
        waiting = self._values_of(names)
        seen: set[int] = set()
        while waiting:
            for call in self._step.users(waiting.pop(0)):
                if id(call) in seen or id(call) not in self.reach:
                    continue
                seen.add(id(call))
                yield call
                waiting += [x for x in call.outputs if x.requires_grad]

    def cut(self, names: Collection[str]) -> Call | None:
        """Return the call at which the graph from parameters to the loss ends, or ``None``.

        A call between a layer that has a graph and a value that leaves torch, as for NumPy, counts
        if no path reaches the loss.
        """
        for call in self.towards_loss(names):
            if not any(x.requires_grad for x in call.outputs):
                return call
        for call in self.after(self._values_of(names)):
            inputs = any(x.requires_grad for x in call.inputs)
            if inputs and not any(x.requires_grad for x in call.outputs):
                return call
        return None

    def _values_of(self, names: Collection[str]) -> list[Value]:
        return [value for name in names for value in self._step.values_of(name)]


def parameters_behind(value: Value, without: Call | None = None) -> set[str]:
    """Return the names of the parameters from which a way with a gradient leads to a value.

    Args:
        value: The value.
        without: A call that ways may not pass.
    """
    waiting, seen, found = [value], set(), set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen or not value.requires_grad:
            continue
        seen.add(id(value))
        if value.parameter is not None:
            found.add(value.parameter)
        elif value.call is not None and value.call is not without:
            waiting += value.call.inputs
    return found
