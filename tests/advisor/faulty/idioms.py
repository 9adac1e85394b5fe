"""Outputs that a clamp or a rectifier bounds which is written by other functions."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.faulty.outputs import Within, odd, odd_loaders
from tests.advisor.programs import (
    Arguments,
    Task,
    diabetes_loaders,
    digit_loaders,
    faulty,
    mlp,
)


def _regressor(function: object) -> Arguments:
    return Task(Within(mlp(10, 32, 1), function), nn.MSELoss()), diabetes_loaders()  # type: ignore[arg-type]


@faulty("LP214", "net.body.3", source="outputs kept above 0 by maximum, for standardised targets")
def maximum_with_zeros_for_standardised_targets() -> Arguments:
    return _regressor(lambda z: torch.maximum(z, torch.zeros_like(z)))


@faulty("LP214", "net.body.3", source="a clamp with tensors as bounds, by max and min")
def max_and_min_for_standardised_targets() -> Arguments:
    low, high = torch.tensor([-0.5]), torch.tensor([0.5])
    return _regressor(lambda z: torch.min(torch.max(z, low), high))


@faulty("LP214", "net.body.3", source="the same, by clamp")
def clamp_by_tensors_for_standardised_targets() -> Arguments:
    return _regressor(lambda z: z.clamp(min=torch.tensor(0.0), max=torch.tensor(1.0)))


@faulty("LP214", "net", source="negative outputs set to 0 by an index, for standardised targets")
def negative_outputs_set_to_zero() -> Arguments:
    def positive(z: Tensor) -> Tensor:
        out = z.clone()
        out[out < 0] = 0.0
        return out

    return _regressor(positive)


@faulty("LP214", "net", source="a threshold as output, for standardised targets")
def threshold_for_standardised_targets() -> Arguments:
    return _regressor(lambda z: functional.threshold(z, 0.1, 0.1))


@faulty("LP214", "net", source="hardtanh as output, with a narrow range")
def hardtanh_for_standardised_targets() -> Arguments:
    return _regressor(lambda z: functional.hardtanh(z, 0.0, 1.0))


@faulty("LP210", "net", source="a ReLU as a product with a mask, before cross entropy")
def product_with_mask_before_cross_entropy() -> Arguments:
    return Task(Within(mlp(64, 64, 10), lambda z: z * (z > 0).float())), digit_loaders()


@faulty("LP210", "net", source="a ReLU by where, before cross entropy")
def where_before_cross_entropy() -> Arguments:
    net = Within(mlp(64, 64, 10), lambda z: torch.where(z < 0, torch.zeros_like(z), z))
    return Task(net), digit_loaders()


@faulty("LP210", "net", source="a ReLU by masked_fill, before BCEWithLogitsLoss")
def masked_fill_before_bce_with_logits() -> Arguments:
    net = Within(odd(), lambda z: z.masked_fill(z < 0, 0))
    return Task(net, nn.BCEWithLogitsLoss()), odd_loaders(1)


@faulty("LP210", "net.3", source="a ReLU by maximum in the step, before cross entropy")
def maximum_in_the_step_before_cross_entropy() -> Arguments:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(torch.max(z, torch.tensor(0.0)), y)

    return Task(mlp(64, 64, 10), loss), digit_loaders()


@faulty("LP210", "net", source="a ReLU as half of x + |x|, and one in place")
def half_of_sum_and_relu_in_place() -> Arguments:
    net = Within(mlp(64, 64, 10), lambda z: functional.relu_((z + z.abs()) / 2))
    return Task(net), digit_loaders()


@faulty("LP203", "net.body.0.3", source="the exception of BCELoss mended by min and max")
def max_and_min_before_bce() -> Arguments:
    zeros, ones = torch.zeros(1), torch.ones(1)
    net = Within(odd(), lambda z: torch.minimum(torch.maximum(z, zeros), ones))
    return Task(net, nn.BCELoss()), odd_loaders(1)


@faulty("LP211", "net", source="logits clamped like probabilities, by min and max")
def narrow_clamp_before_cross_entropy() -> Arguments:
    def within(z: Tensor) -> Tensor:
        return torch.min(torch.max(z, torch.zeros_like(z)), torch.ones_like(z))

    return Task(Within(mlp(64, 64, 10), within)), digit_loaders()


@faulty("LP211", "net", source="logits clamped to -1 and 1")
def clip_before_bce_with_logits() -> Arguments:
    return Task(Within(odd(), lambda z: z.clip(-1, 1)), nn.BCEWithLogitsLoss()), odd_loaders(1)
