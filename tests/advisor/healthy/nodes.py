"""Graphs of which the nodes for training train."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.advisor.faulty.nodes import Convolution, loaders
from tests.advisor.programs import Arguments, healthy


@healthy
def nodes_that_a_mask_selects() -> Arguments:
    return Convolution(), loaders()


@healthy
def nodes_that_the_loss_weighs() -> Arguments:
    class Weighed(Convolution):
        def of_nodes(self, logits: Tensor, graph: Any) -> Tensor:
            losses = functional.cross_entropy(logits, graph["y"], reduction="none")
            return (losses * graph["train"]).sum() / graph["train"].sum()

    return Weighed(), loaders()


@healthy
def nodes_that_the_loss_ignores() -> Arguments:
    class Ignored(Convolution):
        def of_nodes(self, logits: Tensor, graph: Any) -> Tensor:
            targets = torch.where(graph["train"], graph["y"], -100)
            return functional.cross_entropy(logits, targets)

    return Ignored(), loaders()


@healthy
def nodes_of_the_mode() -> Arguments:
    """One function for both steps, which selects by the module's mode."""

    class Mode(Convolution):
        def of_nodes(self, logits: Tensor, graph: Any) -> Tensor:
            mask = graph["train"] if self.training else graph["val"]
            return functional.cross_entropy(logits[mask], graph["y"][mask])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Mode(), loaders()
