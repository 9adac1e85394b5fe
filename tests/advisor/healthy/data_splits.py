"""Healthy programs whose splits look alike or apart, and batches that look too small."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.advisor.faulty.data_inputs import Lambda, raw_digits, wine
from tests.advisor.faulty.data_splits import Transformed
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


class _Graph(Task):
    """Classifies nodes: a batch is the graph with the masks of its split."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, neighbours, y, mask = batch
        smooth = neighbours @ x / neighbours.sum(1, keepdim=True)
        return self.loss(self.net(smooth)[mask], y[mask])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


@healthy
def one_graph_under_two_masks() -> Arguments:
    x, y = digits()
    x, y = x[:400].flatten(1), y[:400]
    neighbours = (torch.cdist(x, x) < 6).float() + torch.eye(len(x))
    is_train = torch.rand(len(x), generator=torch.Generator().manual_seed(0)) < 0.7
    net = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))

    def loader(mask: Tensor) -> DataLoader[Any]:
        graphs: Any = [(x, neighbours, y, mask)]
        return DataLoader(graphs, batch_size=None)

    return _Graph(net), (loader(is_train), loader(~is_train))


@healthy
def nodes_of_one_table() -> Arguments:
    """Edges are the samples; the features of nodes are in the module."""

    class Factors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.items = nn.Embedding(30, 8), nn.Embedding(40, 8)

        def forward(self, pairs: Tensor) -> Tensor:
            score: Tensor = (self.users(pairs[:, 0]) * self.items(pairs[:, 1])).sum(1)
            return score

    generator = torch.Generator().manual_seed(0)
    pairs = torch.cartesian_prod(torch.arange(30), torch.arange(40))
    tastes = torch.randn(30, 2, generator=generator), torch.randn(40, 2, generator=generator)
    ratings = (tastes[0][pairs[:, 0]] * tastes[1][pairs[:, 1]]).sum(1)

    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, 0.03)

    return Task(Factors(), functional.mse_loss, adam), split(pairs, ratings)


@healthy
def binary_inputs_that_are_equal_by_chance() -> Arguments:
    x = torch.randint(0, 2, (1000, 5), generator=torch.Generator().manual_seed(0)).float()
    y = (x.sum(1) > 2).long()
    return Task(mlp(5, 32, 2)), split(x, y)


@healthy
def tokens_that_are_equal_by_chance() -> Arguments:
    x = torch.randint(0, 6, (1500, 3), generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(
        nn.Embedding(6, 16), nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 2)
    )
    return Task(net), split(x, (x.sum(1) > 7).long())


class Made(Dataset[Any]):
    """Makes samples anew, whichever index it gets."""

    def __len__(self) -> int:
        return 400

    def __getitem__(self, index: int) -> Any:
        y = index % 4
        return torch.randn(16) + 3 * torch.eye(16)[y], y


@healthy
def samples_made_on_the_fly() -> Arguments:
    data = Made()
    return Task(mlp(16, 32, 4)), (DataLoader(data, 32, shuffle=True), DataLoader(data, 32))


class _Noisy(Dataset[Any]):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        x = self.x[index].flatten()
        return x + 0.5 * torch.randn(64), x


@healthy
def denoising_with_fresh_noise() -> Arguments:
    x, _ = digits()
    return Task(mlp(64, 64, 64), functional.mse_loss), (
        DataLoader(_Noisy(x[:1400]), 32, shuffle=True), DataLoader(_Noisy(x[1400:]), 32)
    )  # fmt: skip


class _Views(Dataset[Any]):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        x = self.x[index].flatten()
        return [x + 0.3 * torch.randn(64) for _ in range(2)]


class _Contrastive(Task):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        a, b = (functional.normalize(self.net(x)) for x in batch)
        return functional.cross_entropy(a @ b.T / 0.2, torch.arange(len(a), device=a.device))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


@healthy
def contrastive_views_in_both_splits() -> Arguments:
    x, _ = digits()
    return _Contrastive(mlp(64, 64, 16)), (
        DataLoader(_Views(x[:1400]), 64, shuffle=True, drop_last=True),
        DataLoader(_Views(x[1400:]), 64),
    )


@healthy
def augmented_training_images() -> Arguments:
    x, y = digits()

    def augment(image: Tensor) -> Tensor:
        moved = torch.roll(image, int(torch.randint(-1, 2, ())), -1)
        return moved * (torch.rand(1, 8, 8) < 0.9) + 0.3 * torch.randn(1, 8, 8)

    return Task(cnn()), (
        DataLoader(Transformed(x[:1400], y[:1400], augment), 64, shuffle=True),
        DataLoader(Transformed(x[1400:], y[1400:], lambda image: image), 64),
    )


@healthy
def masked_training_images() -> Arguments:
    class Masked(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0].flatten(1)
            kept = torch.rand_like(x) < 0.25
            return functional.mse_loss(self.net(x * kept), x)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x = batch[0].flatten(1)
            self.log("val_loss", functional.mse_loss(self.net(x), x))

    return Masked(mlp(64, 128, 64)), digit_loaders()


@healthy
def mixed_training_images() -> Arguments:
    class Mixed(Task):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            x, y = batch
            y = functional.one_hot(y, 10).float()
            if not self.trainer.training:
                return x, y
            order, share = torch.randperm(len(x)), torch.rand(())
            return torch.lerp(x, x[order], share), torch.lerp(y, y[order], share)

    return Mixed(mlp(64, 64, 10)), digit_loaders()


@healthy
def validation_sorted_by_class() -> Arguments:
    x, y = digits()
    order = y[1200:].argsort(stable=True) + 1200
    return Task(cnn()), (
        DataLoader(TensorDataset(x[:1200], y[:1200]), 32, shuffle=True),
        DataLoader(TensorDataset(x[order], y[order]), 32),
    )


@healthy
def training_sorted_by_class_and_shuffled() -> Arguments:
    x, y = digits()
    order = y.argsort(stable=True)
    train, val = order[::2], order[1::2]
    return Task(mlp(64, 64, 10)), (
        DataLoader(TensorDataset(x[train], y[train]), 32, shuffle=True),
        DataLoader(TensorDataset(x[val], y[val]), 32),
    )


@healthy
def drift_of_a_measured_series() -> Arguments:
    """A chronological split of a process with a slow drift."""
    time = torch.linspace(0, 1, 2000)[:, None]
    noise = torch.randn(2000, 5, generator=torch.Generator().manual_seed(0))
    x = (
        torch.sin(60 * time * torch.arange(1, 6))
        + 0.3 * noise
        + torch.tensor([2.0, 0, 0, 0, 0]) * time
    )
    y = x[:, :1] * x[:, 1:2] + x[:, 2:3]
    return Task(mlp(5, 64, 1), functional.mse_loss), (
        DataLoader(TensorDataset(x[:1600], y[:1600]), 64, shuffle=True),
        DataLoader(TensorDataset(x[1600:], y[1600:]), 64),
    )


@healthy
def validation_of_another_domain_besides() -> Arguments:
    class Several(Task):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)

    x, y = digits()
    train, val = digit_loaders()
    return Several(mlp(64, 64, 10)), (train, [DataLoader(TensorDataset(4 * x + 3, y), 32), val])


@healthy
def last_batch_of_one_image() -> Arguments:
    x, y = digits()
    train = DataLoader(TensorDataset(x[:1281], y[:1281]), 64, shuffle=True)
    return Task(cnn()), (train, DataLoader(TensorDataset(x[1300:], y[1300:]), 64))


@healthy
def batch_norm_of_frozen_statistics_and_one_sample() -> Arguments:
    class Frozen(Task):
        def on_train_epoch_start(self) -> None:
            for part in self.net.modules():
                if isinstance(part, nn.BatchNorm1d):
                    part.eval().requires_grad_(False)

    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)
    )
    return Frozen(net), digit_loaders(1)


@healthy
def four_images_of_many_positions() -> Arguments:
    x, _ = digits()
    image = functional.interpolate(x, scale_factor=4)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1)
    )
    return Task(net), split(image[:800], (image[:800, 0] > 0.5).long(), batch_size=4)


@healthy
def two_sequences_of_many_steps() -> Arguments:
    x, _ = digits()
    net = nn.Sequential(Lambda(lambda x: x.reshape(-1, 8)), nn.Linear(8, 16), nn.BatchNorm1d(16),
                        nn.ReLU(), nn.Linear(16, 8))  # fmt: skip
    return Task(net, _rows_loss), split(x, x.flip(-1), batch_size=2)


def _rows_loss(prediction: Tensor, target: Tensor) -> Tensor:
    return functional.mse_loss(prediction, target.reshape(-1, 8))


@healthy
def two_devices_with_large_batches() -> Arguments:
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    return Task(cnn()), digit_loaders(32), trainer


@healthy
def datamodule_with_workers() -> Arguments:
    class Data(LightningDataModule):
        def setup(self, stage: str) -> None:
            self.splits = [one.dataset for one in digit_loaders()]

        def train_dataloader(self) -> Any:
            return DataLoader(self.splits[0], 64, shuffle=True, num_workers=2)

        def val_dataloader(self) -> Any:
            return DataLoader(self.splits[1], 64, num_workers=2)

    return Task(mlp(64, 64, 10)), Data()


@healthy
def raw_table_into_batch_norm() -> Arguments:
    """At the first validation the norm has hardly any statistics of features in thousands."""
    net = nn.Sequential(nn.BatchNorm1d(13), *mlp(13, 32, 3))
    return Task(net), split(*wine(), batch_size=16)


@healthy
def training_without_validation() -> Arguments:
    x, y = raw_digits()
    train, _ = split(x.float() / 255, y)
    return Task(mlp(64, 64, 10)), train


@healthy
def whole_table_in_one_batch() -> Arguments:
    x, y = diabetes()
    return Task(mlp(10, 32, 1), functional.mse_loss), split(x, y[:, None], batch_size=353)
