"""Healthy flows, and losses of data that are scaled by what is trained."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from tests.advisor.faulty.flows import Flow, whole, wide
from tests.advisor.programs import Arguments, Task, diabetes_loaders, digit_loaders, healthy, mlp


@healthy
def codes_and_the_log_determinant() -> Arguments:
    return Flow(whole), wide()


@healthy
def flow_that_keeps_the_volume() -> Arguments:
    """Dinh et al., 2015: additive couplings, whose log-determinant is 0."""
    likelihood = Normal(0.0, 1.0)
    return Flow(lambda z, _: -likelihood.log_prob(z).sum(dim=1).mean(), scales=False), wide()


@healthy
def mixture_of_experts_by_its_gates() -> Arguments:
    """Errors of experts weighted by gates that sum to 1."""

    def loss(out: Tensor, y: Tensor) -> Tensor:
        gates, means = out.chunk(2, dim=1)
        return (gates.softmax(dim=1) * (y - means) ** 2).sum(dim=1).mean()

    return Task(mlp(10, 32, 6), loss), diabetes_loaders()


@healthy
def error_of_the_mean_of_gates() -> Arguments:
    """Gates that sum to 1 take the mean of errors, which is the error of a mean."""

    def loss(out: Tensor, y: Tensor) -> Tensor:
        gates, means = out.chunk(2, dim=1)
        return (gates.softmax(dim=1) * (y - means)).sum(dim=1).square().mean()

    return Task(mlp(10, 32, 6), loss), diabetes_loaders()


@healthy
def mask_of_the_input() -> Arguments:
    """The input times a mask is compared with the sample without noise."""

    class Masked(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0].flatten(1)
            noisy = x + torch.randn_like(x)
            return (noisy * self.net(noisy).sigmoid() - x).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Masked(mlp(64, 64, 64)), digit_loaders()


@healthy
def gated_input_before_a_layer() -> Arguments:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.net = nn.Parameter(torch.zeros(10)), mlp(10, 32, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x * (1 + self.gate))

    return Task(Gated(), lambda out, y: (out - y).square().mean()), diabetes_loaders()


@healthy
def gains_of_a_controller() -> Arguments:
    """The state after a step of a controlled system is to be 0: no target is compared with it."""

    class Controller(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0]
            for _ in range(3):
                x = x + 0.1 * self.net(x) * x
            return x.square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Controller(mlp(10, 32, 10)), diabetes_loaders()


@healthy
def residual_of_an_equation_with_its_boundary() -> Arguments:
    """Hold u' = -2 u, where u is 1 at 0 by its form: the residual is compared with nothing."""

    class Physics(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            with torch.enable_grad():
                t = batch[0][:, :1].abs().requires_grad_()
                u = 1 + t * self.net(t)
                (slope,) = torch.autograd.grad(u.sum(), t, create_graph=True)
                return (slope + 2 * u).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Physics(mlp(1, 32, 1, activation=nn.Tanh)), diabetes_loaders()
