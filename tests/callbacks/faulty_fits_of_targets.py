"""Fits with a fault, whose losses are written by hand, have several terms or unusual targets."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.healthy.sequences import next_codes, text_windows
from tests.advisor.programs import Task, diabetes, digits, mlp, split
from tests.callbacks.faulty_fits import Fit, adam, faulty, sgd, train


@faulty("LP802", "value.1", source="a value network of many sigmoids beside a policy that learns")
def deep_sigmoids_in_one_of_two_branches() -> Fit:
    class Branches(Task):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 32, 10))
            self.value = mlp(64, *[32] * 9, 1, activation=nn.Sigmoid)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            choices = torch.distributions.Categorical(logits=self.net(batch[0]))
            drawn = choices.sample()
            reward = (drawn == batch[1]).float()
            value = self.value(batch[0]).squeeze(1)
            policy = -(choices.log_prob(drawn) * (reward - value.detach())).mean()
            return policy + (value - reward).square().mean()

    return Fit(Branches(), train())


@faulty("LP808", source="a squared error that is written out, with a rate that is too large")
def divergence_of_a_loss_by_hand() -> Fit:
    x, y = diabetes()
    module = Task(mlp(10, 1), lambda out, target: (out - target).square().mean(), sgd(0.55))
    return Fit(module, split(x, y[:, None])[0], steps=40)


@faulty("LP808", source="the sign of a loss of two tasks is wrong, so that training raises it")
def loss_of_two_tasks_is_raised() -> Fit:
    class Both(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            out, y = self.net(batch[0]), batch[1]
            return functional.cross_entropy(out[:, :10], y) + functional.mse_loss(
                out[:, 10:], batch[2]
            )

    x, y = digits()
    optimizer = partial(torch.optim.Adam, lr=1e-3, maximize=True)
    loader = split(x, y, x.mean((1, 2, 3))[:, None])[0]
    return Fit(Both(mlp(64, 32, 11), optimizer=optimizer), loader, steps=60)


@faulty("LP810", source="a language model whose input is overwritten by padding")
def next_letters_from_nothing() -> Fit:
    class Padded(Task):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            codes, following = next_codes(batch)
            return torch.zeros_like(codes), following

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(logits.reshape(-1, 256), target.reshape(-1))

    net = nn.Sequential(nn.Embedding(256, 16), nn.Linear(16, 256))
    return Fit(Padded(net, loss, adam(3e-2)), split(text_windows())[0], steps=200)


@faulty("LP810", source="two tasks, whose inputs a mask that is wrong sets to zero")
def two_tasks_without_their_inputs() -> Fit:
    class Both(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            out = self.net(torch.zeros_like(batch[0]))
            first = functional.cross_entropy(out[:, :10], batch[1])
            return first + 0.5 * functional.smooth_l1_loss(out[:, 10:], batch[2])

    x, y = digits()
    loader = split(x, y, x[:, 0, 4, 4:5])[0]
    return Fit(Both(mlp(64, 16, 11), optimizer=adam(1e-2)), loader, steps=200)
