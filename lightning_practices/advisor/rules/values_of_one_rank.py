"""Validation values that each rank logs for itself."""

from collections.abc import Iterator

from lightning_practices._names import some
from lightning_practices.advisor._fit import mentions
from lightning_practices.advisor._monitors import monitors_of
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule

# Functions after which a value is that of all ranks.
_GATHER = ("all_gather", "all_reduce", "all_gather_object", "reduce")
_SOURCE = "Lightning's guide to logging: sync_dist; questions on forums about metrics under DDP"


@rule(
    "LP652", "warning",
    practice="What is monitored is the mean of all ranks",
    measures="sync_dist of the tensors that validation logs and a callback or schedule monitors,"
    " where the fit has several ranks",
    healthy="sync_dist=True, or a metric of torchmetrics",
    source=_SOURCE,
)  # fmt: skip
def monitored_value_of_one_rank(seen: Observation) -> Iterator[Evidence]:
    ranks, monitored = _ranks(seen), _monitored(seen)
    names = [name for name in _unsynced(seen) if name in monitored]
    if names:
        yield Evidence(
            f"validation logs {some(names)} without sync_dist, and {monitored[names[0]]} monitors"
            f" it: each of the {ranks} ranks decides by the value of its own samples",
            f'self.log("{names[0]}", ..., sync_dist=True)',
            numbers={"ranks": ranks},
        )


@rule(
    "LP653", "hint",
    practice="Values of validation are the mean of all ranks",
    measures="sync_dist of the tensors that validation logs and nothing monitors, where the fit has"
    " several ranks",
    healthy="sync_dist=True, or a metric of torchmetrics",
    source=_SOURCE,
)  # fmt: skip
def value_of_one_rank(seen: Observation) -> Iterator[Evidence]:
    ranks, monitored = _ranks(seen), _monitored(seen)
    names = [name for name in _unsynced(seen) if name not in monitored]
    if names:
        yield Evidence(
            f"validation logs {some(names)} without sync_dist: what is logged is the mean over the"
            f" samples of rank 0, one of {ranks}",
            f'self.log("{names[0]}", ..., sync_dist=True)',
            numbers={"ranks": ranks},
        )


def _ranks(seen: Observation) -> int:
    return 1 if seen.trainer is None else seen.trainer.world_size


def _monitored(seen: Observation) -> dict[str, str]:
    """Return the titles of what monitors values, by the names of these."""
    return {monitor.name: monitor.title for monitor in monitors_of(seen)}


def _unsynced(seen: Observation) -> list[str]:
    """Return the names of tensors that validation logs for one rank alone."""
    if _ranks(seen) < 2 or mentions(type(seen.module), *_GATHER):
        return []
    metrics = (type(one).__module__.startswith("torchmetrics") for one in seen.modules.values())
    if any(metrics) and mentions(type(seen.module), "compute"):
        return []  # which gathers the states of all ranks
    return sorted(seen.unsynced)
