"""Healthy programs whose inputs or targets look faulty, and are not."""

from typing import Any

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from tests.advisor.faulty.data_inputs import Indexed, Lambda, Named, Rows, convolutions, raw_digits
from tests.advisor.programs import (
    Arguments,
    Task,
    cnn,
    diabetes,
    digit_loaders,
    digits,
    healthy,
    mlp,
    split,
)


def _words(number: int = 600, size: int = 500) -> tuple[Tensor, Tensor]:
    """Return counts of words of documents of three topics, and the topics."""
    generator = torch.Generator().manual_seed(0)
    topics = torch.arange(number) % 3
    rates = torch.rand(3, size, generator=generator) ** 6 * 0.6 + 0.002
    return torch.poisson(rates[topics], generator=generator), topics


@healthy
def tf_idf_of_unit_norm() -> Arguments:
    counts, topics = _words()
    x = counts * torch.log(len(counts) / (1 + (counts > 0).sum(0)))
    return Task(mlp(500, 32, 3)), split(functional.normalize(x), topics)


@healthy
def embeddings_of_unit_norm() -> Arguments:
    counts, topics = _words()
    generator = torch.Generator().manual_seed(1)
    x = counts @ torch.randn(500, 2048, generator=generator)
    return Task(mlp(2048, 32, 3)), split(functional.normalize(x), topics)


@healthy
def counts_of_words() -> Arguments:
    return Task(mlp(500, 32, 3)), split(*_words())


@healthy
def scaled_diabetes_of_sklearn() -> Arguments:
    found: Any = load_diabetes()
    x, y = torch.tensor(found.data).float(), diabetes()[1]

    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, 1e-2)

    return Task(mlp(10, 32, 1), functional.mse_loss, adam), split(x, y[:, None])


@healthy
def digits_from_0_to_16() -> Arguments:
    x, y = raw_digits()
    return Task(mlp(64, 64, 10)), split(x.float() / 255 * 16, y)


@healthy
def bytes_into_batch_norm() -> Arguments:
    net = nn.Sequential(Lambda(Tensor.float), nn.BatchNorm2d(1), *convolutions())
    return Task(net), split(*raw_digits())


@healthy
def bytes_into_convolution_and_batch_norm() -> Arguments:
    x, y = raw_digits()
    return Task(cnn()), split(x.float(), y)


@healthy
def bytes_scaled_in_the_model() -> Arguments:
    net = nn.Sequential(Lambda(lambda x: (x.float() / 255 - 0.3) / 0.35), *convolutions())
    return Task(net), split(*raw_digits())


@healthy
def bytes_scaled_by_a_hook() -> Arguments:
    class Hooked(Task):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            x, y = batch
            return (x.float() / 255 - 0.3) / 0.35, y

    return Hooked(mlp(64, 64, 10)), split(*raw_digits())


@healthy
def whole_numbers_into_an_embedding() -> Arguments:
    x, y = raw_digits()
    net = nn.Sequential(nn.Embedding(256, 8), nn.Flatten(), nn.Linear(512, 10))
    return Task(net), split((x.flatten(1) // 64).long(), y)


@healthy
def missing_values_filled_in_the_model() -> Arguments:
    x, y = diabetes()
    x = x.clone()
    x[::7, 2] = torch.nan
    net = nn.Sequential(Lambda(torch.nan_to_num), *mlp(10, 32, 1))
    return Task(net, functional.mse_loss), split(x, y[:, None])


@healthy
def column_of_missing_values_left_out_in_the_model() -> Arguments:
    x, y = diabetes()
    x = torch.cat([x, torch.full((len(x), 1), torch.nan)], 1)
    net = nn.Sequential(Lambda(lambda x: x[:, :10]), *mlp(10, 32, 1))
    return Task(net, functional.mse_loss), split(x, y[:, None])


@healthy
def missing_targets_masked_in_the_loss() -> Arguments:
    x, y = diabetes()
    targets = torch.stack([y, -y], 1)
    targets[100::90, 1] = torch.nan

    def masked(prediction: Tensor, target: Tensor) -> Tensor:
        known = ~torch.isnan(target)
        return functional.mse_loss(prediction[known], target[known])

    return Task(mlp(10, 32, 2), masked), split(x, targets)


@healthy
def missing_targets_filled_before_the_difference() -> Arguments:
    x, y = diabetes()
    targets = torch.stack([y, -y], 1)
    targets[::9, 1] = torch.nan

    def masked(prediction: Tensor, target: Tensor) -> Tensor:
        known = torch.isfinite(target)
        difference = prediction - torch.where(known, target, prediction)
        return (difference**2).sum() / known.sum()

    return Task(mlp(10, 32, 2), masked), split(x, targets)


@healthy
def table_with_flags_constants_and_one_hot_columns() -> Arguments:
    x, y = diabetes()
    rare = torch.zeros(len(x), 4)
    rare[::150, 0] = rare[:, 1] = 1
    rare[::3, 2] = 1
    rare[::40, 3] = 1e-3
    return Task(mlp(14, 32, 1), functional.mse_loss), split(torch.cat([x, rare], 1), y[:, None])


@healthy
def principal_components() -> Arguments:
    x, y = digits()
    flat = x.flatten(1) - x.flatten(1).mean(0)
    basis = torch.linalg.svd(flat, full_matrices=False)[2]
    return Task(mlp(60, 64, 10)), split(flat @ basis[:60].T, y)


@healthy
def decibels_into_a_norm() -> Arguments:
    x, y = digits()
    return Task(cnn()), split(20 * x - 40, y)


@healthy
def autoencoder() -> Arguments:
    class Auto(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0].flatten(1)
            return super().training_step((x, x), batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x = batch[0].flatten(1)
            super().validation_step((x, x), batch_idx)

    return Auto(mlp(64, 16, 64), functional.mse_loss), digit_loaders()


@healthy
def lagged_values_of_a_series() -> Arguments:
    time = torch.arange(1200.0)
    noise = torch.randn(1200, generator=torch.Generator().manual_seed(0))
    series = torch.sin(time / 9) + 0.1 * noise + time / 1200
    windows = series.unfold(0, 17, 1)
    train, val = windows[:900], windows[900:]
    return Task(mlp(16, 32, 1), functional.mse_loss), (
        DataLoader(TensorDataset(train[:, :16], train[:, 16:]), 32),
        DataLoader(TensorDataset(val[:, :16], val[:, 16:]), 32),
    )


@healthy
def residuals_that_have_to_vanish() -> Arguments:
    """A network that solves u' = -u with u(0) = 1, by automatic differentiation."""

    class Physics(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            t, zero = batch
            t = t.requires_grad_()
            u = 1 + t * self.net(t)
            slope = torch.autograd.grad(u.sum(), t, create_graph=True)[0]
            return functional.mse_loss(slope + u, zero)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            t, _ = batch
            self.log("val_loss", functional.mse_loss(1 + t * self.net(t), torch.exp(-t)))

    t = torch.rand(512, 1, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(t, torch.zeros_like(t))
    net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
    return Physics(net), (
        DataLoader(data, 64, shuffle=True),
        DataLoader(TensorDataset(1 - t[:200] / 1.1, t[:200]), 64),
    )


def _rare() -> tuple[Tensor, Tensor]:
    x, y = digits()
    index = torch.cat([(y != 3).nonzero()[:, 0], (y == 3).nonzero()[:20, 0]])
    return x[index], (y[index] == 3).long()


@healthy
def rare_class_with_weights() -> Arguments:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(logits, target, torch.tensor([0.5, 20.0]))

    return Task(mlp(64, 64, 2), loss), split(*_rare())


@healthy
def rare_class_with_pos_weight() -> Arguments:
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(80.0))
    x, y = _rare()
    return Task(mlp(64, 64, 1), loss), split(x, y[:, None].float())


@healthy
def rare_class_with_a_sampler() -> Arguments:
    x, y = _rare()
    weights = torch.where(y == 1, 80.0, 1.0)
    sampler = WeightedRandomSampler(weights.tolist(), len(y))
    return Task(mlp(64, 64, 2)), (DataLoader(Indexed(x, y), 32, sampler=sampler), _of_others(x, y))


def _of_others(x: Tensor, y: Tensor) -> DataLoader[Any]:
    """Return validation images that differ a little from those of training."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x + 0.1 * noise, y), 64)


@healthy
def rare_class_with_a_focal_loss() -> Arguments:
    def focal(logits: Tensor, target: Tensor) -> Tensor:
        each = functional.cross_entropy(logits, target, reduction="none")
        return ((1 - torch.exp(-each)) ** 2 * each).mean()

    return Task(mlp(64, 64, 2), focal), split(*_rare())


@healthy
def rare_class_with_adjusted_logits() -> Arguments:
    prior = torch.tensor([0.99, 0.01]).log()

    def adjusted(logits: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(logits + prior, target)

    return Task(mlp(64, 64, 2), adjusted), split(*_rare())


@healthy
def imbalance_of_nine() -> Arguments:
    x, y = digits()
    return Task(mlp(64, 64, 2)), split(x, (y == 3).long())


@healthy
def segmentation_of_a_large_background() -> Arguments:
    x, _ = digits()
    image = functional.pad(x + 0.8, (4, 4, 4, 4))
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))
    return Task(net), split(image, (image[:, 0] > 1.5).long())


@healthy
def text_of_common_letters() -> Arguments:
    generator = torch.Generator().manual_seed(0)
    shares = 0.5 ** torch.arange(12)
    start = torch.multinomial(shares, 256, replacement=True, generator=generator)[:, None]
    tokens = (start + torch.arange(17)) % 12
    tokens = torch.where(tokens > 6, 0, tokens)

    class Letters(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            (text,) = batch
            return super().training_step((text[:, :-1], text[:, 1:].flatten()), batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            (text,) = batch
            super().validation_step((text[:, :-1], text[:, 1:].flatten()), batch_idx)

    net = nn.Sequential(nn.Embedding(12, 16), nn.Linear(16, 12), nn.Flatten(0, 1))
    return Letters(net), split(tokens, batch_size=32)


class _Stream(IterableDataset[Any]):
    """Draws samples anew each time."""

    def __iter__(self) -> Any:
        for i in range(512):
            y = i % 4
            yield torch.randn(16) + torch.eye(16)[y] * 4, y


@healthy
def stream_of_random_samples() -> Arguments:
    return Task(mlp(16, 32, 4)), (DataLoader(_Stream(), 32), DataLoader(_Stream(), 32))


@healthy
def dicts_of_images() -> Arguments:
    x, y = digits()
    train, val = Rows(x[:1400], y[:1400]), Rows(x[1400:], y[1400:])
    return Named(mlp(64, 64, 10)), (DataLoader(train, 32, shuffle=True), DataLoader(val, 32))


@healthy
def images_flattened_from_channels_last() -> Arguments:
    x, y = digits()
    images = x.movedim(1, -1).expand(-1, -1, -1, 3).contiguous()
    return Task(
        nn.Sequential(Lambda(lambda x: x.reshape(-1, 3 * 64)), *mlp(192, 32, 10)[1:])
    ), split(images, y)
