"""Weights whose first values keep a network from learning."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.programs import Arguments, Task, diabetes_loaders, digit_loaders, faulty, mlp

_LECTURE = "lectures S1 and S4, weight initialization: "


def initialised(
    net: nn.Module, weights: Callable[[Tensor], Any], bias: float = 0.0
) -> nn.Module:  # fmt: skip
    """Initialise the weights and biases of a network's layers."""
    for part in net.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            weights(part.weight)
            if part.bias is not None:
                nn.init.constant_(part.bias, bias)
    return net


def normal(std: float) -> Callable[[Tensor], Any]:
    return lambda weight: nn.init.normal_(weight, std=std)


def kaiming(weight: Tensor) -> Tensor:
    return nn.init.kaiming_normal_(weight, nonlinearity="relu")


def _digits(net: nn.Module) -> Arguments:
    return Task(net), digit_loaders()


def _mended() -> Arguments:
    return _digits(initialised(mlp(64, 64, 64, 10), kaiming))


@faulty("LP401", "net.1", "net.3", mended=_mended, source=_LECTURE + "weights that are all equal")
def constant_weights() -> Arguments:
    return _digits(initialised(mlp(64, 64, 64, 10), lambda w: nn.init.constant_(w, 0.1)))


@faulty("LP401", "net.1", mended=_mended, source="questions: all filters learn the same")
def constant_filters_of_one_layer() -> Arguments:
    net = nn.Sequential(nn.Identity(), nn.Conv2d(1, 8, 3), nn.ReLU(), mlp(288, 10))
    nn.init.ones_(net[1].weight)  # type: ignore[arg-type]
    return _digits(net)


@faulty("LP401", "rnn", mended=_mended, source="questions about an LSTM with constant weights")
def constant_weights_of_a_recurrent_network() -> Arguments:
    class Rows(Task):
        def __init__(self) -> None:
            super().__init__(mlp(32, 10))
            self.rnn = nn.LSTM(8, 32, batch_first=True)
            for p in self.rnn.parameters():
                nn.init.constant_(p, 0.05)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            h = self.rnn(batch[0].squeeze(1))[0][:, -1]
            return self.loss(self.net(h), batch[1])

    return Rows(), digit_loaders()[0]


@faulty("LP402", "net.1", "net.3", mended=_mended, source=_LECTURE + "weights that are all zero")
def zero_weights() -> Arguments:
    return _digits(initialised(mlp(64, 64, 64, 10), nn.init.zeros_))


@faulty("LP402", "net.3", mended=_mended, source="questions: tanh networks of zeros")
def zero_weights_of_a_tanh_network() -> Arguments:
    return _digits(initialised(mlp(64, 32, 32, 10, activation=nn.Tanh), nn.init.zeros_))


@faulty("LP402", "net.3", mended=_mended, source="NeuraLint: zero weights, with sigmoid")
def zero_weights_of_a_sigmoid_network() -> Arguments:
    return _digits(initialised(mlp(64, 32, 32, 32, 10, activation=nn.Sigmoid), nn.init.zeros_))


@faulty("LP402", "net.3", mended=_mended, source="a zero layer before a ReLU")
def one_zero_layer_before_a_relu() -> Arguments:
    net = mlp(64, 32, 32, 10)
    nn.init.zeros_(net[3].weight)  # type: ignore[arg-type]
    nn.init.zeros_(net[3].bias)  # type: ignore[arg-type]
    return _digits(net)


@faulty("LP403", "net.13", source=_LECTURE + "N(0, 0.01²) lets activations die out")
def small_weights_in_a_deep_network() -> Arguments:
    return _digits(initialised(mlp(64, 64, 64, 64, 64, 64, 64, 10), normal(0.01)))


@faulty("LP403", source="Glorot and Bengio, 2010: sigmoid in deep networks")
def deep_network_of_sigmoids() -> Arguments:
    return _digits(mlp(64, *[64] * 8, 10, activation=nn.Sigmoid))


@faulty("LP403", source="He et al., 2015: a network of 30 layers that doesn't start to learn")
def thirty_plain_layers() -> Arguments:
    return _digits(mlp(64, *[64] * 29, 10))


@faulty("LP403", also=["LP220"], source=_LECTURE + "N(0, 1) lets activations explode")
def large_weights_in_a_deep_network() -> Arguments:
    return _digits(initialised(mlp(64, 64, 64, 64, 10), normal(1.0)))


@faulty("LP403", source="DeepLocalize: weights from U(0, 1)")
def positive_weights_in_a_regression() -> Arguments:
    net = initialised(mlp(10, 64, 64, 64, 1), nn.init.uniform_)
    return Task(net, functional.mse_loss), diabetes_loaders()


@faulty("LP404", "net.1", mended=_mended, source="Lu et al., 2020: ReLUs that are born dead")
def biases_far_below_zero() -> Arguments:
    return _digits(initialised(mlp(64, 32, 10), kaiming, bias=-20.0))


@faulty("LP404", "net.3", mended=_mended, source="questions: outputs that are all zero")
def negative_weights_after_a_relu() -> Arguments:
    net = mlp(64, 32, 32, 10)
    nn.init.uniform_(net[3].weight, -1.0, -0.5)  # type: ignore[arg-type]
    nn.init.zeros_(net[3].bias)  # type: ignore[arg-type]
    return _digits(net)


def _regression() -> Arguments:
    return Task(mlp(10, 32, 1), functional.mse_loss), diabetes_loaders()


@faulty("LP404", "net.3", mended=_regression, source="questions: a ReLU at the end that is dead")
def last_relu_is_dead() -> Arguments:
    net = nn.Sequential(*mlp(10, 32, 1), nn.ReLU())
    nn.init.constant_(net[3].bias, -5.0)  # type: ignore[arg-type]
    return Task(net, lambda y, t: functional.mse_loss(y, t + 3)), diabetes_loaders()


@faulty("LP405", "net.1", mended=_mended, also=["LP222"], source="a checkpoint with nan")
def weights_with_nan() -> Arguments:
    net = mlp(64, 32, 10)
    net[1].weight.data[3, 4] = float("nan")  # type: ignore[index, operator, union-attr]
    return _digits(net)


@faulty("LP405", "net.weight", mended=_mended, also=["LP220"], source="torch.empty's memory")
def weights_of_an_empty_tensor() -> Arguments:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # stands for torch.empty, whose memory holds what was there
            self.weight = nn.Parameter(torch.full((64, 10), 3e20))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ self.weight

    return _digits(Empty())


@faulty("LP406", "net.1", "net.3", also=["LP220"], source=_LECTURE + "N(0, 1) saturates tanh")
def saturated_tanh() -> Arguments:
    return _digits(initialised(mlp(64, 64, 64, 10, activation=nn.Tanh), normal(1.0)))


@faulty("LP406", "net.first", source=_LECTURE + "N(0, 1) saturates sigmoids")
def saturated_sigmoid_as_a_function() -> Arguments:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 10)
            nn.init.normal_(self.first.weight)

        def forward(self, x: Tensor) -> Any:
            return self.last(torch.sigmoid(self.first(x.flatten(1))))

    return _digits(Body())
