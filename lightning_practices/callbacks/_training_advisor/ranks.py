"""Looks of several ranks as one."""

import math
from collections.abc import Sequence
from statistics import fmean

from lightning_practices.advisor import ActivationLook, BatchLook, Look, LossLook, WeightLook


def merged(looks: Sequence[Look]) -> Look:
    """Return one look for those of all ranks at a step.

    Root mean squares and shares are averaged, so that equal copies stay as they are, and shards
    count together. A unit is dead if it is so on all ranks.
    """
    first = looks[0]
    if len(looks) == 1:
        return first
    is_whole = all(look.is_whole for look in looks)
    found = Look(first.step, norms=first.norms, is_whole=is_whole)
    for name in dict.fromkeys(name for look in looks for name in look.weights):
        found.weights[name] = _weight(
            [look.weights[name] for look in looks if name in look.weights]
        )
    if all(len(look.activations) == len(first.activations) for look in looks):
        sets = zip(*(look.activations for look in looks), strict=True)
        found.activations = [_activation(same) for same in sets]
    if all(len(look.losses) == len(first.losses) for look in looks):
        found.losses = [_loss(same) for same in zip(*(look.losses for look in looks), strict=True)]
    batches = [look.batch for look in looks if look.batch is not None]
    if batches:
        sums = tuple(x for one in batches for x in one.sums)
        found.batch = BatchLook(
            sums, min(one.equal for one in batches), batches[0].samples,
            all(one.is_constant for one in batches),
        )  # fmt: skip
    return found


def _weight(same: Sequence[WeightLook]) -> WeightLook:
    def together(values: Sequence[float]) -> float:
        return math.sqrt(fmean(x * x for x in values))

    return same[0]._replace(
        gradient=together([one.gradient for one in same]),
        weight=together([one.weight for one in same]),
        update=together([one.update for one in same]),
    )


def _activation(same: Sequence[ActivationLook]) -> ActivationLook:
    dead = set(same[0].dead).intersection(*(one.dead for one in same))
    saturated = fmean(one.saturated for one in same)
    return same[0]._replace(dead=tuple(sorted(dead)), saturated=saturated)


def _loss(same: Sequence[LossLook]) -> LossLook:
    classes = max(one.classes for one in same)
    if len({one.first_class for one in same}) > 1:
        classes = max(classes, 2)  # the batches of the ranks together
    return same[0]._replace(
        value=fmean(one.value for one in same),
        prior=fmean(one.prior for one in same),
        classes=classes,
        is_data=all(one.is_data for one in same),
        total=fmean(one.total for one in same),
    )
