"""Clipping to nearly nothing."""

from collections.abc import Callable
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


class Hooked(Planned):
    """A module whose hook clips by a function of the module, the optimizer and the threshold."""

    def __init__(self, clip: Callable[..., None], configure: Callable[..., Any] = sgd) -> None:
        super().__init__(configure)
        self.clip = clip

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        self.clip(self, optimizer, gradient_clip_val)


def _usual_hook() -> Arguments:
    return Hooked(lambda module, optimizer, _: module.clip_gradients(optimizer, 1.0, "norm")), (
        digit_loaders()
    )


@faulty("LP651", source="clip_gradients of 1e-6 in configure_gradient_clipping", mended=_usual_hook)
def clipped_in_the_hook() -> Arguments:
    return Hooked(lambda module, optimizer, _: module.clip_gradients(optimizer, 1e-6, "norm")), (
        digit_loaders()
    )


@faulty("LP651", source="the hook clips each element by torch's function, far below the gradients")
def clipped_by_value_in_the_hook() -> Arguments:
    def clip(module: Planned, optimizer: Any, _: Any) -> None:
        torch.nn.utils.clip_grad_value_(module.parameters(), 1e-7)

    return Hooked(clip), digit_loaders()


@faulty("LP651", source="the hook divides the Trainer's threshold by the number of parameters")
def threshold_of_the_trainer_made_small_in_the_hook() -> Arguments:
    def clip(module: Planned, optimizer: Any, threshold: float) -> None:
        count = sum(p.numel() for p in module.parameters())
        torch.nn.utils.clip_grad_norm_(module.parameters(), threshold / count**2)

    return Hooked(clip), digit_loaders(), trainer(gradient_clip_val=1.0)


@faulty("LP651", source="manual optimization, with clip_gradients of the module")
def clipped_by_the_module_under_manual_optimization() -> Arguments:
    class Manual(Planned):
        def __init__(self) -> None:
            super().__init__(sgd)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            opt: Any = self.optimizers()
            loss = functional.cross_entropy(self.net(batch[0]), batch[1])
            opt.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(opt, 1e-6, "norm")
            opt.step()
            return loss

    return Manual(), digit_loaders()


@faulty("LP631", source="the hook clips, and calls super() for the Trainer's threshold")
def clipped_by_the_hook_and_by_lightning() -> Arguments:
    class Both(Planned):
        def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), 5.0)
            super().configure_gradient_clipping(optimizer, *args, **kwargs)

    return Both(sgd), digit_loaders(), trainer(gradient_clip_val=1.0)


@faulty("LP631", source="clipping written out, after the module's own")
def clipped_twice_in_the_hook() -> Arguments:
    def clip(module: Planned, optimizer: Any, _: Any) -> None:
        module.clip_gradients(optimizer, 1.0, "norm")
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        norm = torch.stack([x.norm() for x in gradients]).norm()
        for x in gradients:
            x.mul_((2.0 / norm).clamp(max=1.0))

    return Hooked(clip), digit_loaders()
