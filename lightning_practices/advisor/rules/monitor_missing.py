"""Early stopping, a checkpoint or a schedule that monitors a value which nothing logs."""

from collections.abc import Iterator

from lightning_practices.advisor._metrics import direction_of, is_missing, logged
from lightning_practices.advisor._monitors import monitors_of
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP611", "error",
    practice="What is monitored is logged",
    measures="names of monitored values against those that the steps have logged",
    healthy="each name is logged, or is in the code of a method that may log it later",
    source="Lightning's guide to logging; questions about 'val_loss' that is not available",
)  # fmt: skip
def monitor_missing(seen: Observation) -> Iterator[Evidence]:
    for monitor in monitors_of(seen):
        if not is_missing(seen, monitor.name):
            continue
        names = logged(seen, monitor.name)
        fitting = [one for one in names.split(", ") if direction_of(one) == monitor.mode]
        fitting.sort(key=lambda name: not name.startswith("val"))
        # A name that resembles the wrong one comes first; where there is none, the mode tells.
        best = names.partition(",")[0] if monitor.name or not fitting else fitting[0]
        what = f"monitors {monitor.name!r}" if monitor.name else "has no monitor"
        then = "fails" if monitor.is_strict else "goes on without it"
        yield Evidence(
            f"{monitor.title} {what}, and the steps log {names}: the fit {then}",
            f'monitor="{best}"'
            if names != "none"
            else 'self.log("val_loss", loss) in validation_step',
        )
