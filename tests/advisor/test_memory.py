"""The memory of the copy that ran is free at once, without the garbage collector."""

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.nn import functional

from lightning_practices.advisor import advise, overfit_batch
from lightning_practices.mixins import DataPractices, TrainingPractices
from tests.advisor.programs import Task, digit_loaders, mlp

pytestmark = [
    pytest.mark.plain,
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
]

ALIVE: list[weakref.ref[Any]] = []  # of the copies: the module, its parameters, batches, gradients


class Noting(Task):
    """Notes what a copy holds in :data:`ALIVE`."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ALIVE.extend(weakref.ref(x) for x in (self, batch[0], *self.parameters()))
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        ALIVE.extend(weakref.ref(p.grad) for p in self.parameters() if p.grad is not None)


class Practised(TrainingPractices, Noting):
    pass


class Scheduled(Noting):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters())
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Manual(Noting):
    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


class WithLoaders(Noting):
    def train_dataloader(self) -> Any:
        return digit_loaders()[0]

    def val_dataloader(self) -> Any:
        return digit_loaders()[1]


class Mixing(Noting):
    """Makes rules run steps of their own."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        rows = batch[0].reshape(-1, 8).view(8, len(batch[0]), 8).transpose(0, 1)
        return super().training_step((rows, batch[1]), batch_idx)


class Wrong(Noting):
    """Raises within a loss, which a rule explains."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch[0], batch[1] + 90), batch_idx)


class Data(DataPractices, LightningDataModule):
    def train_dataloader(self) -> Any:
        return digit_loaders()[0]

    def val_dataloader(self) -> Any:
        return digit_loaders()[1]


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    ALIVE.clear()
    gc.collect()
    gc.disable()
    yield
    gc.enable()


KINDS: list[type[Noting]] = [Noting, Practised, Scheduled, Manual, WithLoaders, Mixing]


@pytest.mark.parametrize("kind", [*KINDS, Wrong])
def test_nothing_of_the_copy_is_left_after_advice(kind: type[Noting]) -> None:
    report = advise(kind(mlp(64, 32, 10)), None if kind is WithLoaders else digit_loaders())
    assert ALIVE
    assert [ref() for ref in ALIVE if ref() is not None] == []
    assert [one.id for one in report.of("error")] == {Mixing: ["LP113"], Wrong: ["LP216"]}.get(
        kind, []
    )


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_copies_is_left_after_one_batch(kind: type[Noting]) -> None:
    data = None if kind is WithLoaders else digit_loaders()
    overfit_batch(kind(mlp(64, 32, 10)), data, steps=10)
    assert ALIVE
    assert [ref() for ref in ALIVE if ref() is not None] == []


def lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(10))


@pytest.mark.parametrize("net", [lazy, lambda: mlp(64, 10)])
def test_nothing_is_left_of_a_lazy_module_and_a_datamodule(net: Callable[[], nn.Module]) -> None:
    advise(Noting(net()), Data(preprocess="standardize"))
    assert ALIVE
    assert [ref() for ref in ALIVE if ref() is not None] == []


def test_nothing_is_left_once_an_error_of_a_step_is_handled() -> None:
    class Broken(Noting):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            raise KeyError("image")

    with pytest.raises(KeyError, match="image"):
        advise(Broken(mlp(64, 10)), digit_loaders())
    assert ALIVE
    assert [ref() for ref in ALIVE if ref() is not None] == []


def test_hooks_of_parameters_are_part_of_the_gradient() -> None:
    net = mlp(64, 32, 10)
    weight = net.get_parameter("1.weight")
    weight.register_hook(lambda gradient: gradient / 0)  # so that it isn't finite
    frozen = net.get_parameter("1.bias")
    frozen.register_hook(torch.neg)
    frozen.requires_grad_(False)
    stepped: list[Tensor] = []
    net.get_parameter("3.weight").register_post_accumulate_grad_hook(stepped.append)
    report = advise(Task(net), digit_loaders())
    (found,) = [one for one in report if one.id == "LP121"]
    assert found.modules == ("net.1.weight",)
    assert stepped == []
    loss = functional.cross_entropy(net(digit_loaders()[0].dataset[0][0][None]), torch.tensor([1]))
    loss.backward()
    assert weight.grad is not None
    assert not weight.grad.isfinite().any()
    assert len(stepped) == 1
