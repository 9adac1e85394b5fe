"""Averaged weights after fits of few steps, and the warnings of too much of the first weights."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import Callback
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lightning_practices.callbacks import LearningRateScheduler, WeightAveraging
from lightning_practices.mixins import TrainingPractices
from lightning_practices.optim import Optimizer
from tests.callbacks.averaging import VALIDATION, Loader, Net, fit
from tests.callbacks.scripted import At, stop, trainer_of

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


class Digits(LightningModule):
    """A small network with batch norms for the handwritten digits of scikit-learn."""

    def __init__(self) -> None:
        super().__init__()
        x, y = load_digits(return_X_y=True)
        images = torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        self.data = TensorDataset(images[order], torch.tensor(y)[order])
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 10),
        )

    @override
    def train_dataloader(self) -> Any:
        train = TensorDataset(*self.data[:1600])
        return DataLoader(train, batch_size=64, shuffle=True)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)

    @torch.no_grad()
    def accuracy(self) -> float:
        images, labels = self.data[1600:]
        share: Tensor = (self.eval().net(images).argmax(1) == labels).double().mean()
        return share.item()


def accuracy_after(*callbacks: Callback) -> float:
    seed_everything(0, verbose=False)
    module = Digits()
    trainer = trainer_of(LearningRateScheduler("cosine"), *callbacks, max_epochs=8)
    trainer.fit(module)
    assert trainer.global_step == 200
    return module.accuracy()


def test_averages_of_200_steps_are_as_accurate_as_the_weights() -> None:
    raw = accuracy_after()
    assert raw > 0.95
    assert accuracy_after(WeightAveraging()) >= raw - 0.01


class Readme(TrainingPractices, LightningModule):
    """The first example of the README."""

    def __init__(self, **practices: Any) -> None:
        super().__init__(**practices)
        self.layers = nn.Sequential(
            nn.Linear(16, 64), nn.LayerNorm(64), nn.Dropout(0.2), nn.Linear(64, 1)
        )

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.layers(batch).square().mean()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.layers(batch).square().mean())


def test_averages_in_the_first_example_of_the_readme() -> None:
    seed_everything(0, verbose=False)
    rows: Any = torch.randn(256, 16)
    data = DataLoader(rows, batch_size=32)
    optimizer = Optimizer("adamw", lr=1e-2)
    module = Readme(optimizer=optimizer, weight_averaging="ema", checkpoint=None)
    before = module.layers(rows).square().mean()
    trainer_of(max_epochs=20).fit(module, data, data)
    assert module.eval().layers(rows).square().mean() < 1e-3 * before


# Warnings.


@pytest.mark.parametrize(
    ("arguments", "share"),
    [
        ({"decay": 0.9}, "21%"),  # 0.9 ** 15
        ({"decay": 0.9, "start": 8}, "48%"),
        ({"decay": 0.6, "frequency": 4}, "22%"),
        ({"decay": 0.6, "interval": "epoch"}, "22%"),
    ],
    ids=str,
)
def test_a_warning_when_the_fit_starts(arguments: dict[str, Any], share: str) -> None:
    averaging = WeightAveraging(decay_warmup=False, **arguments)
    message = f"so {share} of the average when the fit ends is the first .*: leave decay_warmup on"
    with pytest.warns(UserWarning, match=message) as caught:
        fit(Net(), averaging)
    assert sum("first weights" in str(one.message) for one in caught) == 1


def test_the_decay_that_the_warning_proposes_is_one() -> None:
    with pytest.warns(UserWarning, match=r"a decay of at most 0\.818"):
        fit(Net(), WeightAveraging(decay=0.9, decay_warmup=False))
    fit(Net(), WeightAveraging(decay=0.818, decay_warmup=False))  # 0.818 ** 15 is 4.9 %


@pytest.mark.parametrize("options", [{"max_epochs": -1}, {"max_epochs": 100}], ids=str)
def test_a_warning_when_a_fit_is_over_that_is_shorter_than_known(options: dict[str, Any]) -> None:
    module, averaging = Net(100 * [1.0]), WeightAveraging(decay=0.9, decay_warmup=False)
    trainer = trainer_of(averaging, At(8, stop), **options)
    with pytest.warns(UserWarning, match="averages 9 times, so 43% of the average after this"):
        trainer.fit(module, Loader(), VALIDATION)


@pytest.mark.parametrize(
    ("arguments", "when"),
    [
        ({"kind": "swa", "start": 3}, "when the fit ends"),
        ({"kind": "swa", "start": 2}, "after this fit"),
        ({"start": 8}, "after this fit"),
    ],
    ids=str,
)
def test_a_warning_of_one_average_alone(arguments: dict[str, Any], when: str) -> None:
    averaging = WeightAveraging(**arguments)
    cut = [] if when == "when the fit ends" else [At(8, stop)]
    with pytest.warns(UserWarning, match=f"averages only once, so the average {when}") as caught:
        fit(Net(), averaging, *cut)
    assert averaging.averaged == 1
    assert sum("only once" in str(one.message) for one in caught) == 1


def test_no_warning_by_default_or_in_a_trial() -> None:
    fit(Net(), WeightAveraging(), max_epochs=1)
    fit(Net(), WeightAveraging("swa", start=0))
    averaging = WeightAveraging(decay_warmup=False)
    trainer_of(averaging, fast_dev_run=2).fit(Net(), Loader(), VALIDATION)


# The start of "swa".


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"max_epochs": 1}, 1),
        ({"max_epochs": 2}, 2),
        ({"max_epochs": 4}, 2),
        ({"max_epochs": 12}, 3),
        ({"max_epochs": -1, "max_steps": 46}, 3),  # 12 epochs, the last one cut short
    ],
    ids=str,
)
def test_equal_averages_start_late_in_the_fit(options: dict[str, Any], count: int) -> None:
    averaging = WeightAveraging("swa")
    fit(Net(12 * [1.0]), averaging, **options)
    assert averaging.averaged == count


# Buffers.


class Masked(Net):
    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        mask = torch.zeros(3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf)
        self.register_buffer("mask", mask)


def test_a_mask_that_torch_would_turn_to_nan() -> None:
    module, averaging = Masked(), WeightAveraging()
    fit(module, averaging)
    assert averaging.averaged == 16
    assert torch.equal(module.mask, Masked().mask)
    ema: Any = get_ema_multi_avg_fn()
    model: Any = AveragedModel(deepcopy(module), multi_avg_fn=ema, use_buffers=True)
    for _ in range(2):
        model.update_parameters(module)
    assert model.module.mask.isnan().any()
