"""Policies with a baseline, and other products of logarithms and differences."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional

from tests.advisor.programs import Arguments, Task, diabetes_loaders, healthy, mlp, split


def contexts() -> Any:
    return split(torch.randn(640, 6, generator=torch.Generator().manual_seed(0)))


class Bandit(Task):
    """An actor and a critic; an arm's reward depends on the context."""

    def __init__(self) -> None:
        super().__init__(mlp(6, 32, 4, activation=nn.Tanh))
        self.critic = mlp(6, 32, 1, activation=nn.Tanh)
        generator = torch.Generator().manual_seed(1)
        self.register_buffer("arms", torch.randn(4, 6, generator=generator))

    def losses(self, chosen: Tensor, values: Tensor, returns: Tensor) -> Tensor:
        advantage = (returns - values).detach()
        return -(chosen * advantage).mean() + 0.5 * functional.mse_loss(values, returns)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        policy = Categorical(logits=self.net(x))
        arm: Any = policy.sample()  # type: ignore[no-untyped-call]
        returns = (self.get_buffer("arms")[arm] * x).sum(1) + 1.0
        chosen: Any = policy.log_prob(arm)  # type: ignore[no-untyped-call]
        entropy: Any = policy.entropy()  # type: ignore[no-untyped-call]
        loss = self.losses(chosen, self.critic(x).squeeze(1), returns)
        return loss - 0.01 * entropy.mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        best = self.net(batch[0]).argmax(1)
        self.log("val_reward", (self.get_buffer("arms")[best] * batch[0]).sum(1).mean())


@healthy
def detached_advantage() -> Arguments:
    return Bandit(), contexts()


@healthy
def value_without_gradient_in_the_product() -> Arguments:
    class Frozen(Bandit):
        def losses(self, chosen: Tensor, values: Tensor, returns: Tensor) -> Tensor:
            errors = returns - values
            with torch.no_grad():
                advantage = (returns - values) / (returns - values).std()
            return errors.square().mean() - (chosen * advantage).mean()

    return Frozen(), contexts()


@healthy
def logarithm_of_the_scale_beside_the_error() -> Arguments:
    """A likelihood of Laplace: errors are divided by a scale that is learnt too."""

    class Laplace(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            mean, raw = self.net(batch[0]).chunk(2, 1)
            scale = functional.softplus(raw) + 1e-2
            log_scale = scale.log()
            error = batch[1] - mean
            nll = log_scale + error.abs() * (-log_scale).exp()
            return nll.mean() + 0.1 * error.square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", functional.l1_loss(self.net(batch[0])[:, :1], batch[1]))

    return Laplace(mlp(10, 32, 2)), diabetes_loaders()
