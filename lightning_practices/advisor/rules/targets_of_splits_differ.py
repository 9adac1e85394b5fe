"""Regression targets in another unit in validation than in training."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_practices.advisor._entries import spread_entries, targets_of
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import layer_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import REGRESSION, Loss, losses_of

_RATIO = 5.0  # of the spreads
_FEWEST = 16


@rule(
    "LP346", "warning",
    practice="Training and validation targets are scaled alike",
    measures="standard deviation and distance of the quartiles of a regression target in both"
    " splits, where a layer's output is compared with it in both steps",
    healthy="within a factor of 5; other units where the prediction is scaled back too",
    source="Breck et al. 2019, data validation for machine learning (training-serving skew)",
)  # fmt: skip
def targets_of_splits_differ(seen: Observation) -> Iterator[Evidence]:
    if seen.validation is None or seen.validation_step is None:
        return
    # What a validation step logs isn't returned, so that its losses aren't known by its results.
    scalars = [
        call.output for call in seen.validation_step.calls if call.outputs and not call.output.shape
    ]
    others = {layer_of(loss.prediction): loss for loss in _direct(losses_of(scalars))}
    direct = {id(loss) for loss in _direct(seen.step.losses)}
    for loss, entry in targets_of(seen):
        other = others.get(layer_of(loss.prediction))
        if id(loss) not in direct or entry.source is None or other is None:
            continue
        if other.target.origin().source != entry.source:
            continue
        train, val = (spread_entries(one, entry.source) for one in (seen.train, seen.validation))
        spreads = [
            _spreads(torch.cat([x.flatten() for x in each])) for each in (train, val) if each
        ]
        if len(spreads) < 2 or not all(min(each) > 0 for each in spreads):
            continue
        (std, quartiles), (val_std, val_quartiles) = spreads
        ratio = max(std, val_std) / min(std, val_std)
        if min(ratio, max(quartiles, val_quartiles) / min(quartiles, val_quartiles)) > _RATIO:
            yield Evidence(
                f"the target of {loss.call} has a standard deviation of {std:.3g} in training and"
                f" {val_std:.3g} in validation, and the output is compared with both: the"
                " validation loss is in another unit",
                "apply the same scaling, fitted on the train split, to the targets of both splits",
                tuple(filter(None, [layer_of(loss.prediction)])),
                {"train std": std, "val std": val_std},
            )


def _direct(losses: list[Loss]) -> list[Loss]:
    """Return the regression losses of a layer's output, with no scaling between."""
    found = [loss for loss in losses if loss.kind in REGRESSION]
    return [
        loss for loss in found if (maker := loss.prediction.maker()) is not None and maker.is_layer
    ]


def _spreads(x: Tensor) -> tuple[float, float]:
    """Return the standard deviation and the distance of the quartiles; 0 for few elements."""
    x = x.double()
    x = x[torch.isfinite(x)]
    if len(x) < _FEWEST:
        return 0.0, 0.0
    ordered = x.sort().values
    return float(x.std()), float(ordered[3 * len(x) // 4] - ordered[len(x) // 4])
