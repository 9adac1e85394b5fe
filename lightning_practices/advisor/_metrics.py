"""Monitored values: whether anything logs them, and which way is better."""

from collections.abc import Iterable
from difflib import get_close_matches

from lightning_practices._metric_names import direction_of as direction_of
from lightning_practices.advisor._fit import mentions
from lightning_practices.advisor._observation import Observation

# Methods whose texts name monitors, and don't log.
_NAMING = ("configure_optimizers", "configure_callbacks", "__init__")


def is_missing(seen: Observation, name: str) -> bool:
    """Return whether surely nothing logs a value of this name.

    A step may log it later, if a method of the module holds the name or a callback of the user's
    logs values. Then it isn't missing.
    """
    if name in ("epoch", "step") or name in seen.observer.callback_metrics:
        return False  # a checkpoint may monitor the first two always
    if name.startswith("lr-"):  # of LearningRateMonitor
        return False
    if not name or f"{name}/dataloader_idx_0" in seen.observer.callback_metrics:
        return True  # Lightning adds the loader to names where there are several
    if seen.validation_step is None and not name.startswith("train"):
        return False  # the data that was given has no validation split
    if mentions(type(seen.module), name, apart_from=_NAMING):
        return False
    own = [type(one) for one in seen.callbacks if not _is_of_library(type(one))]
    return not any(mentions(kind, "log", "log_dict", "callback_metrics") for kind in own)


def logged(seen: Observation, name: str) -> str:
    """Return the logged names, the one that resembles ``name`` first, as text."""
    names = list(seen.observer.callback_metrics)
    near = get_close_matches(name, names, cutoff=0.5)
    return ", ".join(near or _shortest(names)) or "none"


def _shortest(names: Iterable[str]) -> list[str]:
    return sorted(names, key=len)[:5]


def _is_of_library(kind: type) -> bool:
    names = ("lightning.", "pytorch_lightning.", "lightning_practices.")
    return kind.__module__.startswith(names)
