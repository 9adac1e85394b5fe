"""Boxes, masks and averages of weights, close to the faulty ones."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.faulty.boxes import (
    Teacher,
    average_parameters,
    corners,
    detector,
    likelihoods,
    overlap,
    survival,
)
from tests.advisor.programs import Arguments, cnn, digit_loaders, healthy


@healthy
def centres_turned_into_corners() -> Arguments:
    return detector(corners("cxcywh"))


@healthy
def corners_that_a_new_model_predicts_at_random() -> Arguments:
    """Its first boxes have sides below 0, and learn not to."""
    return detector(lambda x, y: overlap(x, y) + functional.l1_loss(x, y), "xyxy")


@healthy
def differences_of_centres_and_sizes() -> Arguments:
    """Features of (cx, cy, w, h) that are no areas."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        sides = [each[:, 2:] - each[:, :2] for each in (x, y)]
        return functional.mse_loss(x, y) + functional.mse_loss(*sides)

    return detector(loss)


@healthy
def events_by_a_boolean() -> Arguments:
    def loss(risk: Tensor, event: Tensor, time: Tensor) -> Tensor:
        each, order = likelihoods(risk, time)
        return -each[event[order] == 1].mean()

    return survival(loss)


@healthy
def weights_of_events_from_a_table() -> Arguments:
    def loss(risk: Tensor, event: Tensor, time: Tensor) -> Tensor:
        errors = functional.mse_loss(risk, time.log(), reduction="none")
        return (errors * torch.tensor([0.5, 1.0])[event]).mean()

    return survival(loss)


@healthy
def samples_of_both_groups_by_places() -> Arguments:
    def loss(risk: Tensor, event: Tensor, time: Tensor) -> Tensor:
        errors = functional.mse_loss(risk, time.log(), reduction="none")
        return errors[event.argsort()].mean()

    return survival(loss)


@torch.no_grad()
def _average_all(slow: nn.Module, net: nn.Module) -> None:
    average_parameters(slow, net)
    for own, other in zip(slow.buffers(), net.buffers(), strict=True):
        own.copy_(other)


@healthy
def teacher_with_statistics() -> Arguments:
    return Teacher(cnn(), _average_all), digit_loaders()


@healthy
def teacher_in_training_mode() -> Arguments:
    """Its batch norms normalise by the batch, and average statistics of their own."""

    class Momentum(Teacher):
        def on_train_epoch_start(self) -> None:
            self.slow.train()

    return Momentum(cnn(), average_parameters), digit_loaders()


@healthy
def teacher_that_gets_statistics_before_validation() -> Arguments:
    class Late(Teacher):
        def on_validation_epoch_start(self) -> None:
            for own, other in zip(self.slow.buffers(), self.net.buffers(), strict=True):
                own.copy_(other)

    return Late(cnn(), average_parameters), digit_loaders()


@healthy
def teacher_of_a_tuned_network_keeps_its_statistics() -> Arguments:
    net: Any = cnn()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None:
            part.running_mean.fill_(0.1)
    return Teacher(net, average_parameters), digit_loaders()
