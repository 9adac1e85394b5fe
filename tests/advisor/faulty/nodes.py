"""Graphs whose validation nodes train."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from tests.advisor.programs import Arguments, Task, digits, faulty


class Convolution(Task):
    """Two graph convolutions over a graph of which masks select nodes for each split."""

    def __init__(self) -> None:
        super().__init__(nn.ModuleList([nn.Linear(64, 32), nn.Dropout(0.3), nn.Linear(32, 10)]))

    def forward(self, graph: Any) -> Any:
        first, drop, last = self.net
        hidden = drop(functional.relu(graph["edges"] @ first(graph["x"])))
        return graph["edges"] @ last(hidden)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.of_nodes(self(batch), batch)

    def of_nodes(self, logits: Tensor, graph: Any) -> Tensor:
        mask = graph["train"]
        return functional.cross_entropy(logits[mask], graph["y"][mask])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        mask = batch["val"]
        self.log("val_loss", functional.cross_entropy(self(batch)[mask], batch["y"][mask]))


def graph() -> Any:
    generator = torch.Generator().manual_seed(0)
    images, classes = (each[:300] for each in digits())
    close = classes[:, None] == classes
    edges = (torch.rand(300, 300, generator=generator) < 0.02) & close | torch.eye(300).bool()
    part = torch.rand(300, generator=generator)
    return {
        "x": images.flatten(1),
        "edges": edges.float() / edges.sum(1, keepdim=True),
        "y": classes,
        "train": part < 0.5,
        "val": (part >= 0.5) & (part < 0.75),
        "test": part >= 0.75,
    }


def loaders() -> Any:
    loader: Any = DataLoader([graph()], batch_size=None)
    return loader, loader


@faulty("LP347", source="a loss of all nodes of a graph")
def loss_of_all_nodes() -> Arguments:
    class All(Convolution):
        def of_nodes(self, logits: Tensor, graph: Any) -> Tensor:
            return functional.cross_entropy(logits, graph["y"])

    return All(), loaders()


@faulty("LP347", source="a loss of each node, weighted by the wrong mask")
def loss_weighted_by_all_but_test() -> Arguments:
    class Rest(Convolution):
        def of_nodes(self, logits: Tensor, graph: Any) -> Tensor:
            losses = functional.cross_entropy(logits, graph["y"], reduction="none")
            return (losses * ~graph["test"]).sum() / (~graph["test"]).sum()

    return Rest(), loaders()
