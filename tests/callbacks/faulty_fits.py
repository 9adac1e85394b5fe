"""Fits with a fault that only training shows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from tests.advisor.programs import Task, diabetes, digit_loaders, digits, mlp, split


@dataclass
class Fit:
    """The arguments of a fit.

    Attributes:
        module: The module.
        train: The train loader.
        val: The validation loader, if the rule needs it.
        steps: The length.
        callbacks: Other callbacks.
        options: Further arguments of the Trainer.
    """

    module: LightningModule
    train: Any
    val: Any = None
    steps: int = 100
    callbacks: tuple[Callback, ...] = ()
    options: Any = None


Make = Callable[[], Fit]


@dataclass(frozen=True)
class FaultyFit:
    """A faulty fit, the rule that has to find its fault, the module that it has to name."""

    make: Make
    id: str
    module: str
    source: str


FAULTY_FITS: dict[str, FaultyFit] = {}


def faulty(id: str, module: str = "", *, source: str) -> Callable[[Make], Make]:
    def declared(make: Make) -> Make:
        FAULTY_FITS[make.__name__] = FaultyFit(make, id, module, source)
        return make

    return declared


def sgd(lr: float, **options: Any) -> Any:
    return partial(torch.optim.SGD, lr=lr, **options)


def adam(lr: float) -> Any:
    return partial(torch.optim.Adam, lr=lr)


def train() -> DataLoader[Any]:
    return digit_loaders()[0]


# Numbers that aren't finite.


@faulty("LP801", "net.3", source="forum questions on nan losses of a cross entropy written by hand")
def log_of_zero() -> Fit:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        return -output.relu().log().gather(1, y[:, None]).mean()

    return Fit(Task(mlp(64, 32, 10), loss), train())


@faulty("LP801", "net.3", source="questions on the gradient of sqrt at 0, in distances of pairs")
def root_of_zero() -> Fit:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        return (
            (output - output.roll(1, 0).where(y[:, None] < 0, output)).square().sum(1).sqrt().mean()
        )

    return Fit(Task(mlp(64, 32, 10), loss), train())


@faulty("LP801", "", source="reports of missing values in the table that was read")
def missing_values() -> Fit:
    x, y = diabetes()
    x = x.clone()
    x[::50, 3] = torch.nan
    return Fit(Task(mlp(10, 16, 1), functional.mse_loss), split(x, y[:, None])[0])


@faulty("LP801", "net.1", source="reports of overflow of an exponential in the middle of a network")
def exponential_that_overflows() -> Fit:
    class Exponential(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            hidden = (100 * self.net[1](self.net[0](batch[0]))).exp()
            return functional.cross_entropy(self.net[3](hidden), batch[1])

    return Fit(Exponential(mlp(64, 32, 10)), train())


# Gradients.


@faulty("LP802", "net.1", source="TheDeepChecker: vanishing gradients of deep sigmoid networks")
def deep_sigmoids() -> Fit:
    return Fit(Task(mlp(64, *[32] * 10, 10, activation=nn.Sigmoid)), train())


@faulty("LP802", "net.1", source="lecture S4: N(0, 0.01) in a deep tanh network")
def small_weights_in_a_deep_network() -> Fit:
    net = mlp(64, *[32] * 8, 10, activation=nn.Tanh)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
    return Fit(Task(net), train())


class Unrolled(nn.Module):
    """A recurrent network without gates, whose recurrent weight is too large."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.enter, self.again, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 10)
        nn.init.orthogonal_(self.again.weight, gain=scale)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 16)
        for row in x.squeeze(1).unbind(1):
            h = self.again(h) + self.enter(row)
        out: Tensor = self.head(h)
        return out


@faulty("LP803", "net.again", source="Pascanu et al., 2013: gradients through time explode")
def recurrence_that_explodes() -> Fit:
    return Fit(Task(Unrolled(1.0), optimizer=sgd(0.5)), train(), steps=10)


@faulty("LP803", "net.3", source="lecture S4: weights that are too large in a deep network")
def large_weights_in_a_deep_network() -> Fit:
    net = mlp(10, *[32] * 8, 1)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.3)
    x, y = diabetes()
    return Fit(Task(net, functional.mse_loss, sgd(0.05)), split(x, y[:, None])[0], steps=10)


# Activations.


@faulty("LP804", "net.2", source="TheDeepChecker: biases that keep all units of a layer off")
def negative_biases() -> Fit:
    net = mlp(64, 64, 10)
    nn.init.constant_(net.get_parameter("1.bias"), -20.0)
    return Fit(Task(net), train())


class Functional(nn.Module):
    """Layers, and activations that are functions."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 48), nn.Linear(48, 48)
        self.head = nn.Linear(48, 10)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.first(x.flatten(1)))
        out: Tensor = self.head(self.activation(self.second(hidden)))
        return out


@faulty("LP804", "net.second", source="questions on a loss that stops after a large learning rate")
def units_killed_by_a_large_step() -> Fit:
    return Fit(Task(Functional(torch.relu), optimizer=sgd(20.0)), train(), steps=60)


@faulty("LP804", "net.1", source="Keras issues: a ReLU after a convolution that gives zeros alone")
def dead_convolution() -> Fit:
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)
    )
    nn.init.constant_(net.get_parameter("0.bias"), -9.0)
    return Fit(Task(net), train())


@faulty("LP805", "net.2", source="lecture S4: N(0, 1) saturates tanh")
def saturated_tanh() -> Fit:
    net = mlp(64, 64, 64, 10, activation=nn.Tanh)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight)
    return Fit(Task(net), train())


@faulty("LP805", "net.first", source="UMLAUT: inputs that are not scaled, before a sigmoid")
def sigmoids_of_raw_pixels() -> Fit:
    x, y = digits()
    return Fit(Task(Functional(torch.sigmoid)), split(x * 255, y)[0])


# Updates and the learning rate.


@faulty("LP806", "net.1.weight", source="AutoTrainer: oscillation by a large learning rate")
def adam_with_rate_one() -> Fit:
    return Fit(Task(mlp(64, 32, 10), optimizer=adam(1.0)), train(), steps=60)


class ByHand(Task):
    """Manual optimization."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(self.net(batch[0]), batch[1]))
        optimizer.step()


@faulty("LP806", "net.1.weight", source="forum questions: rates of SGD given to Adam")
def large_rate_by_hand() -> Fit:
    return Fit(ByHand(mlp(64, 32, 10), optimizer=adam(0.8)), train(), steps=60)


@faulty("LP807", source="questions on a loss that doesn't move, with a rate of 1e-9")
def tiny_rate() -> Fit:
    return Fit(Task(mlp(64, 32, 10), optimizer=adam(1e-9)), train())


@faulty("LP807", source="warmups counted in steps that were meant in epochs")
def endless_warmup() -> Fit:
    class Warm(Task):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters())
            rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 1e6)
            return [optimizer], [{"scheduler": rates, "interval": "step"}]

    return Fit(Warm(mlp(64, 32, 10)), train())


@faulty("LP808", source="reports of a loss that rises: the sign, or maximize=True, is wrong")
def ascent() -> Fit:
    return Fit(Task(mlp(64, 32, 10), optimizer=sgd(0.05, maximize=True)), train(), steps=60)


@faulty("LP808", source="AutoTrainer: oscillating loss of a network with a rate that is too large")
def divergence() -> Fit:
    x, y = diabetes()
    module = Task(mlp(10, 1), functional.mse_loss, sgd(0.55))
    return Fit(module, split(x, y[:, None])[0], steps=20)


@faulty("LP809", source="AutoTrainer: slow convergence, by a rate that is too small")
def slow_sgd() -> Fit:
    return Fit(Task(mlp(64, 32, 10), optimizer=sgd(3e-4)), train(), steps=150)


@faulty("LP809", source="rates for fine-tuning that are kept when training from scratch")
def slow_adam() -> Fit:
    return Fit(Task(mlp(64, 32, 10), optimizer=adam(3e-6)), train(), steps=150)
