"""A step that ends with an exception whose cause is known."""

from collections.abc import Iterator

from lightning_practices.advisor._failures import explanation_of, shown
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP250", "error",
    practice="A step runs to its end",
    measures="the exception of the first steps: devices, dtypes, shapes, indices, graphs",
    healthy="none",
    source="the texts of torch's exceptions; questions on forums about them",
)  # fmt: skip
def failed_step(seen: Observation) -> Iterator[Evidence]:
    if seen.failure is None or (why := explanation_of(seen.failure)) is None:
        return
    place = f"at {seen.failed_at}" if seen.failed_at else "outside of the user's lines"
    yield Evidence(
        f"the fit fails {place}: {why.cause}. The exception is {shown(seen.failure)}", why.remedy
    )
