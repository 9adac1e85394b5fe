"""Validation data that is preprocessed in another way than training data."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_practices.advisor._entries import sources_before, spread_entries
from lightning_practices.advisor._kinds import NORMS
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call, Value

# Ratio of the spreads. Healthy programs: up to 1.2. Images with and without Normalize(0.5, 0.5)
# have 2.
_RATIO = 1.8
_GREAT_RATIO = 4.0  # where only the steps differ: 3 in four were masked, noise of twice the spread
_APART = 1.0  # distance of the means in standard deviations; healthy programs: up to 0.3
_ROWS = 8


@rule(
    "LP311", "warning",
    practice="Training and validation data are preprocessed alike",
    measures="mean and standard deviation of the input of a first layer in a training and in a"
    " validation step, of all elements and of each feature or channel",
    healthy="means less than 1 standard deviation apart, spreads within a factor of 1.8",
    source="Breck et al. 2019, data validation for machine learning (training-serving skew)",
)  # fmt: skip
def splits_differ(seen: Observation) -> Iterator[Evidence]:
    if seen.validation is None or len(seen.validation.loaders) > 1:
        return  # further loaders may hold other domains on purpose
    for call, train, val in _pairs(seen):
        if train.tensor is None or val.tensor is None or not train.tensor.is_floating_point():
            continue
        found = _difference(train.tensor, val.tensor)
        if found is None:
            continue
        (mean, std), (val_mean, val_std) = found
        is_great = max(std, val_std) > _GREAT_RATIO * min(std, val_std) and not _is_normed(train)
        if not is_great and not _batches_differ(seen, train):
            continue  # noise or masks that the training step adds
        yield Evidence(
            f"{call} gets inputs of mean {mean:.3g} and standard deviation {std:.3g} in training,"
            f" and of mean {val_mean:.3g} and standard deviation {val_std:.3g} in validation:"
            " the model is validated on data that it was not trained for",
            "apply the same preprocessing (ToTensor, Normalize, a scaler fitted on the train split)"
            " to both splits",
            (call.module,) if call.module else (),
            {"train mean": mean, "train std": std, "val mean": val_mean, "val std": val_std},
        )


def _pairs(seen: Observation) -> Iterator[tuple[Call, Value, Value]]:
    """Yield the first layers that run in both steps, with both inputs."""
    if seen.validation_step is None:
        return
    others: dict[str, Value] = {}
    for call, value in seen.validation_step.first_layers:
        others.setdefault(call.module, value)
    for call, value in seen.step.first_layers:
        other = others.pop(call.module, None)
        if other is not None and sources_before(value) == sources_before(other):
            yield call, value, other


def _is_normed(value: Value) -> bool:
    """Whether a norm came before, whose statistics at evaluation only training makes."""
    return any(call.name in NORMS for call in value.before())


def _batches_differ(seen: Observation, value: Value) -> bool:
    """Whether the entries of the batches that lead to an input differ too, in several batches."""
    assert seen.validation is not None
    for source in sources_before(value):
        train, val = (spread_entries(one, source) for one in (seen.train, seen.validation))
        pairs = [(x, y) for x in train[:1] for y in val[:1]]
        if len({x.shape[1:] for x in (*train, *val)}) == 1 and min(len(train), len(val)) > 0:
            pairs = [(torch.cat(train), torch.cat(val))] if train[0].dim() else []
        if any(_difference(x, y) is not None for x, y in pairs if x.dim() > 1):
            return True
    return False


_Moments = tuple[float, float]


def _difference(train: Tensor, val: Tensor) -> tuple[_Moments, _Moments] | None:
    """Return mean and standard deviation of both, if they differ."""
    if min(len(train), len(val)) < _ROWS or train.is_complex():
        return None
    train, val = train.float(), val.float()
    if not (torch.isfinite(train).all() and torch.isfinite(val).all()):
        return None
    (std, mean), (val_std, val_mean) = torch.std_mean(train), torch.std_mean(val)
    if not std or not val_std or not _differ(std, mean, val_std, val_mean):
        return None
    axes = {2: (0,), 4: (0, 2, 3), 5: (0, 2, 3, 4)}.get(train.dim())
    if axes is not None and train.dim() == val.dim() and train.shape[1] == val.shape[1]:
        moments = [*torch.std_mean(train, axes), *torch.std_mean(val, axes)]
        varies = (moments[0] > 0) & (moments[2] > 0)
        differs = _differ(*moments)[varies]
        if not differs.numel() or differs.float().mean() <= 0.5:
            return None
    return (float(mean), float(std)), (float(val_mean), float(val_std))


def _differ(std: Tensor, mean: Tensor, val_std: Tensor, val_mean: Tensor) -> Tensor:
    larger = torch.maximum(std, val_std)
    ratio = larger / torch.minimum(std, val_std)
    # A drift moves the mean of one feature: the spread of all features moves with preprocessing.
    return (ratio > _RATIO) | ((mean - val_mean).abs() > _APART * larger)
