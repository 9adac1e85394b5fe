"""Read what a module configures: its callbacks, and the monitors of its schedules."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_practices._packages import either


def callbacks_of_module(model: LightningModule) -> list[Callback]:
    """Return the callbacks that a copy of a module configures; none if it needs its Trainer."""
    try:
        found: Any = model.configure_callbacks()
    except Exception:
        return []
    found = [found] if isinstance(found, either(Callback)) else found
    return [one for one in found or () if isinstance(one, either(Callback))]


def with_monitors(configured: Any) -> Any:
    """Return the result of ``configure_optimizers`` with a monitor for each plateau schedule.

    Lightning refuses a plateau schedule without a monitor. One without gets the monitor ``""``,
    which no step logs, so that the steps run and a rule reports it.
    """
    if isinstance(configured, Mapping):
        return _completed(configured)
    if isinstance(configured, list | tuple):
        if len(configured) == 2 and isinstance(configured[0], list):
            optimizers, schedules = configured
            schedules = schedules if isinstance(schedules, list) else [schedules]
            return optimizers, [_with_monitor(each, None) for each in schedules]
        return type(configured)(
            _completed(each) if isinstance(each, Mapping) else each for each in configured
        )
    return configured


def _completed(configured: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(configured)
    if "lr_scheduler" in found:
        found["lr_scheduler"] = _with_monitor(found["lr_scheduler"], found.get("monitor"))
    return found


def _with_monitor(schedule: Any, monitor: str | None) -> Any:
    is_named = isinstance(schedule, Mapping)
    scheduler = schedule.get("scheduler") if is_named else schedule
    if not isinstance(scheduler, ReduceLROnPlateau):
        return schedule
    given = dict(schedule) if is_named else {"scheduler": scheduler, "monitor": monitor}
    return given | {"monitor": given.get("monitor") or ""}
