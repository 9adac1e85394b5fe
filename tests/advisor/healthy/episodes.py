"""Healthy value functions: ends that are used in other ways, and ends that aren't ones."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.advisor.faulty.episodes import critic, named
from tests.advisor.faulty.values import DISCOUNT, Values, transitions
from tests.advisor.programs import Arguments, healthy, mlp


@healthy
def episodes_that_are_only_cut() -> Arguments:
    """A task without an end: a cut at the limit of time has a next value."""
    return Values(critic, 1), named("truncated")


class Cut(Values):
    """The critic of an actor, in a task without an end: the last member is a cut."""

    def __init__(self) -> None:
        super().__init__(None, 1)  # type: ignore[arg-type]
        self.actor = mlp(4, 32, 3)
        self.net, self.target = mlp(7, 32, 1), mlp(7, 32, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        s, a, r, s2, _truncated = batch
        return self.error(s, a, r, s2)

    def error(self, s: Tensor, a: Tensor, r: Tensor, s2: Tensor) -> Tensor:
        with torch.no_grad():
            after = self.target(torch.cat([s2, self.actor(s2)], dim=1))[:, 0]
        given = functional.one_hot(a, 3)
        value = self.net(torch.cat([s, given], dim=1))[:, 0]
        return functional.mse_loss(value, r + DISCOUNT * after)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net.parameters(), 1e-3)


@healthy
def cut_in_a_tuple() -> Arguments:
    return Cut(), transitions()


@healthy
def cut_in_a_tuple_without_a_name() -> Arguments:
    class Unnamed(Cut):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.error(*batch[:4])

    return Unnamed(), transitions()


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
