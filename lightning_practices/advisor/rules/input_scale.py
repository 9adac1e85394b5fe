"""Inputs that are far too large or too small."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_practices.advisor._entries import Entry, inputs_of
from lightning_practices.advisor._norms import is_normed
from lightning_practices.advisor._observation import Observation, once
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._spreads import uneven_inputs

_LARGE = 10.0  # root mean square; healthy programs: 0.02 to 7.7 (digits from 0 to 16)
# Of the elements that aren't 0, since sparse rows are not small. Healthy programs: 0.02 (rows of
# unit norm with 2048 elements) and more.
_SMALL, _RATHER_SMALL = 0.01, 0.05
_IMAGE_TOP = 255
_ELEMENTS = 1 << 20  # that are measured, at most twice


@rule(
    "LP302", "warning",
    practice="Inputs have a spread near 1",
    measures="root mean square of the input of a first layer without a norm behind it; of a small"
    " one, of the elements that aren't 0",
    healthy="0.01 to 10",
    source="LeCun et al. 1998, efficient backprop; Schoop et al. 2021, UMLAUT",
)  # fmt: skip
def input_scale(seen: Observation) -> Iterator[Evidence]:
    for entry, size in _off_scale(seen):
        if (size > _LARGE or size < _SMALL) and not is_normed(entry.call, seen.step.calls):
            yield _evidence(entry, size)


@rule(
    "LP303", "hint",
    practice="Inputs have a spread near 1",
    measures="the same, where a norm follows or the input is only rather small",
    healthy="0.05 to 10, or rows of unit norm",
    source="LeCun et al. 1998, efficient backprop",
)  # fmt: skip
def input_scale_that_training_mends(seen: Observation) -> Iterator[Evidence]:
    for entry, size in _off_scale(seen):
        if _SMALL <= size < _LARGE or is_normed(entry.call, seen.step.calls):
            yield _evidence(entry, size)


@once
def _off_scale(seen: Observation) -> list[tuple[Entry, float]]:
    """Return inputs that are too large or rather small, with their root mean square."""
    uneven = [entry for entry, _ in uneven_inputs(seen)]
    found = []
    for entry in inputs_of(seen):
        names = [name for name in entry.call.parameters if name in seen.weights]
        # A frozen layer was trained on inputs of its own scale.
        if entry in uneven or not any(seen.weights[name].is_trainable for name in names):
            continue
        step = 1 + sum(x.numel() for x in entry.tensors) // _ELEMENTS
        x = torch.cat([x.flatten()[::step] for x in entry.tensors]).float()
        x = x[torch.isfinite(x)]
        if not x.any():
            continue
        size, size_of_nonzero = (float(y.square().mean().sqrt()) for y in (x, x[x != 0]))
        if size > _LARGE:
            found.append((entry, size))
        elif size_of_nonzero < _RATHER_SMALL and not _has_unit_rows(entry):
            found.append((entry, size_of_nonzero))
    return found


def _has_unit_rows(entry: Entry) -> bool:
    x = entry.value.tensor
    if x is None or not x.dim():
        return False
    norms = torch.linalg.vector_norm(x.float(), dim=-1)
    norms = norms[norms > 0]
    return bool(norms.numel()) and bool(((norms - 1).abs() < 0.02).float().mean() > 0.9)


def _evidence(entry: Entry, size: float) -> Evidence:
    remedy = "standardise by the train split: x = (x - mean) / std"
    what = "large: its weights get large gradients and activations saturate"
    if size < _LARGE:
        what = "small: the first layer's bias outweighs it, and its weights get small gradients"
    elif any(_is_image(x) for x in entry.tensors):
        what += ". It holds whole numbers from 0 to 255"
        remedy = "x = x.float() / 255, then subtract the mean and divide by the standard deviation"
    return Evidence(
        f"{entry} goes into {entry.call} with a root mean square of {size:.3g}, which is {what}",
        remedy,
        (entry.call.module,) if entry.call.module else (),
        {"root mean square": size},
    )


def _is_image(x: Tensor) -> bool:
    x = x.float()
    is_whole = bool((x == x.round()).all())
    return is_whole and float(x.amin()) >= 0 and 100 < float(x.amax()) <= _IMAGE_TOP
