"""The data that `advise` and `overfit_batch` take, and what they say of other data."""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_practices.advisor import advise, overfit_batch
from lightning_practices.advisor._observe import observe
from tests.advisor.programs import Task, digit_loaders, mlp

pytestmark = [
    pytest.mark.plain,
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
]

TRAIN, VAL = digit_loaders()


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return TRAIN

    def val_dataloader(self) -> Any:
        return VAL


class WithLoader(Task):
    def train_dataloader(self) -> Any:
        return TRAIN


def net() -> Task:
    return Task(mlp(64, 32, 10))


@pytest.mark.parametrize(
    ("module", "data", "splits"),
    [
        (net(), TRAIN, (TRAIN, None)),
        (net(), (TRAIN,), (TRAIN, None)),
        (net(), (TRAIN, None), (TRAIN, None)),
        (net(), (TRAIN, VAL), (TRAIN, VAL)),
        (net(), Data(), (TRAIN, VAL)),
        (net(), (Data(),), (TRAIN, VAL)),
        (WithLoader(mlp(64, 10)), None, (TRAIN, None)),
        (WithLoader(mlp(64, 10)), (None, VAL), (TRAIN, VAL)),
    ],
)
def test_forms_of_data(module: Task, data: Any, splits: Any) -> None:
    seen = observe(module, data, None)
    found = [None if x is None else x.loader.dataset for x in (seen.train, seen.validation)]
    for one, expected in zip(found, splits, strict=True):
        assert one is (None if expected is None else expected.dataset)


WRONG: list[tuple[Any, type[Exception], str]] = [
    ((None, VAL), ValueError, "no training data: .* as Task has no train_dataloader"),
    ((TRAIN, VAL, VAL), ValueError, r"tuple of 3 \(DataLoader, .*leave out a test loader"),
    ((), ValueError, "a tuple of 0"),
    (TRAIN.dataset, TypeError, r"of class TensorDataset for the train loader: .*shuffle=True\)"),
    ([TRAIN.dataset], TypeError, "of class TensorDataset for the train loader"),
    ((TRAIN, VAL.dataset), TypeError, r"for the validation loader: .*shuffle=False\)"),
    (Data, TypeError, r"the class Data for .*: give an instance, such as Data\("),
    (DataLoader, TypeError, "the class DataLoader"),
    (LightningDataModule(), ValueError, "LightningDataModule has no train_dataloader"),
    (
        (TRAIN, Data()),
        TypeError,
        "Data for the validation loader: a datamodule stands alone",
    ),
    (torch.zeros(4, 2), TypeError, r"of class Tensor for .*TensorDataset\(x, y\)"),
    (tuple(next(iter(TRAIN))), TypeError, "of class Tensor for the train loader"),
    ([next(iter(TRAIN))], TypeError, r"DataLoader\(batches, batch_size=None\) for a list"),
    ("data", TypeError, "of class str for the train loader"),
    (5, TypeError, "of class int for the train loader: give what gives batches"),
    (net(), TypeError, "of class Task for the train loader"),
]


@pytest.mark.parametrize(("data", "kind", "message"), WRONG)
@pytest.mark.parametrize("ask", [advise, overfit_batch])
def test_other_data_is_refused(ask: Any, data: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        ask(net(), data)


def test_a_list_of_two_loaders_is_explained_where_a_step_fails() -> None:
    class Joint(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch[0], batch_idx)

    assert len(observe(Joint(mlp(64, 10)), [TRAIN, VAL], None).step.batch) == 2
    with pytest.raises(AttributeError) as raised:
        advise(net(), [TRAIN, VAL])
    (note,) = raised.value.__notes__
    assert "a train and a validation loader are a tuple" in note


def test_an_epoch_that_is_skipped() -> None:
    class Skipping(Task):
        epochs = 0

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return None if self.epochs and self.current_epoch >= self.epochs else -1

    with pytest.raises(ValueError, match=r"on_train_batch_start of Skipping returned -1 .*10 epo"):
        advise(Skipping(mlp(64, 10)), TRAIN)
    later = Skipping(mlp(64, 10))
    later.epochs = 2
    assert advise(later, TRAIN).of("error") == []


def test_a_last_batch_that_is_the_only_one_and_dropped() -> None:
    few = TensorDataset(*(x[:20] for x in TRAIN.dataset[:]))
    with pytest.raises(ValueError, match=r"drop_last=True drops .* 20 samples for batches of 32"):
        advise(Task(mlp(64, 10)), DataLoader(few, 32, drop_last=True))
