"""Weights and layers that are made anew while a fit runs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.programs import Arguments, Task, digit_loaders, faulty, mlp


def usual() -> Arguments:
    return Task(mlp(64, 64, 10)), digit_loaders()


def draw(module: nn.Module) -> None:
    """Draw new weights of linear layers."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


@faulty("LP122", "net.1", "net.3", source="initialisation in training_step", mended=usual)
def weights_drawn_in_each_step() -> Arguments:
    class Drawn(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.net.apply(draw)
            return super().training_step(batch, batch_idx)

    return Drawn(mlp(64, 64, 10)), digit_loaders()


@faulty("LP122", source="on_train_epoch_start that sets a net up for each fold, in each epoch")
def weights_drawn_in_each_epoch() -> Arguments:
    class Drawn(Task):
        def on_train_epoch_start(self) -> None:
            self.net[1].reset_parameters()
            self.net[3].reset_parameters()
            self.log("folds", 1.0)

    return Drawn(mlp(64, 64, 10)), digit_loaders()


@faulty("LP122", source="a new network's weights are loaded when an epoch ends")
def weights_of_a_new_net_at_the_end_of_an_epoch() -> Arguments:
    class Drawn(Task):
        def on_train_epoch_end(self) -> None:
            self.net.load_state_dict(mlp(64, 64, 10).state_dict())

    return Drawn(mlp(64, 64, 10)), digit_loaders()


@faulty("LP122", source="manual optimization, and a reset after each step by its data")
def weights_drawn_after_each_manual_step() -> Arguments:
    class Manual(Task):
        def __init__(self) -> None:
            super().__init__(mlp(64, 64, 10))
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            opt: Any = self.optimizers()
            loss = functional.cross_entropy(self.net(batch[0]), batch[1])
            opt.zero_grad()
            self.manual_backward(loss)
            opt.step()
            for p in self.parameters():
                p.data = torch.randn_like(p) * 0.1
            return loss

    return Manual(), digit_loaders()


@faulty("LP123", "net.1", source="initialisation of a layer in forward")
def one_layer_drawn_in_forward() -> Arguments:
    class Drawn(nn.Sequential):
        def forward(self, x: Tensor) -> Any:
            draw(self[1])
            return super().forward(x)

    return Task(Drawn(*mlp(64, 64, 10))), digit_loaders()


class Made(Task):
    """Makes its second layer in the step, where ``is_due`` says so."""

    def __init__(self, is_due: Any) -> None:
        super().__init__(mlp(64, 32))
        self.is_due = is_due
        self.head: Any = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        features = self.net(x).relu()
        if self.is_due(self):
            self.head = nn.Linear(features.shape[1], 10)
        return functional.cross_entropy(self.head(features), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


@faulty("LP124", "head", source="a layer that each step makes", mended=usual)
def layer_made_in_each_step() -> Arguments:
    return Made(lambda module: True), digit_loaders()


@faulty("LP124", "head", source="a layer whose size depends on the first batch")
def layer_made_in_the_first_step() -> Arguments:
    return Made(lambda module: module.head is None), digit_loaders()
