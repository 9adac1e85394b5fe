"""The size of batches."""

import math
from collections.abc import Iterator

from torch import nn

from lightning_practices.advisor._entries import targets_of
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule

_LECTURE, _WITH_NORMS = 32, 64  # samples of a batch, by the lecture
_FEW = 20  # steps of an epoch: 50 and more in the recipes of torchvision
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@rule(
    "LP633", "hint",
    practice="The batch size leaves many steps to an epoch",
    measures="batch size and steps of an epoch, where a loss has a target from the batch",
    healthy="32 or less, 64 or less with batch norm, or 20 steps and more",
    source="lecture S3; Masters and Luschi, 2018, arXiv:1804.07612; the Deep Learning Tuning"
    " Playbook, which takes the opposite view",
)  # fmt: skip
def large_batches(seen: Observation) -> Iterator[Evidence]:
    if not any(entry.source is not None for _, entry in targets_of(seen)):
        return  # more samples are better negatives, or make the estimate of a density less noisy
    limit = _WITH_NORMS if _norms(seen) else _LECTURE
    sizes = [one.batch_size for one in seen.train.loaders if one.batch_size is not None]
    batches = seen.observer.num_training_batches
    if sizes and max(sizes) > limit and math.isfinite(batches) and batches < _FEW:
        yield Evidence(
            f"batches of {max(sizes)} samples leave {batches} steps to an epoch. Lecture S3"
            f" advises {limit} or less, for more and noisier steps; the tuning playbook as many as"
            " the accelerator takes, with a rate that is tuned for them",
            f"DataLoader(..., batch_size={limit}), or more epochs with a rate tuned for"
            f" {max(sizes)}",
            numbers={"batch_size": max(sizes), "steps": batches},
        )


@rule(
    "LP634", "hint",
    practice="Batch norm sees as many samples as a step",
    measures="accumulate_grad_batches of the Trainer and batch norms in training mode",
    healthy="one of them alone",
    source="Hoffer et al., 2017, arXiv:1705.08741",
)  # fmt: skip
def accumulation_with_batch_norm(seen: Observation) -> Iterator[Evidence]:
    accumulated = 1 if seen.trainer is None else seen.trainer.accumulate_grad_batches
    if accumulated > 1 and (names := _norms(seen)):
        yield Evidence(
            f"a step takes {accumulated} batches, and batch norms compute their statistics over one"
            " batch: accumulation doesn't make them better",
            "nn.GroupNorm in their place, or larger batches",
            tuple(names),
        )


def _norms(seen: Observation) -> list[str]:
    return [
        name
        for name, module in seen.modules.items()
        if isinstance(module, _NORMS) and seen.step.modes.get(name, False)
    ]
