"""Training once more on all data, for the steps that early stopping has found."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)
from typing_extensions import override

from lightning_practices.callbacks import DropRateSchedule, EarlyStopping, RetrainFor, join_loaders
from lightning_practices.mixins import EarlyStoppingMixin, LearningRateScheduleMixin
from lightning_practices.schedules import LearningRateSchedule
from tests.callbacks.scripted import FILTERS, At, fail, stop, trainer_of

pytestmark = [
    *FILTERS,
    # True, and meant so: all data is trained on.
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_data"),
]

TRAIN, VAL = 24, 8
LOSSES = (5.0, 4.0, 3.0, 2.0, 2.5, 2.6, 2.7, 2.8, 2.9)


class Net(LearningRateScheduleMixin, LightningModule):
    """Notes which samples it has seen and at which rate; its validation loss is a script's."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(schedule=LearningRateSchedule("cosine", warmup_steps=2), **kwargs)
        torch.manual_seed(0)
        self.net = nn.Linear(1, 1)
        self.seen: list[float] = []
        self.rates: list[float] = []
        self.validated = 0

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> Tensor:
        self.seen += batch[0].flatten().tolist()
        loss: Tensor = self.net(batch[0] / 32).square().mean()
        return loss

    def validation_step(self, batch: tuple[Tensor], batch_idx: int) -> None:
        self.validated += 1
        self.log("val_loss", LOSSES[min(self.current_epoch, len(LOSSES) - 1)])

    @override
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        optimizer.register_step_pre_hook(
            lambda optimizer, *_: self.rates.append(optimizer.param_groups[0]["lr"])
        )
        return optimizer


class Own(EarlyStoppingMixin, Net):
    """Brings its own early stopping and validation data."""

    def __init__(self) -> None:
        super().__init__(early_stopping=3)

    def val_dataloader(self) -> Any:
        return loaders()[1]


def loaders(**options: Any) -> tuple[DataLoader[Any], DataLoader[Any]]:
    data = TensorDataset(torch.arange(float(TRAIN + VAL))[:, None])
    train, val = Subset(data, range(TRAIN)), Subset(data, range(TRAIN, TRAIN + VAL))
    return DataLoader(train, **{"batch_size": 2, "shuffle": True} | options), DataLoader(val, 4)


def trainer(*callbacks: Any, **options: Any) -> Trainer:
    return trainer_of(*callbacks, **{"max_epochs": 9, "accumulate_grad_batches": 2} | options)


def found() -> tuple[Net, EarlyStopping]:
    module, stopping = Net(), EarlyStopping("val_loss", patience=2)
    trainer(stopping).fit(module, *loaders())
    assert (stopping.best_step, stopping.fit_steps) == (24, 54)  # 6 an epoch
    return module, stopping


def test_it_takes_the_steps_found_at_the_rates_of_the_first_fit() -> None:
    first, stopping = found()
    module, retrain = Net(), RetrainFor(stopping.best_step, stopping.fit_steps)
    again = trainer(retrain)
    again.fit(module, join_loaders(*loaders()))
    assert again.global_step == 24
    assert again.current_epoch == 3  # 8 steps each, of all samples
    assert sorted(module.seen) == sorted(3 * [float(i) for i in range(TRAIN + VAL)])
    assert module.seen != sorted(module.seen)
    assert module.rates == first.rates[:24]
    assert (again.max_steps, again.limit_val_batches) == (-1, 1.0)  # as they were


@pytest.mark.parametrize("steps", [1, 5, 24])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_exactly_so_many_steps(steps: int, accumulate: int) -> None:
    module = Net()
    again = trainer(RetrainFor(steps, 54), accumulate_grad_batches=accumulate)
    again.fit(module, join_loaders(*loaders()))
    assert (again.global_step, len(module.rates)) == (steps, steps)


def test_a_module_with_early_stopping_of_its_own_is_left_to_train() -> None:
    first = Own()
    trainer().fit(first, loaders()[0])
    stopping = first.early_stopping
    assert stopping is not None
    assert stopping.best_step == 24
    module = Own()
    again = trainer(RetrainFor(stopping.best_step, stopping.fit_steps))
    again.fit(module, join_loaders(*loaders()))
    assert (again.global_step, module.validated) == (24, 0)
    assert module.early_stopping is not None
    assert module.early_stopping.best_step is None
    assert len(module.rates) == 24
    with pytest.raises(MisconfigurationException, match="RetrainFor trains a new module"):
        trainer(RetrainFor(24, 54)).fit(first, join_loaders(*loaders()))
    first.load_state_dict(Own().state_dict())  # as good as new
    again = trainer(RetrainFor(24, 54))
    again.fit(first, join_loaders(*loaders()))
    assert again.global_step == 24


def test_resuming_ends_after_the_same_step(tmp_path: Path) -> None:
    whole = Net()
    save = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1)
    data = join_loaders(*loaders(shuffle=False))
    trainer(RetrainFor(24, 54), save).fit(whole, data)
    for step in (8, 24):
        module = Net()
        again = trainer(RetrainFor(24, 54))
        again.fit(module, data, ckpt_path=tmp_path / f"step={step}.ckpt")
        assert again.global_step == 24
        assert module.rates == whole.rates[step:]  # weights: after 8 Lightning repeats a batch


def test_a_schedule_of_the_dropout() -> None:
    factors: list[float] = []

    class Dropping(Net):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        @override
        def training_step(self, batch: tuple[Tensor], batch_idx: int) -> Tensor:
            factors.append(self.drop.p)
            return super().training_step(batch, batch_idx)

    trainer(RetrainFor(24, 48), DropRateSchedule()).fit(Dropping(), join_loaders(*loaders()))
    assert factors[::2] == [pytest.approx(0.5 * step / 48) for step in range(24)]


def test_without_the_length_of_the_first_fit_the_trainers_limits_count() -> None:
    module = Net()
    again = trainer(RetrainFor(24, None), max_epochs=5)
    again.fit(module, join_loaders(*loaders()))
    assert again.global_step == 24
    whole = Net()
    trainer(max_epochs=5).fit(whole, join_loaders(*loaders()))
    assert module.rates == whole.rates[:24]


def test_the_trainer_is_as_before_after_a_failure() -> None:
    again = trainer(RetrainFor(24, 54), At(3, fail))
    with pytest.raises(ValueError, match="a user's mistake"):
        again.fit(Net(), join_loaders(*loaders()))
    assert (again.max_steps, again.limit_val_batches) == (-1, 1.0)


def test_fast_dev_run() -> None:
    again = trainer(RetrainFor(24, 54), fast_dev_run=True)
    again.fit(Net(), join_loaders(*loaders()))
    assert again.global_step == 1


def test_a_fit_that_ends_too_early_says_so() -> None:
    with pytest.warns(UserWarning, match="taken 4 optimizer steps rather than 24"):
        trainer(RetrainFor(24, 54), At(4, stop)).fit(Net(), join_loaders(*loaders()))


@pytest.mark.parametrize("options", [{"min_epochs": 1}, {"min_steps": 25}])
def test_a_trainer_that_would_take_more(options: dict[str, int]) -> None:
    with pytest.raises(MisconfigurationException, match=r"ends the fit by itself, .*leave them"):
        trainer(RetrainFor(24, 54), **options).fit(Net(), join_loaders(*loaders()))


def test_a_trainer_that_would_take_fewer() -> None:
    with pytest.raises(MisconfigurationException, match=r"max_steps=23: leave max_steps out"):
        trainer(RetrainFor(24, None), max_steps=23).fit(Net(), join_loaders(*loaders()))
    again = trainer(RetrainFor(24, 54), max_steps=23)
    again.fit(Net(), join_loaders(*loaders()))
    assert (again.global_step, again.max_steps) == (24, 23)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 54), "but got None"),
        ((0, 54), "but got 0"),
        ((True, 54), "but got True"),
        ((54, 24), "but got 54 and 24"),
        ((1, math.inf), "fit_steps has to be a whole number from 1 on, but got inf"),
    ],
)
def test_bad_arguments(arguments: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        RetrainFor(*arguments)


# The joined loader.


def values(batches: Any) -> list[list[float]]:
    return [batch[0].flatten().tolist() for batch in batches]


def doubled(samples: list[tuple[Tensor]]) -> list[Tensor]:
    return [2 * torch.stack([sample[0] for sample in samples])]


def test_it_does_what_the_training_loader_does() -> None:
    generator = torch.Generator()
    train, val = loaders(
        batch_size=5, drop_last=True, collate_fn=doubled, generator=generator, shuffle=False
    )
    joined = join_loaders(train, val)
    expected = [[2.0 * i for i in range(start, start + 5)] for start in range(0, 30, 5)]
    assert values(joined) == expected
    assert joined.generator is generator
    shuffled = join_loaders(*loaders(generator=generator.manual_seed(3)))
    order = [i for batch in values(shuffled) for i in batch]
    assert sorted(order) == [*range(TRAIN + VAL)] != order
    generator.manual_seed(3)
    assert [i for batch in values(shuffled) for i in batch] == order
    assert values(join_loaders(*loaders(batch_size=None, shuffle=False)))[-1] == [31.0]


class Numbers(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(4))


class Other(DataLoader[Any]):
    pass


def test_what_is_no_loader_of_a_dataset() -> None:
    train, val = loaders()
    with pytest.raises(TypeError, match="train_dataloader, Numbers, has no length"):
        join_loaders(DataLoader(Numbers()), val)
    with pytest.raises(TypeError, match="val_dataloader, Numbers, has no length"):
        join_loaders(train, DataLoader(Numbers()))
    with pytest.raises(TypeError, match=r"train_dataloader has to be .* but got .* of class Other"):
        join_loaders(Other(train.dataset), val)
    with pytest.raises(TypeError, match=r"val_dataloader has to be .* but got .* of class list"):
        join_loaders(train, [val])  # type: ignore[arg-type]


class Pairs(BatchSampler):
    pass


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": WeightedRandomSampler([1.0] * TRAIN, TRAIN)},
        {"sampler": RandomSampler(range(TRAIN), replacement=True)},
        {"sampler": RandomSampler(range(TRAIN), num_samples=5)},
        {"batch_sampler": Pairs(SequentialSampler(range(4)), 2, False)},
    ],
)
def test_a_sampler_of_ones_own(options: dict[str, Any]) -> None:
    train, val = loaders()
    with pytest.raises(ValueError, match=r"draws by its own .* don't know the samples of val"):
        join_loaders(DataLoader(train.dataset, **options), val)
