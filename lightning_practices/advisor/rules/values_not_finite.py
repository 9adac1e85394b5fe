"""Inputs and targets with nan or infinite values."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_practices.advisor._entries import (
    Entry,
    entries,
    handles_missing,
    inputs_of,
    is_as_loaded,
    targets_of,
)
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP301", "error",
    practice="Inputs and targets are finite",
    measures="nan and infinite values that a first layer or a loss receives",
    healthy="none, or handled: the loss and the gradients are finite",
    source="Islam et al. 2019, a comprehensive study on deep learning bug characteristics",
    explained_by=("LP405",),
)  # fmt: skip
def values_not_finite(seen: Observation) -> Iterator[Evidence]:
    found = [(entry, "goes into") for entry in inputs_of(seen)]
    found += [(entry, "is the target of") for _, entry in targets_of(seen)]
    for entry, use in found:
        tensor = entry.value.tensor
        if tensor is not None and not _is_finite(tensor):
            if _step_is_broken(seen):
                yield _evidence(entry, use, [tensor], "a training step")
        elif entry.source is not None and not handles_missing(seen):
            for tensors, where in _others(seen, entry.source):
                if not all(_is_finite(x) for x in tensors):
                    yield _evidence(entry, use, tensors, where)
                    break


def _is_finite(x: Tensor) -> bool:
    # The sum takes a fraction of the time, and is infinite only if it overflows.
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


def _step_is_broken(seen: Observation) -> bool:
    step = seen.step
    losses = [root.statistics for root in step.roots if root.statistics is not None]
    gradients = [one for one in step.gradients.values() if one is not None]
    return any(one.finite < 1 for one in losses) or any(math.isnan(one.norm) for one in gradients)


def _others(seen: Observation, source: str) -> Iterator[tuple[list[Tensor], str]]:
    for split, name in ((seen.train, "training"), (seen.validation, "validation")):
        if split is None:
            continue
        tensors = entries(split, source)
        yield [x for x in tensors if x.is_floating_point()], f"the first {name} batches"
        column = split.samples.column(source) if split.samples is not None else None
        is_float = column is not None and column.is_floating_point()
        if column is not None and is_float and is_as_loaded(split, source):
            yield [column], f"the {name} samples"


def _evidence(entry: Entry, use: str, tensors: list[Tensor], where: str) -> Evidence:
    bad = sum(int((~torch.isfinite(x)).sum()) for x in tensors)
    total = sum(x.numel() for x in tensors)
    return Evidence(
        f"{entry} {use} {entry.call} and has {bad} nan or infinite values among the {total} of"
        f" {where}: the loss and all weights become nan",
        "remove or fill the missing values where the data is made, as in x = torch.nan_to_num(x)",
        (entry.call.module,) if entry.call.module else (),
        {"not finite": bad / total},
    )
