"""Features that were standardised over training and validation samples together."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_practices.advisor._observation import Observation, Split
from lightning_practices.advisor._rule import Evidence, rule

_EXACT = 1e-3  # of means and standard deviations after a scaler; chance leaves 1 / sqrt(samples)
_FEATURES = 3  # the fewest that tell


@rule(
    "LP313", "hint",
    practice="Preprocessing is fitted on the train split alone",
    measures="mean and standard deviation of each feature, over both splits and over each",
    healthy="0 and 1 over the train split",
    source="Kaufman et al. 2012, leakage in data mining",
)  # fmt: skip
def preprocessing_fitted_on_all(seen: Observation) -> Iterator[Evidence]:
    train, val = _features(seen.train), _features(seen.validation)
    if train is None or val is None or train.shape[1:] != val.shape[1:]:
        return
    first = torch.cat([train[:, 0], val[:, 0]])
    if abs(float(first.mean())) > _EXACT or _is_standardised(train):
        return
    if _is_standardised(torch.cat([train, val])):
        off = float(train.mean(0).abs().amax())
        yield Evidence(
            "the features have mean 0 and standard deviation 1 over training and validation samples"
            f" together, and means up to {off:.2g} over the training samples: the scaler has seen"
            " the validation split",
            "split first, then scaler.fit(x_train), scaler.transform(x_train),"
            " scaler.transform(x_val)",
            numbers={"train mean": off},
        )


def _features(split: Split | None) -> Tensor | None:
    samples = split.samples if split is not None else None
    x = samples.column("batch[0]") if samples is not None else None
    if samples is None or x is None or len(x) != len(samples):
        return None
    is_tabular = x.dim() == 2 and x.is_floating_point() and x.shape[1] >= _FEATURES
    return x.double() if is_tabular else None


def _is_standardised(x: Tensor) -> bool:
    if len(x) < 3:
        return False
    x = x[:, x.amin(0) < x.amax(0)]
    if x.shape[1] < _FEATURES:
        return False
    std, mean = torch.std_mean(x, dim=0, correction=0)
    corrected = std * (len(x) / (len(x) - 1)) ** 0.5  # torch's, where sklearn's is the other
    is_one = ((std - 1).abs() < _EXACT) | ((corrected - 1).abs() < _EXACT)
    return bool(is_one.all()) and bool((mean.abs() < _EXACT).all())
