"""Ways between the calls of a step."""

from collections import Counter
from collections.abc import Collection, Iterator

from lightning_practices.advisor._kinds import PASSED
from lightning_practices.advisor._observation import Step
from lightning_practices.advisor._trace import Call, Value


def before(value: Value, passed: Collection[str] = ()) -> Iterator[Call]:
    """Yield the calls that lead to a value in a single line, the nearest first.

    The first is the call that made its elements. The line goes on through the data of calls whose
    names are in ``passed``, and ends with the first other call, which is yielded too.
    """
    call = value.maker()
    while call is not None:
        yield call
        if call.name not in passed or not call.inputs:
            return
        data = [x for x in call.inputs if x.origin().parameter is None]
        call = data[0].maker() if data else None


def is_external(value: Value) -> bool:
    """Return whether no parameter has a part in a value, as in one of the targets."""
    return not value.requires_grad and not any(call.parameters for call in value.before())


def uses_of(step: Step) -> Counter[int]:
    """Return how many calls use each value, views and copies not counted, by ``id`` of its origin.

    A view doesn't count, as its own uses are counted.
    """
    return Counter(
        place
        for call in step.calls
        if call.name not in PASSED
        for place in {id(x.origin()) for x in call.inputs}
    )


def layers_of(step: Step) -> list[Call]:
    """Return the calls of layers with parameters on data."""
    return [call for call in step.calls if call.is_layer and call.data]
