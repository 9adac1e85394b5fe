"""Batches that hold the same samples, and training that waits for them."""

from collections.abc import Iterator

from lightning_practices.advisor._looks import BatchLook
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._run import Run

_LOOKS = 4
_EQUAL = 0.9  # of the samples of a batch
_SAMPLES = 8  # in a batch
_FEWEST = 2  # in a batch whose classes are counted
_WAITED = 0.3


@rule(
    "LP817", "warning",
    practice="Batches hold different samples",
    measures="a batch's samples that equal the first one; the classes in it",
    healthy="at most half of a batch's samples are equal, several classes; batches of one number,"
    " where a step makes its own samples",
    source="Zinkevich et al., 2011; questions on datasets that ignore their index, and on sorted"
    " data without shuffling",
)  # fmt: skip
def samples_alike(run: Run) -> Iterator[Evidence]:
    looks = run.looks[-2 * _LOOKS :]
    batches = _batches(run)
    if not batches:
        return
    if _has_equal_samples(batches):
        yield Evidence(
            f"{batches[-1].equal:.0%} of the samples of each batch looked at are equal",
            "look whether the dataset's __getitem__ uses its index",
            numbers={"equal": batches[-1].equal},
        )
    if any(one.samples < _FEWEST for one in batches):
        return
    seen = [one for look in looks for one in look.losses if one.kind == "cross_entropy"]
    is_sorted = len(seen) >= _LOOKS and all(one.classes == 1 for one in seen)
    if is_sorted and len({one.first_class for one in seen}) > 1:
        yield Evidence(
            f"each of the {len(seen)} batches looked at holds one class alone, not the same in all",
            "DataLoader(..., shuffle=True)",
        )


# The whole data as one batch, such as a graph, may be given several times in an epoch on purpose.
@rule(
    "LP819", "hint",
    practice="Batches differ from each other",
    measures="sums over the tensors of each batch",
    healthy="all batches differ, or an epoch has one; a hint, since an epoch may have several steps"
    " on all of the data, as on a graph",
    source="questions on generators that begin anew for each batch; Kipf and Welling, 2017, full"
    " batches of a graph",
)  # fmt: skip
def batches_alike(run: Run) -> Iterator[Evidence]:
    batches = _batches(run)
    if not batches or run.batches == 1 or _has_equal_samples(batches):
        return
    if len({one.sums for one in batches}) == 1:
        yield Evidence(
            f"each of the {len(batches)} batches looked at holds the same numbers",
            "nothing, if a batch holds all of the data; otherwise look whether the dataset's"
            " __getitem__ uses its index, and the loader its sampler",
        )


def _batches(run: Run) -> list[BatchLook]:
    """Return the last batches, if they are enough and mean something."""
    batches = [look.batch for look in run.looks[-2 * _LOOKS :] if look.batch is not None]
    # A step that makes its own samples gets batches that mean nothing.
    is_known = len(batches) >= _LOOKS and not all(one.is_constant for one in batches)
    return batches if is_known else []


def _has_equal_samples(batches: list[BatchLook]) -> bool:
    return all(one.equal > _EQUAL and one.samples >= _SAMPLES for one in batches)


@rule(
    "LP818", "hint",
    practice="Training doesn't wait for data",
    measures="median share of the time between two steps in which the next batch is awaited",
    healthy="below 30 %, or below 2 ms",
    source="PyTorch, performance tuning guide: asynchronous data loading",
)  # fmt: skip
def waiting_for_data(run: Run) -> Iterator[Evidence]:
    if run.waited is not None and run.waited > _WAITED:
        yield Evidence(
            f"training waits for the next batch in {run.waited:.0%} of its time",
            "DataLoader(..., num_workers=4, persistent_workers=True, pin_memory=True)",
            numbers={"share": run.waited},
        )
