"""Programs that keep values from step to step, and that differentiate by themselves, rightly."""

from typing import Any

import torch
import torchmetrics
from torch import Tensor
from torch.nn import functional

from tests.advisor.faulty.failures import OwnStep, detached_state
from tests.advisor.programs import Arguments, Task, digit_loaders, healthy, mlp

healthy(detached_state)


@healthy
def detached_losses_in_a_list() -> Arguments:
    def step(module: OwnStep, x: Tensor, y: Tensor) -> Tensor:
        loss = functional.cross_entropy(module.net(x), y)
        module.losses.append(loss.detach())
        module.kept = loss.detach() + (0 if module.kept is None else module.kept)
        return loss

    return OwnStep(step), digit_loaders()


class Collecting(Task):
    """Keeps the outputs of an epoch, and clears them at its end."""

    def __init__(self) -> None:
        super().__init__(mlp(64, 64, 10))
        self.outputs: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.outputs.append(loss)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("epoch_loss", torch.stack(self.outputs).mean())
        self.outputs.clear()


@healthy
def outputs_that_an_epoch_clears() -> Arguments:
    return Collecting(), digit_loaders()


@healthy
def features_of_the_last_step() -> Arguments:
    def step(module: OwnStep, x: Tensor, y: Tensor) -> Tensor:
        module.kept = module.net(x)  # for a picture of it
        return functional.cross_entropy(module.kept, y)

    return OwnStep(step), digit_loaders()


class Measured(Task):
    """Keeps metrics of torchmetrics."""

    def __init__(self) -> None:
        super().__init__(mlp(64, 64, 10))
        self.mean = torchmetrics.MeanMetric()
        self.pairs = torchmetrics.CatMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.mean(loss)
        self.pairs.update(loss)
        return loss


@healthy
def metrics_that_keep_losses() -> Arguments:
    return Measured(), digit_loaders()


@healthy
def adversarial_examples_by_a_backward_pass() -> Arguments:
    def step(module: OwnStep, x: Tensor, y: Tensor) -> Tensor:
        x = x.clone().requires_grad_(True)
        functional.cross_entropy(module.net(x), y).backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        return functional.cross_entropy(module.net(x.detach() + 0.01 * x.grad.sign()), y)

    return OwnStep(step), digit_loaders()
