"""Training without validation data."""

from collections.abc import Iterator

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP326", "hint",
    practice="A validation split tells when to stop",
    measures="whether there is a validation loader and a validation step",
    healthy="both",
    source="Prechelt 1998, early stopping, but when?",
)  # fmt: skip
def no_validation(seen: Observation) -> Iterator[Evidence]:
    if seen.validation is None and not _is_empty(seen):
        yield Evidence(
            "no validation step ran: there is no loader of a validation split, or no"
            " validation_step, so nothing shows overfitting",
            "train, val = torch.utils.data.random_split(dataset, [0.8, 0.2]), and a validation_step"
            " that logs the loss",
        )


@rule(
    "LP327", "warning",
    practice="The validation split has samples",
    measures="the number of batches of the validation loader",
    healthy="one and more",
    source="reports of callbacks that miss a metric that was never logged",
)  # fmt: skip
def empty_validation(seen: Observation) -> Iterator[Evidence]:
    if _is_empty(seen):
        yield Evidence(
            "the validation loader has no batch: validation_step never runs, and metrics that"
            " callbacks monitor are never logged",
            "look at the sizes of the split; drop_last=False keeps a split smaller than a batch",
        )


def _is_empty(seen: Observation) -> bool:
    loaders = seen.observer.val_dataloaders
    nothing = seen.validation is None or not seen.validation.batches
    return loaders is not None and nothing and hasattr(loaders, "__len__") and len(loaders) == 0
