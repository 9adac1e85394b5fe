"""Healthy programs with scaled cosines, and a graph in both splits."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from tests.advisor.programs import Arguments, Task, digit_loaders, digits, healthy, mlp


class Cosines(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = mlp(64, 64, 32)
        self.classes = nn.Parameter(torch.randn(10, 32))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(
            functional.normalize(self.features(x)), functional.normalize(self.classes)
        )


@healthy
def cosines_with_an_additive_margin() -> Arguments:
    def loss(cosines: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(30 * (cosines - 0.35 * functional.one_hot(y, 10)), y)

    return Task(Cosines(), loss), digit_loaders()


@healthy
def cosines_with_an_angular_margin() -> Arguments:
    def loss(cosines: Tensor, y: Tensor) -> Tensor:
        angles = torch.acos(cosines.clamp(-0.999, 0.999)) + 0.2 * functional.one_hot(y, 10)
        return functional.cross_entropy(16 * angles.cos(), y)

    return Task(Cosines(), loss), digit_loaders()


@healthy
def graph_of_a_dict_in_both_splits() -> Arguments:
    class Transductive(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            hidden = functional.relu(batch["a"] @ self.net[0](batch["x"]))
            logits = batch["a"] @ self.net[1](hidden)
            mask = batch["m"] if self.training else ~batch["m"]
            return functional.cross_entropy(logits[mask], batch["y"][mask])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    images, classes = (each[:200] for each in digits())
    generator = torch.Generator().manual_seed(0)
    close = (torch.rand(200, 200, generator=generator) < 0.05) & (classes[:, None] == classes)
    edges = (close | torch.eye(200).bool()).float()
    mask = torch.rand(200, generator=generator) < 0.6
    graph = {
        "x": images.flatten(1),
        "a": edges / edges.sum(1, keepdim=True),
        "y": classes,
        "m": mask,
    }
    loader: Any = DataLoader([graph], batch_size=None)
    return Transductive(nn.ModuleList([nn.Linear(64, 16), nn.Linear(16, 10)])), (loader, loader)
