"""Healthy value functions: ends that are used in other ways, and ends that aren't ones."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.advisor.faulty.episodes import critic, named
from tests.advisor.faulty.values import DISCOUNT, Values, transitions
from tests.advisor.programs import Arguments, healthy


@healthy
def episodes_that_are_only_cut() -> Arguments:
    """A task without an end: a cut at the limit of time has a next value."""
    return Values(critic, 1), named("truncated")


@healthy
def flags_of_something_else() -> Arguments:
    return Values(critic, 1), named("is_expert")


@healthy
def values_set_to_zero_at_the_end() -> Arguments:
    def step(module: Any, batch: Any) -> Tensor:
        state, action, reward, follows, is_over = batch
        with torch.no_grad():
            values = module.target(follows)
            values[is_over.bool()] = 0.0
            target = reward + DISCOUNT * values.max(dim=1).values
        value = module.net(state).gather(1, action[:, None])[:, 0]
        return functional.mse_loss(value, target)

    return Values(step), transitions()


@healthy
def ends_that_python_reads() -> Arguments:
    """A target for each sample, in a loop."""

    def step(module: Any, batch: Any) -> Tensor:
        state, action, reward, follows, is_over = batch
        with torch.no_grad():
            best = module.target(follows).amax(dim=1)
        ends = [bool(one) for one in is_over.tolist()]
        targets = [
            r if end else r + DISCOUNT * after
            for r, after, end in zip(reward, best, ends, strict=True)
        ]
        value = module.net(state).gather(1, action[:, None])[:, 0]
        return functional.mse_loss(value, torch.stack(targets))

    return Values(step), transitions()


@healthy
def regression_beside_a_flag() -> Arguments:
    """A flag that nothing reads, and a target without a later value."""

    def step(module: Any, batch: Any) -> Tensor:
        state, _, reward, _, _ = batch
        return functional.mse_loss(module.net(state)[:, 0], 0.9 * reward + 0.1)

    return Values(step), transitions()
