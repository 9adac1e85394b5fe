"""Gradients that are exactly zero, as a function has no slope."""

from collections.abc import Iterator

from lightning_practices._names import count, some
from lightning_practices.advisor._gradient_paths import STEPS, Paths
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._parameters import (
    concerned,
    is_stepped,
    optimized,
    outermost,
    trainable,
)
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call


@rule(
    "LP109", "error",
    practice="Gradients aren't exactly zero",
    measures="parameters whose gradients are 0 in all of the first steps, and the function without"
    " a slope between them and the loss",
    healthy="above 0 in one of the steps; 0 behind weights that begin at zero or a term whose"
    " factor is 0",
    source="questions about round and sign in a loss; Bengio, Léonard and Courville, 2013,"
    " Estimating or propagating gradients through stochastic neurons",
    explained_by=("LP204", "LP205", "LP226", "LP402", "LP404", "LP405"),
)  # fmt: skip
def gradient_is_zero(seen: Observation) -> Iterator[Evidence]:
    places = optimized(seen)
    names = [
        name
        for name in trainable(seen)
        if is_stepped(seen, name, places)
        and any(step.gradients.get(name) is not None for step in seen.steps)
        and all((found := step.gradients.get(name)) is None or found.zero for step in seen.steps)
    ]
    paths = Paths(seen.step)
    by_cause: dict[int, tuple[Call, list[str]]] = {}
    for name in names:
        way = list(paths.towards_loss([name]))
        if any(_is_factor_zero(call) for call in way):
            continue
        flat = next((call for call in way if call.name in STEPS), None)
        if flat is not None:
            by_cause.setdefault(flat.index, (flat, []))[1].append(name)
    for call, own in by_cause.values():
        modules = tuple(dict.fromkeys([*concerned(seen, own), *filter(None, [call.module])]))
        yield Evidence(
            f"Gradients of {count(len(own), 'parameter')} of {some(outermost(seen, own))} are"
            f" exactly 0 in {count(len(seen.steps), 'step')}: {call} has no slope",
            f"remove {call.name}, or pass gradients straight through:"
            f" x + ({call.name}(x) - x).detach()",
            modules,
            {"parameters": len(own), "steps": len(seen.steps)},
        )


def _is_factor_zero(call: Call) -> bool:
    return call.name in ("mul", "__mul__", "__rmul__", "add", "sub") and any(
        isinstance(x, int | float) and x == 0 for x in (*call.args, call.kwargs.get("alpha", 1))
    )
