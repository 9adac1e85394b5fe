"""Programs that keep values from step to step, and that differentiate by themselves, rightly."""

from typing import Any

import torch
import torchmetrics
from torch import Tensor
from torch.nn import functional

from tests.advisor.faulty.failures import OwnStep, Remembering, detached_state
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


class Episode:
    """What an agent remembers until an update."""

    def __init__(self) -> None:
        self.log_probs: list[Tensor] = []
        self.last: Tensor | None = None

    def take(self) -> Tensor:
        """Return the remembered values, and forget them."""
        found = torch.cat(self.log_probs)
        self.log_probs = []
        return found


class Episodes(Task):
    """Makes an update from the outputs of four steps, as for the reward of an episode."""

    def __init__(self) -> None:
        super().__init__(mlp(64, 64, 10))
        self.automatic_optimization = False
        self.episode = Episode()

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        x, y = batch
        out = functional.log_softmax(self.net(x), dim=1)
        self.episode.log_probs.append(out.gather(1, y[:, None])[:, 0])
        if len(self.episode.log_probs) == 4:
            opt: Any = self.optimizers()
            opt.zero_grad()
            self.manual_backward(-self.episode.take().mean())
            opt.step()


@healthy
def one_update_for_the_steps_of_an_episode() -> Arguments:
    return Episodes(), digit_loaders()


@healthy
def object_that_keeps_the_last_output() -> Arguments:
    def step(module: Any, x: Tensor, y: Tensor) -> Tensor:
        module.memory.last = module.net(x)  # for a picture of it
        return functional.cross_entropy(module.memory.last, y)

    return Remembering(step), digit_loaders()


class EpochMemory(Remembering):
    """A module whose hook tells an object that the epoch is over."""

    def on_train_epoch_end(self) -> None:
        self.memory.__init__()  # type: ignore[misc]


@healthy
def object_that_an_epoch_empties() -> Arguments:
    def step(module: Any, x: Tensor, y: Tensor) -> Tensor:
        loss = functional.cross_entropy(module.net(x), y)
        module.memory.losses.append(loss)
        return loss

    return EpochMemory(step), digit_loaders()


@healthy
def attack_that_an_object_keeps() -> Arguments:
    """The input's change is a leaf of the loss, made in each step."""

    def step(module: Any, x: Tensor, y: Tensor) -> Tensor:
        module.memory.last = torch.zeros_like(x).requires_grad_()
        return functional.cross_entropy(module.net(x + module.memory.last), y)

    return Remembering(step), digit_loaders()
