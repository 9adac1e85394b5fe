"""Clipping to nearly nothing."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.advisor.plans import Planned, stopped, trainer
from tests.advisor.programs import Arguments, Task, digit_loaders, faulty, mlp


def sgd(module: Planned) -> Any:
    return torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)


def _usual() -> Arguments:
    return Planned(sgd), digit_loaders(), trainer(gradient_clip_val=1.0)


@faulty("LP651", source="gradient_clip_val=1e-6 with SGD", mended=_usual)
def clipped_by_the_trainer_with_sgd() -> Arguments:
    return Planned(sgd), digit_loaders(), trainer(gradient_clip_val=1e-6)


@faulty("LP651", source="clipping by value, to 1e-8")
def clipped_by_value_with_sgd() -> Arguments:
    plan = trainer(gradient_clip_val=1e-8, gradient_clip_algorithm="value")
    return Planned(sgd), digit_loaders(), plan


@faulty("LP651", source="gradient_clip_val=1e-7 with Adam: elements are below its eps")
def clipped_by_the_trainer_with_adam() -> Arguments:
    return stopped(gradient_clip_val=1e-7)


@faulty("LP651", source="clip_grad_norm_ of 1e-6 in on_after_backward", mended=_usual)
def clipped_after_the_backward_pass() -> Arguments:
    class Clipped(Planned):
        def on_after_backward(self) -> None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), max_norm=1e-6)

    return Clipped(sgd), digit_loaders()


@faulty("LP651", source="manual optimization, with a threshold for a mean of squares")
def clipped_under_manual_optimization() -> Arguments:
    class Manual(Task):
        def __init__(self) -> None:
            super().__init__(
                mlp(64, 64, 10), optimizer=lambda parameters: torch.optim.SGD(parameters, 0.05)
            )
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            opt: Any = self.optimizers()
            loss = functional.cross_entropy(self.net(batch[0]), batch[1])
            opt.zero_grad()
            self.manual_backward(loss)
            for p in self.parameters():
                torch.nn.utils.clip_grad_value_(p, 1e-7)
            opt.step()
            return loss

    return Manual(), digit_loaders()
