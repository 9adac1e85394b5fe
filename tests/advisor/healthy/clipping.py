"""Healthy programs that clip, close to those that clip to nothing."""

from typing import Any

import torch

from tests.advisor.faulty.clipping import Hooked, sgd
from tests.advisor.plans import Planned, adamw, stopped, trainer
from tests.advisor.programs import Arguments, digit_loaders, healthy


@healthy
def tight_clipping_with_adam() -> Arguments:
    return stopped(gradient_clip_val=1e-2)


@healthy
def tighter_clipping_with_adam() -> Arguments:
    return stopped(gradient_clip_val=1e-3)


@healthy
def tight_clipping_with_sgd() -> Arguments:
    return Planned(sgd), digit_loaders(), trainer(gradient_clip_val=0.02)


@healthy
def gradients_of_norm_one_with_sgd() -> Arguments:
    """Each step has the length of the learning rate."""

    class Normalised(Planned):
        def on_before_optimizer_step(self, optimizer: object) -> None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), 0.1)

    return Normalised(sgd), digit_loaders()


@healthy
def small_gradients_that_nothing_clips() -> Arguments:
    """A small loss, and a rate to match."""

    class Small(Planned):
        def training_step(self, batch: object, batch_idx: int) -> torch.Tensor:
            return 1e-5 * super().training_step(batch, batch_idx)

    def configure(module: Planned) -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), 1e3)

    return Small(configure), digit_loaders()


@healthy
def a_part_is_clipped_before_the_whole() -> Arguments:
    def clip(module: Any, optimizer: Any, threshold: float) -> None:
        torch.nn.utils.clip_grad_norm_(module.net[1].parameters(), 0.5)
        module.clip_gradients(optimizer, threshold, "norm")

    return Hooked(clip), digit_loaders(), trainer(gradient_clip_val=1.0)


@healthy
def elements_are_clipped_before_the_norm() -> Arguments:
    def clip(module: Any, optimizer: Any, threshold: float) -> None:
        torch.nn.utils.clip_grad_value_(module.parameters(), 0.1)
        module.clip_gradients(optimizer, threshold, "norm")

    return Hooked(clip), digit_loaders(), trainer(gradient_clip_val=1.0)


@healthy
def a_threshold_of_earlier_norms_below_a_fixed_one() -> Arguments:
    """Seetharaman et al., 2020, AutoClip, with the Trainer's threshold against the first norms."""
    norms: list[float] = []

    def clip(module: Any, optimizer: Any, threshold: float) -> None:
        gradients = [p.grad for p in module.parameters()]
        norms.append(float(torch.stack([x.norm() for x in gradients]).norm()))
        middle = sorted(norms)[len(norms) // 2]
        torch.nn.utils.clip_grad_norm_(module.parameters(), middle)
        module.clip_gradients(optimizer, threshold, "norm")

    return Hooked(clip), digit_loaders(), trainer(gradient_clip_val=1.0)


@healthy
def the_hook_clips_from_the_second_epoch_on() -> Arguments:
    def clip(module: Any, optimizer: Any, threshold: float) -> None:
        if module.current_epoch > 0:
            module.clip_gradients(optimizer, threshold, "norm")

    return Hooked(clip), digit_loaders(), trainer(gradient_clip_val=1.0)


@healthy
def the_hook_logs_the_norm_and_clips_as_the_trainer_says() -> Arguments:
    def clip(module: Any, optimizer: Any, threshold: float) -> None:
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), float("inf"))
        module.log("gradient_norm", norm)
        module.clip_gradients(optimizer, threshold, "norm")

    return Hooked(clip, adamw), digit_loaders(), trainer(gradient_clip_val=1.0)
