"""Value functions of reinforcement learning whose targets have a gradient."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from tests.advisor.programs import Arguments, Task, faulty, mlp

DISCOUNT = 0.99


def transitions() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return loaders of states, actions, rewards, next states, and ends of episodes."""
    draw = torch.Generator().manual_seed(0)
    state = torch.randn(640, 4, generator=draw)
    action = torch.randint(2, (640,), generator=draw)
    follows = 0.9 * state + 0.1 * torch.randn(640, 4, generator=draw)
    reward = state[:, 0] * (2.0 * action - 1) + 0.1 * torch.randn(640, generator=draw)
    is_over = (torch.rand(640, generator=draw) < 0.1).float()
    columns = (state, action, reward, follows, is_over)
    train, val = (TensorDataset(*[x[part] for x in columns])
                  for part in (slice(512), slice(512, None)))  # fmt: skip
    return DataLoader(train, 64, shuffle=True), DataLoader(val, 64)


class Values(Task):
    """A network of values, and a copy of it; the loss is a function of the module and the batch."""

    def __init__(self, step: Callable[[Any, Any], Tensor], outputs: int = 2) -> None:
        super().__init__(mlp(4, 32, outputs))
        self.step = step
        self.target = copy.deepcopy(self.net)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(self, batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.step(self, batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net.parameters(), 1e-3)


def q_learning(module: Any, batch: Any) -> Tensor:
    """Return the loss of Q-learning with a detached target."""
    state, action, reward, follows, is_over = batch
    best = module.target(follows).max(dim=1).values.detach()
    target = reward + DISCOUNT * (1 - is_over) * best
    return functional.smooth_l1_loss(module.net(state).gather(1, action[:, None])[:, 0], target)


def _mended() -> Arguments:
    return Values(q_learning), transitions()


@faulty("LP134", "net", source="deep Q-learning without detach", mended=_mended)
def best_value_of_the_same_network() -> Arguments:
    def step(module: Any, batch: Any) -> Tensor:
        state, action, reward, follows, is_over = batch
        target = reward + DISCOUNT * (1 - is_over) * module.net(follows).max(dim=1).values
        value = module.net(state).gather(1, action[:, None])[:, 0]
        return functional.smooth_l1_loss(value, target)

    return Values(step), transitions()


@faulty("LP134", source="double Q-learning, a masked target and a squared error written out")
def value_of_the_best_action() -> Arguments:
    def step(module: Any, batch: Any) -> Tensor:
        state, action, reward, follows, is_over = batch
        values = module.net(follows)
        after = values.gather(1, values.argmax(dim=1, keepdim=True)).squeeze(1)
        after = torch.where(is_over > 0, 0.0, after)
        value = (module.net(state) * functional.one_hot(action, 2)).sum(dim=1)
        error = reward + after * DISCOUNT - value
        return (error**2).mean()

    return Values(step), transitions()


@faulty("LP134", "target", source="a target network that the optimizer of all parameters holds")
def best_value_of_a_trained_target_network() -> Arguments:
    class All(Values):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 1e-3)

    def step(module: Any, batch: Any) -> Tensor:
        state, action, reward, follows, is_over = batch
        best = torch.amax(module.target(follows), 1)
        value = module.net(state)[torch.arange(len(action)), action]
        return functional.mse_loss(reward + DISCOUNT * best * (1 - is_over), value)

    return All(step), transitions()


@faulty("LP135", "net", source="the critic of an actor and critic, without detach")
def next_value_of_the_same_network() -> Arguments:
    def step(module: Any, batch: Any) -> Tensor:
        state, _, reward, follows, is_over = batch
        value, after = module.net(state)[:, 0], module.net(follows)[:, 0]
        advantage = reward + DISCOUNT * after * (1 - is_over) - value
        return advantage.pow(2).mean()

    return Values(step, 1), transitions()


@faulty("LP136", "net", "target", source="self.target = self.net, without a copy")
def target_network_that_is_the_network() -> Arguments:
    class Same(Values):
        def __init__(self) -> None:
            super().__init__(q_learning)
            self.target = self.net

        def on_train_epoch_end(self) -> None:
            self.target.load_state_dict(self.net.state_dict())

    return Same(), transitions()
