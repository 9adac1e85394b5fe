"""Agents that learn their tasks: rewards, no data set."""

import copy
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from tests.advisor.programs import digit_loaders, mlp
from tests.callbacks.faulty_fits import Fit
from tests.callbacks.healthy.declared import (
    Manual,
    Metric,
    Own,
    digit_accuracy,
    fits_well,
    of,
)


def adam(lr: float) -> Any:
    return partial(torch.optim.Adam, lr=lr)


@fits_well(above=0.8, full=True)
def policy_gradient_without_a_baseline() -> tuple[Fit, Metric]:
    class Bandit(Own):
        def loss_of(self, batch: Any) -> Any:
            choices = torch.distributions.Categorical(logits=self.net(batch[0]))
            drawn = choices.sample()
            reward = (drawn == batch[1]).float() - 0.1
            return -(choices.log_prob(drawn) * reward).mean()

    module = Bandit(mlp(64, 64, 10), optimizer=adam(5e-3))
    return Fit(module, *digit_loaders(), steps=400), of(module, digit_accuracy)


class Poles:
    """Many poles on carts, each of which has to stay upright for a hundred steps.

    A pole that falls, or has stood for so long, begins anew.
    """

    def __init__(self, number: int) -> None:
        self.state = 0.05 * (2 * torch.rand(number, 4) - 1)
        self.age = torch.zeros(number)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Push each cart, and return rewards and whether an episode ends."""
        _, speed, angle, turn = self.state.unbind(1)
        force = 20.0 * action.float() - 10
        push = (force + 0.05 * turn.square() * angle.sin()) / 1.1
        bend = (9.8 * angle.sin() - angle.cos() * push) / (
            0.5 * (4 / 3 - 0.1 * angle.cos().square() / 1.1)
        )
        gain = push - 0.05 * bend * angle.cos() / 1.1
        change = torch.stack([speed, gain, turn, bend], 1)
        self.state = self.state + 0.02 * change
        self.age += 1
        over = (self.state[:, 2].abs() > 0.21) | (self.state[:, 0].abs() > 2.4)
        done = over | (self.age >= 100)
        fresh = 0.05 * (2 * torch.rand_like(self.state) - 1)
        self.state = torch.where(done[:, None], fresh, self.state)
        self.age = self.age.where(~done, 0)
        return 1 - over.float(), done


def lasted(choose: Any) -> float:
    """Return for how many steps of a hundred poles stand, on average."""
    torch.manual_seed(1)
    poles, alive, total = Poles(100), torch.ones(100), 0.0
    with torch.no_grad():
        for _ in range(100):
            _, done = poles.step(choose(poles.state))
            total += alive.mean().item()
            alive = alive * (~done)
    return total


class Dummy(IterableDataset[Any]):
    """Gives numbers of steps: the module makes its own experience."""

    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.arange(100_000)


def endless() -> Any:
    return DataLoader(Dummy(), None)


class Critic(Own):
    """A policy and a value, on experience of 16 carts.

    Args:
        horizon: Steps of experience in a batch.
        bootstraps: Whether returns end with the value of the last state: actor and critic.
    """

    def __init__(self, horizon: int, *, bootstraps: bool) -> None:
        super().__init__(mlp(4, 64, 64, 2, activation=nn.Tanh), optimizer=adam(3e-3))
        self.value = mlp(4, 64, 64, 1)  # its targets are large: tanh would saturate
        self.horizon, self.bootstraps = horizon, bootstraps
        self.poles = Poles(16)

    def experience(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return states, actions, and returns with a discount of 0.98."""
        states, actions, rewards, ends = [], [], [], []
        with torch.no_grad():
            for _ in range(self.horizon):
                states.append(self.poles.state)
                logits = self.net(self.poles.state)
                actions.append(torch.distributions.Categorical(logits=logits).sample())
                reward, done = self.poles.step(actions[-1])
                rewards.append(reward)
                ends.append(done)
            total = self.value(self.poles.state).squeeze(1) * self.bootstraps
            returns = []
            for reward, done in zip(reversed(rewards), reversed(ends), strict=True):
                total = reward + 0.98 * total * (~done)
                returns.append(total)
        return torch.cat(states), torch.cat(actions), torch.cat(returns[::-1])

    def loss_of(self, batch: Any) -> Any:
        states, actions, returns = self.experience()
        choices = torch.distributions.Categorical(logits=self.net(states))
        value = self.value(states).squeeze(1)
        gain = returns - value.detach()
        gain = (gain - gain.mean()) / (gain.std() + 1e-5)
        policy = -(choices.log_prob(actions) * gain).mean()
        error = functional.mse_loss(value, returns)
        return policy + 0.5 * error - 0.01 * choices.entropy().mean()


def stands(module: Any) -> Metric:
    return lambda: lasted(lambda state: module.net(state).argmax(1))


@fits_well(above=80, full=True)
def policy_gradient_with_a_critic() -> tuple[Fit, Metric]:
    module = Critic(100, bootstraps=False)
    return Fit(module, endless(), steps=100), stands(module)


@fits_well(above=80)
def actor_and_critic() -> tuple[Fit, Metric]:
    module = Critic(20, bootstraps=True)
    return Fit(module, endless(), steps=250), stands(module)


class Replay(IterableDataset[Any]):
    """Batches of a memory that an agent fills."""

    def __init__(self, memory: deque[Any]) -> None:
        self.memory = memory

    def __iter__(self) -> Iterator[Any]:
        while True:
            rows = torch.randint(len(self.memory), (8,)).tolist()
            yield [torch.cat(parts) for parts in zip(*(self.memory[i] for i in rows), strict=True)]


class Values(Own):
    """Double Q-learning: a target network that is copied now and then, and a replay.

    Args:
        by_hand: Whether the squared error is written out, and the target moves at each step.
    """

    def __init__(self, *, by_hand: bool) -> None:
        super().__init__(mlp(4, 64, 64, 2), optimizer=adam(1e-3))
        self.target = copy.deepcopy(self.net).requires_grad_(False)
        self.by_hand, self.poles = by_hand, Poles(16)
        self.memory: deque[Any] = deque(maxlen=300)
        for _ in range(20):
            self.act(1.0)

    @torch.no_grad()
    def act(self, chance: float) -> None:
        before = self.poles.state
        action = self.net(before).argmax(1)
        action = torch.where(torch.rand(16) < chance, torch.randint(0, 2, (16,)), action)
        reward, done = self.poles.step(action)
        self.memory.append((before, action, reward, done, self.poles.state))

    def loss_of(self, batch: Any) -> Tensor:
        before, action, reward, done, after = batch
        with torch.no_grad():
            best = self.net(after).argmax(1, keepdim=True)
            wanted = reward + 0.97 * self.target(after).gather(1, best).squeeze(1) * (~done)
        value = self.net(before).gather(1, action[:, None]).squeeze(1)
        return (
            (value - wanted).square().mean() if self.by_hand
            else functional.smooth_l1_loss(value, wanted)
        )  # fmt: skip

    def on_train_batch_end(self, *args: Any) -> None:
        self.act(max(0.05, 1 - self.global_step / 500))
        if self.by_hand:
            with torch.no_grad():
                pairs = zip(self.target.parameters(), self.net.parameters(), strict=True)
                for slow, fast in pairs:
                    slow.lerp_(fast, 0.02)
        elif self.global_step % 100 == 0:
            self.target.load_state_dict(self.net.state_dict())


def values(module: Values, steps: int) -> tuple[Fit, Metric]:
    loader: Any = DataLoader(Replay(module.memory), None)
    return Fit(module, loader, steps=steps), stands(module)


@fits_well(above=50)
def values_with_a_target_network() -> tuple[Fit, Metric]:
    return values(Values(by_hand=False), 1000)


@fits_well(above=80, full=True)
def values_with_a_slow_target_and_an_error_by_hand() -> tuple[Fit, Metric]:
    return values(Values(by_hand=True), 1000)


class Bounded(Manual):
    """Proximal policy optimization of a bandit: several steps for one draw, a bounded ratio."""

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        x, y = batch
        optimizer: Any = self.optimizers()
        with torch.no_grad():
            old = torch.distributions.Categorical(logits=self.net(x))
            drawn = old.sample()
        gain = (drawn == y).float()
        gain = (gain - gain.mean()) / (gain.std() + 1e-5)
        for _ in range(4):
            now = torch.distributions.Categorical(logits=self.net(x))
            ratio = (now.log_prob(drawn) - old.log_prob(drawn)).exp()
            bound = torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
            self.step(optimizer, -bound - 0.01 * now.entropy().mean())


@fits_well(above=0.8, full=True)
def proximal_policy() -> tuple[Fit, Metric]:
    module = Bounded(mlp(64, 64, 10), optimizer=adam(3e-3))
    return Fit(module, *digit_loaders(), steps=1200), of(module, digit_accuracy)
