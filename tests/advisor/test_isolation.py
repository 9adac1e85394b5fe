"""`advise` leaves no effect: modules, data, Trainer and random states are as before."""

import copy
import random
import threading
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    TensorDataset,
)

from lightning_practices._random_states import random_states, set_random_states
from lightning_practices.advisor import advise, overfit_batch
from lightning_practices.advisor._copied_hooks import copy_for_hooks
from lightning_practices.mixins import DataPractices, TrainingPractices

pytestmark = [
    pytest.mark.plain,
    pytest.mark.filterwarnings("ignore:Found 1 module:UserWarning"),  # on purpose
]


class Net(LightningModule):
    """Has everything that a step may change: batch norm, dropout, attributes, an optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)
        )
        self.net[1].eval()
        self.seen: list[float] = []
        self.optimizer = torch.optim.Adam(self.parameters())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = functional.cross_entropy(self.net(x), y)
        self.seen.append(float(loss.detach()))
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return self.optimizer


class Practised(TrainingPractices, Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 1e-3)


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Draws from the global generators, and from one of its own."""

    def __init__(self) -> None:
        self.own = np.random.default_rng(3)

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = random.random() + float(np.random.rand()) + float(self.own.normal())
        return torch.randn(6) + noise, torch.tensor(index % 3)


class Data(DataPractices, LightningDataModule):
    def setup(self, stage: str) -> None:
        self.rows = Rows()

    def train_dataloader(self) -> Any:
        return loader(self.rows)

    def val_dataloader(self) -> Any:
        return DataLoader(self.rows, 16)


def loader(rows: Dataset[Any]) -> DataLoader[Any]:
    return DataLoader(rows, 16, shuffle=True, generator=torch.Generator().manual_seed(5))


def state_of(module: LightningModule) -> list[Any]:
    return [
        {name: x.clone() for name, x in module.state_dict().items()},
        [part.training for part in module.modules()],
        [p.grad for p in module.parameters()],
        [p.requires_grad for p in module.parameters()],
        {name: value for name, value in vars(module).items() if not name.startswith("_")},
        module._trainer,
    ]


def assert_same(a: list[Any], b: list[Any]) -> None:
    assert a[0].keys() == b[0].keys()
    assert all(torch.equal(a[0][name], b[0][name]) for name in a[0])
    assert str(a[1:]) == str(b[1:])


@pytest.mark.parametrize("kind", [Net, Practised])
def test_no_effect_on_module_loaders_and_random_states(kind: type[Net]) -> None:
    module, train, val = kind(), loader(Rows()), DataLoader(Rows(), 16)
    hooks = [len(part._forward_pre_hooks) for part in module.modules()]
    before, optimizer = state_of(module), copy.deepcopy(module.optimizer.state_dict())
    expected = copy.deepcopy((train, val))
    states = random_states(())
    advise(module, (train, val))
    assert str(random_states(())) == str(states)
    assert_same(state_of(module), before)
    assert str(module.optimizer.state_dict()) == str(optimizer)
    assert [len(part._forward_pre_hooks) for part in module.modules()] == hooks
    for one, other in zip((train, val), expected, strict=True):
        first = torch.cat([x for x, _ in one])
        set_random_states(states, ())
        second = torch.cat([x for x, _ in other])
        assert torch.equal(first, second)
        states = random_states(())


def test_a_fit_after_advice_is_the_fit_without() -> None:
    weights = []
    for advised in (False, True):
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        module, data = Practised(), Data(preprocess="standardize")
        if advised:
            advise(module, data)
        trainer = Trainer(
            max_epochs=2, logger=DummyLogger(), enable_progress_bar=False,
            enable_model_summary=False, accelerator="cpu", enable_checkpointing=False,
            log_every_n_steps=1,
        )  # fmt: skip
        trainer.fit(module, data)
        weights.append(module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Any:
        yield from ((torch.randn(6), torch.tensor(i % 3)) for i in range(64))


def test_loaders_without_length_and_schedules_that_ask_for_the_steps() -> None:
    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            steps = self.trainer.estimated_stepping_batches
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=int(steps))
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    rows = TensorDataset(torch.randn(64, 6), torch.arange(64) % 3)
    reports = [
        advise(Scheduled(), DataLoader(Stream(), 16)),
        advise(Scheduled(), DataLoader(Stream(), 16), Trainer(max_steps=50, logger=False)),
        advise(Scheduled(), DataLoader(rows, 16), Trainer(max_epochs=2, logger=False)),
    ]
    assert [report.of("error") for report in reports] == [[], [], []]


def test_an_error_of_a_step_reaches_the_user_and_leaves_no_effect() -> None:
    class Broken(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.net[1].train()
            raise KeyError("image")

    module, states = Broken(), random_states(())
    before = state_of(module)
    with pytest.raises(KeyError, match="image"):
        advise(module, loader(Rows()))
    assert str(random_states(())) == str(states)
    assert_same(state_of(module), before)
    assert torch.overrides._get_current_function_mode() is None


def test_attributes_that_cannot_be_copied_are_shared() -> None:
    class Locked(Net):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()
            self.rows = Rows()
            self.identity: list[bool] = []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            with self.lock:
                return super().training_step(batch, batch_idx)

        def train_dataloader(self) -> Any:
            shared.append(self.rows)
            return loader(self.rows)

    shared: list[Any] = []
    module, states = Locked(), random_states(())
    expected = copy.deepcopy(module.rows.own.bit_generator.state)
    before = state_of(module)
    advise(module)
    assert shared == [module.rows]
    assert module.rows.own.bit_generator.state == expected
    assert str(random_states(())) == str(states)
    assert_same(state_of(module), before)


def test_gradients_of_shared_layers_stay() -> None:
    layer = nn.Linear(6, 3)  # in a closure, which a copy of the module shares
    layer.weight.grad = torch.ones(3, 6)
    layer.register_forward_hook(lambda *args: None)

    class Closure(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            other: Tensor = layer(batch[0]).square().mean()
            return super().training_step(batch, batch_idx) + other

    advise(Closure(), loader(Rows()))
    assert torch.equal(layer.weight.grad, torch.ones(3, 6))
    assert layer.bias.grad is None


def test_samplers_are_as_before_and_the_mode_of_gradients_too() -> None:
    class Counted(Sampler[int]):
        epochs = 0

        def __iter__(self) -> Any:
            self.epochs += 1
            return iter(range(64))

        def __len__(self) -> int:
            return 64

    one, within = Counted(), Counted()
    advise(Net(), DataLoader(Rows(), 16, sampler=one))
    advise(Net(), DataLoader(Rows(), batch_sampler=BatchSampler(within, 16, False)))
    assert (one.epochs, within.epochs) == (0, 0)
    with torch.no_grad():
        report = advise(Net(), loader(Rows()))
        assert not torch.is_grad_enabled()
    assert "LP111" not in {finding.id for finding in report}


@pytest.mark.parametrize("kind", ["double", "lazy"])
def test_modules_of_other_types_and_without_shapes(kind: str) -> None:
    class Odd(Net):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
            if kind == "lazy":
                self.net = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))
            self.optimizer = torch.optim.Adam(self.parameters())

    x, y = torch.randn(64, 6), torch.arange(64) % 3
    rows = TensorDataset(x.double() if kind == "double" else x, y)
    module = Odd().double() if kind == "double" else Odd()
    loaders = DataLoader(rows, 16, shuffle=True), DataLoader(rows, 16)
    found = {one.id for one in advise(module, loaders) if one.severity == "error"}
    assert found == set()
    assert overfit_batch(module, loaders, steps=20).last < 2
    is_lazy = isinstance(next(module.parameters()), nn.UninitializedParameter)
    assert is_lazy == (kind == "lazy")


def test_an_optimizer_that_the_copy_shares_is_as_before() -> None:
    module = Net()
    optimizer = torch.optim.Adam(module.parameters())
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.zero_grad()

    class Closure(Net):
        def configure_optimizers(self) -> Any:
            return optimizer

    shared = Closure()
    expected = copy.deepcopy(optimizer.state_dict())
    advise(shared, loader(Rows()))
    assert str(optimizer.state_dict()) == str(expected)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_hooks_that_run_again_leave_the_observed_module_as_it_was() -> None:
    class Counts(Net):
        updates: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0
            self.register_buffer("updates", torch.zeros(()))

        def on_train_batch_end(self, *args: Any) -> None:
            self.calls += 1
            self.updates += 1
            of_fit: Any = self
            of_fit.optimizers().step()
            of_fit.lr_schedulers().step()

    module: Any = Counts()
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    module.net(torch.randn(4, 6)).sum().backward()
    fit: Any = SimpleNamespace(
        optimizers=[optimizer], lr_scheduler_configs=[SimpleNamespace(scheduler=scheduler)]
    )
    module._trainer = fit
    module.optimizers = lambda: optimizer
    module.lr_schedulers = lambda: scheduler
    before = copy.deepcopy(module.state_dict()), copy.deepcopy(scheduler.state_dict())
    with copy_for_hooks(module) as model:
        cast("Any", model).on_train_batch_end()
    assert model.calls == 1
    assert module.calls == 0
    assert all(torch.equal(x, before[0][name]) for name, x in module.state_dict().items())
    assert scheduler.state_dict() == before[1]
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert all(p.grad is not None for p in module.net.parameters())
