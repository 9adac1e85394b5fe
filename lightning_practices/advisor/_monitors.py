"""The callbacks and schedules of a fit that monitor a logged value."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_practices.advisor._fit import callbacks_of
from lightning_practices.advisor._observation import Observation


class Monitor(NamedTuple):
    """A value that something monitors.

    Attributes:
        owner: The callback or scheduler.
        name: Name of the value; empty if there is none.
        mode: ``"min"`` or ``"max"``.
        is_strict: Whether a value that nothing logs ends the fit with an error.
    """

    owner: Any
    name: str
    mode: str
    is_strict: bool

    @property
    def title(self) -> str:
        """The name of the owner's class."""
        return type(self.owner).__name__


def early_stops_of(seen: Observation) -> list[Monitor]:
    """Return the values that early stopping monitors."""
    found = []
    for one in callbacks_of(seen, LightningEarlyStopping):
        parts: list[Any] = [one, *getattr(one, "_others", ())]  # one for each of several values
        found += [Monitor(one, part.monitor, part.mode, one.strict) for part in parts]
    return found


def monitors_of(seen: Observation) -> Iterator[Monitor]:
    """Yield all values that are monitored."""
    yield from early_stops_of(seen)
    for one in callbacks_of(seen, ModelCheckpoint):
        if one.monitor is not None:
            yield Monitor(one, one.monitor, one.mode, True)
    if seen.module.automatic_optimization:
        for config in seen.schedulers:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                mode = config.scheduler.mode
                yield Monitor(config.scheduler, config.monitor or "", mode, config.strict)
