"""Fits with a fault that the loss, the steps or the batches show."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lightning_practices.callbacks import GradientClipping
from tests.advisor.programs import Task, diabetes, digit_loaders, digits, mlp, split
from tests.callbacks.faulty_fits import ByHand, Fit, adam, faulty, train

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


@faulty("LP819", source="next(iter(loader)) in a generator")
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
