"""What is observed of a step that has no graph, no optimizer, or steps by itself."""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional

from lightning_practices.advisor._observe import observe
from tests.advisor.programs import Task, digit_loaders, mlp

pytestmark = [
    pytest.mark.plain,
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
]


def test_a_loss_without_graph_is_observed_with_the_validation_step() -> None:
    class Detached(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx).detach()

    seen = observe(Detached(mlp(64, 10)), digit_loaders(), None)
    assert [root.requires_grad for root in seen.step.roots] == [False]
    assert set(seen.step.gradients.values()) == {None}
    assert seen.validation_step is not None


def test_a_module_without_parameters_is_observed_though_torch_refuses_its_optimizer() -> None:
    class Listed(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.Linear(64, 10)]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return functional.cross_entropy(self.layers[0](batch[0].flatten(1)), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    seen = observe(Listed(), digit_loaders()[0], None)
    assert [x.shape for x in seen.step.unregistered] == [(10, 64), (10,)]
    assert seen.optimizers == []


class Manual(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer, self.other = nn.Linear(64, 10), nn.Linear(10, 10)
        self.own = torch.optim.SGD(self.other.parameters(), 0.1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        loss = functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])
        optimizer.zero_grad()
        loss.backward()
        if batch_idx:
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.layer.parameters(), 0.1)


def test_a_step_that_calls_backward_itself_and_which_optimizers_made_a_step() -> None:
    seen = observe(Manual(), digit_loaders()[0], None)
    (root,) = seen.step.roots
    assert root.call is not None
    assert root.call.name == "cross_entropy"
    gradients = {name for name, one in seen.step.gradients.items() if one is not None}
    assert gradients == {"layer.weight", "layer.bias"}
    assert [type(one).__name__ for one in seen.optimizers] == ["SGD", "SGD"]
    assert [step.stepped for step in seen.steps[:2]] == [frozenset(), frozenset({0})]
    assert len(seen.steps) >= 3


def test_quick_steps_go_on_until_each_parameter_has_a_gradient() -> None:
    class Late(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            return self.loss(self.net.get_submodule(str(int(batch_idx == 2)))(x), y)

    seen = observe(Late(nn.Sequential(mlp(64, 10), mlp(64, 10))), digit_loaders()[0], None)
    assert len(seen.steps) == 3
