"""Healthy programs with few trained parameters, embeddings, graphs and known architectures."""

from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from tests.advisor.programs import Arguments, Task, digit_loaders, digits, healthy, mlp, split


class LowRank(nn.Module):
    """A frozen linear layer with a trained update of low rank, whose second factor begins at 0."""

    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, layer.in_features) / rank)
        self.b = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + functional.linear(functional.linear(x, self.a), self.b)


@healthy
def low_rank_updates() -> Arguments:
    net: Any = mlp(64, 64, 64, 10)
    for i in (1, 3, 5):
        net[i] = LowRank(net[i])
    return Task(net), digit_loaders()


@healthy
def factorised_ratings_with_sparse_gradients() -> Arguments:
    class Ratings(Task):
        def __init__(self) -> None:
            super().__init__(nn.Embedding(60, 8, sparse=True))
            self.items = nn.Embedding(90, 8, sparse=True)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            user, item, rating = batch
            return functional.mse_loss((self.net(user) * self.items(item)).sum(1), rating)

        def configure_optimizers(self) -> Any:
            return torch.optim.SparseAdam(list(self.parameters()), 0.01)

    generator = torch.Generator().manual_seed(0)
    user = torch.randint(60, (2000,), generator=generator)
    item = torch.randint(90, (2000,), generator=generator)
    tastes = torch.randn(60, 3, generator=generator) @ torch.randn(3, 90, generator=generator)
    return Ratings(), split(user, item, tastes[user, item])[0]


@healthy
def one_graph_a_batch() -> Arguments:
    """Nodes get their neighbours' features; train and validation differ in their masks alone."""

    class Convolution(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, edges, y, masks = batch
            hidden = functional.relu(edges @ self.net[0](x))
            logits = edges @ self.net[1](hidden)
            mask = masks[0 if self.training else 1]
            return functional.cross_entropy(logits[mask], y[mask])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    generator = torch.Generator().manual_seed(0)
    images, classes = (each[:300] for each in digits())
    close = classes[:, None] == classes
    edges = (torch.rand(300, 300, generator=generator) < 0.02) & close | torch.eye(300).bool()
    weights = edges.float() / edges.sum(1, keepdim=True)
    train = torch.rand(300, generator=generator) < 0.7
    graph = [(images.flatten(1), weights, classes, torch.stack([train, ~train]))]
    loader: Any = DataLoader(graph, batch_size=None)
    return Convolution(nn.ModuleList([nn.Linear(64, 32), nn.Linear(32, 10)])), (loader, loader)


@healthy
def two_tasks_in_turns() -> Arguments:
    """Each batch trains one of two heads."""

    class Turns(Task):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 32))
            self.heads = nn.ModuleList([nn.Linear(32, 10), nn.Linear(32, 2)])

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            task = batch_idx % 2
            logits = self.heads[task](functional.relu(self.net(x)))
            return functional.cross_entropy(logits, y % 2 if task else y)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.training_step(batch, batch_idx)

    return Turns(), digit_loaders()


@healthy
def thirty_layers_with_residuals() -> Arguments:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.GELU())

        def forward(self, x: Tensor) -> Tensor:
            return x + self.layers(x)

    blocks = [Residual() for _ in range(30)]
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), *blocks, nn.Linear(32, 10))
    return Task(net), digit_loaders()


def images(batch_size: int = 16) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return digits as standardised images of three channels and 32 pixels."""
    found, classes = (each[:400] for each in digits())
    large = functional.interpolate(found, 32).expand(-1, 3, -1, -1).contiguous()
    return split(large, classes, batch_size=batch_size)


def recipe(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, 0.02, momentum=0.9, weight_decay=1e-4)


@healthy
def resnet_by_torchvisions_recipe() -> Arguments:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(logits, target, label_smoothing=0.1)

    net = torchvision.models.resnet18(num_classes=10)
    return Task(net, loss, recipe), images(32)


@healthy
def vision_transformer() -> Arguments:
    net = torchvision.models.VisionTransformer(32, 8, 3, 4, 64, 128, num_classes=10, dropout=0.1)

    def optimizer(parameters: Any) -> Any:
        return torch.optim.AdamW(parameters, 3e-4, weight_decay=0.05)

    return Task(net, optimizer=optimizer), images(32)


@healthy
def convnext() -> Arguments:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    net = ConvNeXt([CNBlockConfig(32, 64, 2), CNBlockConfig(64, None, 2)], 0.1, num_classes=10)
    return Task(net), images(32)
