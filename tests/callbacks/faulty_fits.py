"""Fits with a fault that only training shows."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lightning_practices.callbacks import GradientClipping
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


@faulty("LP803", source="Pascanu et al., 2013: gradients through time explode")
def recurrence_that_explodes() -> Fit:
    return Fit(Task(Unrolled(1.0), optimizer=sgd(0.5)), train(), steps=10)


@faulty("LP803", source="lecture S4: weights that are too large in a deep network")
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


# What the loss says.


@faulty("LP810", source="Karpathy's recipe: inputs that are zero by a mistake in the pipeline")
def inputs_of_zeros() -> Fit:
    x, y = digits()
    return Fit(Task(mlp(64, 32, 10)), split(0 * x, y)[0], steps=150)


@faulty("LP810", source="questions on a regression that predicts the mean for each sample")
def augmentation_that_destroys() -> Fit:
    class Noisy(Task):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return torch.randn_like(batch[0]), batch[1]

    x, y = diabetes()
    module = Noisy(mlp(10, 16, 1), functional.mse_loss, adam(3e-3))
    return Fit(module, split(x, y[:, None])[0], steps=200)


def few_digits(noise: float) -> tuple[DataLoader[Any], DataLoader[Any]]:
    x, y = digits()
    generator = torch.Generator().manual_seed(0)
    other = torch.randint(0, 10, y.shape, generator=generator)
    given = other.where(torch.rand(y.shape, generator=generator) < noise, y)
    x = x + 1.0 * torch.randn(x.shape, generator=generator)
    own, rest = TensorDataset(x[:150], given[:150]), TensorDataset(x[150:700], y[150:700])
    return DataLoader(own, 50, shuffle=True), DataLoader(rest, 550)


@faulty("LP811", source="lecture S4: detecting overfitting")
def few_samples_with_wrong_labels() -> Fit:
    return Fit(Task(mlp(64, 256, 10), optimizer=adam(3e-3)), *few_digits(0.3), steps=120)


@faulty("LP811", source="lecture S4: a model too large for its data")
def large_model_for_a_small_table() -> Fit:
    x, y = diabetes()
    loaders = split(x, y[:, None], batch_size=40, share=0.2)
    return Fit(Task(mlp(10, 256, 256, 1), functional.mse_loss, adam(3e-3)), *loaders, steps=120)


@faulty("LP812", source="Zhang et al., 2017: labels drawn at random")
def random_labels() -> Fit:
    return Fit(Task(mlp(64, 512, 10), optimizer=adam(3e-3)), *few_digits(1.0), steps=150)


@faulty("LP812", source="questions on validation data that are read in another order than labels")
def targets_shuffled_apart() -> Fit:
    x, y = diabetes()
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    loaders = split(x, y[:, None], batch_size=40, share=0.2)
    return Fit(Task(mlp(10, 256, 256, 1), functional.mse_loss, adam(3e-3)), *loaders, steps=120)


@faulty("LP813", source="lecture S4: training that ends before the overfitting zone")
def short_fit() -> Fit:
    return Fit(Task(mlp(64, 32, 10)), *digit_loaders(), steps=150)


@faulty("LP813", source="lecture S4: the same, for a regression")
def short_regression() -> Fit:
    x, y = diabetes()
    module = Task(mlp(10, 16, 1), functional.mse_loss)
    return Fit(module, *split(x, y[:, None]), steps=30)


@faulty("LP814", source="lecture S4: a linear model for what is not linear")
def linear_model_for_parity() -> Fit:
    x, _ = digits()
    y = ((x[:, 0, 3, 3] > 0) ^ (x[:, 0, 4, 4] > 0)).long()
    return Fit(Task(mlp(64, 2)), split(x, y)[0], steps=150)


@faulty("LP814", source="AutoTrainer: slow convergence")
def one_narrow_layer() -> Fit:
    return Fit(Task(mlp(64, 1, 10)), train(), steps=150)


# Steps.


class Unzeroed(ByHand):
    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self.manual_backward(self.loss(self.net(batch[0]), batch[1]))
        optimizer: Any = self.optimizers()
        optimizer.step()


@faulty("LP815", source="Lightning's forum: zero_grad left out under manual optimization")
def never_zeroed() -> Fit:
    return Fit(Unzeroed(mlp(64, 32, 10)), train(), steps=30)


@faulty("LP815", source="hooks that are overridden to print gradients, and leave out the zeroing")
def overridden_zeroing() -> Fit:
    class Prints(Task):
        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
            pass

    return Fit(Prints(mlp(64, 32, 10)), train(), steps=30)


@faulty("LP816", source="clip values copied from other tasks")
def clipped_by_the_trainer() -> Fit:
    return Fit(Task(mlp(64, 32, 10)), train(), steps=320, options={"gradient_clip_val": 1e-3})


@faulty("LP816", source="the same, by this package's callback")
def clipped_by_a_callback() -> Fit:
    return Fit(Task(mlp(64, 32, 10)), train(), steps=320, callbacks=(GradientClipping(1e-3),))


# Data.


class IgnoresIndex(Dataset[Any]):
    def __len__(self) -> int:
        return 640

    def __getitem__(self, index: int) -> Any:
        x, y = digits()
        return x[0], y[0]


@faulty("LP817", source="questions on datasets whose __getitem__ ignores its index")
def one_sample_again_and_again() -> Fit:
    return Fit(Task(mlp(64, 32, 10)), DataLoader(IgnoresIndex(), 64), steps=30)


class OneBatch(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        x, y = digits()
        while True:
            yield x[:64], y[:64]


@faulty("LP817", source="next(iter(loader)) in a generator")
def one_batch_again_and_again() -> Fit:
    return Fit(Task(mlp(64, 32, 10)), DataLoader(OneBatch(), None), steps=30)


@faulty("LP817", source="questions on data sorted by class, without shuffling")
def sorted_classes() -> Fit:
    x, y = digits()
    order = y.argsort(stable=True)
    return Fit(Task(mlp(64, 32, 10)), DataLoader(TensorDataset(x[order], y[order]), 16), steps=110)


class Slow(Dataset[Any]):
    def __len__(self) -> int:
        return 640

    def __getitem__(self, index: int) -> Any:
        time.sleep(0.002)
        x, y = digits()
        return x[index], y[index]


@faulty("LP818", source="images decoded in the process that trains")
def slow_samples() -> Fit:
    return Fit(Task(mlp(64, 32, 10)), DataLoader(Slow(), 8), steps=40)


@faulty("LP818", source="a stream that is read over a network")
def slow_stream() -> Fit:
    class Stream(OneBatch):
        def __iter__(self) -> Iterator[Any]:
            for batch in super().__iter__():
                time.sleep(0.02)
                yield batch

    return Fit(Task(mlp(64, 32, 10)), DataLoader(Stream(), None), steps=40)
