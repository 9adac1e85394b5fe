"""Loaders that let the device wait."""

from collections.abc import Iterator
from statistics import median

from lightning_practices.advisor._isolation import workers_of
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule

_FEWEST = 3  # batches that tell a time
_SECONDS = 0.002  # for a batch, at least: below, a worker costs more than it saves


@rule(
    "LP704", "hint",
    practice="Loading a batch takes less time than a step",
    measures="the median time of reading a batch, shared by the workers, and the time of a step",
    healthy="less than the step",
    source="torch.utils.data: num_workers; PyTorch performance tuning guide",
)  # fmt: skip
def slow_loader(seen: Observation) -> Iterator[Evidence]:
    times = [batch.seconds for batch in seen.train.batches[1:]]  # the first opens files
    loaders = seen.train.loaders
    if len(times) < _FEWEST or not loaders:
        return
    workers = min(workers_of(loader) for loader in loaders)
    alone = median(times)
    shared = alone / max(workers, 1)
    step = min(one.seconds for one in seen.steps)
    if shared > max(step, _SECONDS):
        needed = int(alone / step) + 1
        yield Evidence(
            f"a batch takes {1e3 * alone:.3g} ms to read in one process, and {workers} workers"
            f" share it, where a step takes {1e3 * step:.3g} ms: the device waits",
            f"DataLoader(..., num_workers={min(needed, 16)}, persistent_workers=True)",
            numbers={"seconds": alone, "step": step, "workers": workers},
        )


@rule(
    "LP705", "hint",
    practice="Batches go to a GPU from pinned memory, read by workers",
    measures="pin_memory and num_workers of the train loader, with a GPU",
    healthy="pin_memory=True, num_workers of 1 and more",
    source="PyTorch performance tuning guide",
)  # fmt: skip
def loader_for_a_gpu(seen: Observation) -> Iterator[Evidence]:
    if seen.observer.strategy.root_device.type != "cuda":
        return
    for loader in seen.train.loaders:
        missing = [] if loader.pin_memory else ["pin_memory=True"]
        missing += [] if workers_of(loader) else ["num_workers=4"]
        if missing:
            yield Evidence(
                "the train loader "
                + " and ".join(
                    "copies from memory that isn't pinned"
                    if one.startswith("pin")
                    else "reads in the process that trains"
                    for one in missing
                ),
                f"DataLoader(..., {', '.join(missing)})",
            )
