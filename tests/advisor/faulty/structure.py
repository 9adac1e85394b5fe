"""Models whose layers hinder each other."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW

from tests.advisor.programs import (
    Arguments,
    Task,
    cnn,
    diabetes_loaders,
    digit_loaders,
    faulty,
    mlp,
)

_DROPOUT = "UMLAUT and PyTorch's forum: dropout of 0.9 meant as the share that is kept"
_ACTIVATION = "UMLAUT and NeuraLint: missing activations"


def _task(*layers: nn.Module, **options: Any) -> Arguments:
    return Task(nn.Sequential(nn.Flatten(), *layers), **options), digit_loaders()


@faulty("LP501", "net.3", source=_DROPOUT)
def dropout_of_60_percent() -> Arguments:
    return _task(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.6), nn.Linear(64, 10))


@faulty("LP502", "net.3", source=_DROPOUT)
def dropout_of_90_percent() -> Arguments:
    return _task(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.9), nn.Linear(64, 10))


class FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Any:
        h = functional.dropout(functional.relu(self.first(x.flatten(1))), 0.9, self.training)
        return self.last(h)


@faulty("LP502", "net", source=_DROPOUT)
def dropout_of_90_percent_as_a_function() -> Arguments:
    return Task(FunctionalDropout()), digit_loaders()


@faulty("LP503", "net.4", source="PyTorch's forum: dropout after the last layer")
def dropout_on_logits() -> Arguments:
    return _task(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10), nn.Dropout(0.3))


@faulty("LP503", "net.4", source="PyTorch's forum: dropout after the last layer")
def dropout_before_log_softmax() -> Arguments:
    return _task(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10), nn.Dropout(0.3), nn.LogSoftmax(dim=1),
        loss=functional.nll_loss,
    )  # fmt: skip


@faulty("LP503", "net.1", source="PyTorch's forum: dropout after the last layer")
def dropout_on_a_regression() -> Arguments:
    net = nn.Sequential(mlp(10, 32, 1), nn.Dropout(0.2))
    return Task(net, functional.mse_loss), diabetes_loaders()


@faulty("LP504", "net.3", source="Li et al., 2019")
def dropout_before_batch_norm() -> Arguments:
    return _task(
        nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 64), nn.BatchNorm1d(64),
        nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


@faulty("LP511", "net.1", "net.2", source=_ACTIVATION)
def no_activation_at_all() -> Arguments:
    return _task(nn.Linear(64, 128), nn.Linear(128, 64), nn.Linear(64, 10))


class Linears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(10, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(functional.dropout(self.last(self.first(x)), 0.1, self.training))


@faulty("LP511", "net.first", "net.last", source=_ACTIVATION)
def no_activation_in_a_regression() -> Arguments:
    return Task(Linears(), functional.mse_loss), diabetes_loaders()


@faulty("LP511", "net.1", source=_ACTIVATION)
def no_activation_before_a_sigmoid() -> Arguments:
    x, y = digit_loaders()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 10), nn.Sigmoid())

    def loss(p: Tensor, y: Tensor) -> Tensor:
        return functional.binary_cross_entropy(p, functional.one_hot(y, 10).float())

    return Task(net, loss), (x, y)


@faulty("LP512", "net.3", "net.4", source=_ACTIVATION)
def one_activation_missing() -> Arguments:
    return _task(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 10))


@faulty("LP512", "net.0", "net.1", source=_ACTIVATION)
def two_convolutions_without_activation() -> Arguments:
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    )
    return Task(net), digit_loaders()


@faulty("LP521", "net.0", source="He et al., 2016 and all recipes: bias=False before batch norm")
def bias_before_batch_norm() -> Arguments:
    net = cnn()
    net[0] = nn.Conv2d(1, 16, 3, padding=1)
    return Task(net), digit_loaders()


@faulty("LP522", "net.4", source="PyTorch's forum: batch norm after the last layer")
def batch_norm_on_logits() -> Arguments:
    return _task(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10), nn.BatchNorm1d(10))


@faulty("LP531", "net.2", source="NeuraLint: softmax as hidden activation")
def softmax_between_layers() -> Arguments:
    return _task(nn.Linear(64, 64), nn.Softmax(dim=1), nn.Linear(64, 10))


class FunctionalSoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Any:
        return self.last(torch.softmax(self.first(x.flatten(1)), dim=-1))


@faulty("LP531", "net", source="NeuraLint: softmax as hidden activation")
def softmax_between_layers_as_a_function() -> Arguments:
    return Task(FunctionalSoftmax()), digit_loaders()


@faulty("LP532", "net.2", "net.3", source="NeuraLint: redundant activations")
def relu_twice() -> Arguments:
    return _task(nn.Linear(64, 64), nn.ReLU(), nn.ReLU(), nn.Linear(64, 10))


@faulty("LP533", "net.2", source="TheDeepChecker: saturating activations")
def sigmoids_in_hidden_layers() -> Arguments:
    return Task(mlp(64, 64, 64, 64, 10, activation=nn.Sigmoid)), digit_loaders()


@faulty("LP541", "net.1", source="Klambauer et al., 2017")
def selu_with_default_initialisation() -> Arguments:
    return Task(mlp(64, 64, 64, 10, activation=nn.SELU)), digit_loaders()


@faulty("LP542", "net.3", source="Klambauer et al., 2017")
def selu_with_plain_dropout() -> Arguments:
    return _task(nn.Linear(64, 64), nn.SELU(), nn.Dropout(0.1), nn.Linear(64, 10))


@faulty("LP542", "net.2", source="Klambauer et al., 2017")
def selu_with_batch_norm() -> Arguments:
    return _task(nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.SELU(), nn.Linear(64, 10))


@faulty("LP551", source="He et al., 2019")
def biases_decayed() -> Arguments:
    return _task(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10), optimizer=lambda p: AdamW(p, 1e-3)
    )


@faulty("LP551", source="He et al., 2019")
def norms_decayed_by_sgd() -> Arguments:
    return Task(cnn(), optimizer=lambda p: SGD(p, 0.1, 0.9, weight_decay=1e-4)), digit_loaders()


@faulty("LP552", source="Loshchilov and Hutter, 2019")
def adam_with_coupled_decay() -> Arguments:
    return _task(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10),
        optimizer=lambda p: Adam(p, 1e-3, weight_decay=1e-2),
    )  # fmt: skip
