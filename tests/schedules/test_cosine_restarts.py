"""The cosine that starts anew."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LambdaLR

from lightning_practices.schedules import cosine_restarts, cycle_of


@pytest.mark.parametrize(("steps", "cycles"), [(12, 3), (20, 1), (8, 8), (100, 5)])
def test_it_is_the_papers_equation_and_torchs_schedule(steps: int, cycles: int) -> None:
    factor, length = cosine_restarts(steps, cycles), math.ceil(steps / cycles)
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = CosineAnnealingWarmRestarts(optimizer, T_0=length)
    for t in range(1, 2 * steps + 1):  # the paper counts from 1
        paper = (math.cos(math.pi * ((t - 1) % length) / length) + 1) / 2
        assert factor(t - 1) == pytest.approx(paper, rel=1e-12, abs=1e-15)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(paper, rel=1e-9, abs=1e-12)
        optimizer.step()
        torchs.step()


@pytest.mark.parametrize(("steps", "cycles"), [(10, 4), (12, 5), (11, 10), (7, 3), (101, 6)])
def test_where_cycles_do_not_divide_steps_their_lengths_differ_by_one(
    steps: int, cycles: int
) -> None:
    factor = cosine_restarts(steps, cycles)
    starts = [t for t in range(steps + 1) if factor(t) == 1]
    assert len(starts) == cycles + 1
    assert (starts[0], starts[-1]) == (0, steps)
    lengths = [b - a for a, b in pairwise(starts)]
    assert max(lengths) - min(lengths) == 1
    for cycle, (start, length) in enumerate(zip(starts, lengths, strict=False)):
        for i in range(length):
            assert cycle_of(start + i, steps, cycles) == cycle
            assert factor(start + i) == pytest.approx((1 + math.cos(math.pi * i / length)) / 2)
    assert cycle_of(steps, steps, cycles) == cycles
    assert [factor(t) for t in range(steps)] == [factor(t + 3 * steps) for t in range(steps)]


def test_groups_keep_their_ratios_under_lambda_lr() -> None:
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups: list[dict[str, Any]] = [{"params": weights[:1]}, {"params": weights[1:], "lr": 0.01}]
    optimizer = SGD(groups, lr=0.1)
    scheduler = LambdaLR(optimizer, cosine_restarts(9, 2))
    for t in range(9):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == [base * cosine_restarts(9, 2)(t) for base in (0.1, 0.01)]
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((0, 1), "steps has to be a whole number from 1 on, but got 0"),
        ((1.5, 1), "steps has to be a whole number"),
        ((10, 0), "cycles has to be a whole number from 1 on, but got 0"),
        ((10, True), "cycles has to be a whole number"),
        ((3, 4), "each cycle takes a step at least, but got 4 in 3 steps"),
    ],
)
def test_bad_arguments(arguments: Any, match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        cosine_restarts(*arguments)
