"""Early stopping, a checkpoint or a schedule that takes the worst value for the best."""

from collections.abc import Iterator

from lightning_practices.advisor._metrics import direction_of
from lightning_practices.advisor._monitors import monitors_of
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP612", "warning",
    practice="The mode is the direction in which the monitored value improves",
    measures="the mode against the name of the value",
    healthy="min for losses and errors, max for scores; other names aren't judged",
    source="Lightning's EarlyStopping and ModelCheckpoint: the default mode is 'min'",
)  # fmt: skip
def monitor_mode(seen: Observation) -> Iterator[Evidence]:
    for monitor in monitors_of(seen):
        better = direction_of(monitor.name)
        if better is not None and better != monitor.mode:
            effect = {
                "EarlyStopping": "training stops while the value improves",
                "ReduceLROnPlateau": "the rate is divided while the value improves",
            }.get(monitor.title, "the worst value is taken for the best")
            yield Evidence(
                f"{monitor.title} monitors {monitor.name!r} with mode={monitor.mode!r}: {effect}",
                f'mode="{better}"',
            )
