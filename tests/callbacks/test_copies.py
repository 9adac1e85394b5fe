"""Copies of configured callbacks: each is used by itself, and the original stays unused."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks import (
    BestCheckpoint,
    DropRateSchedule,
    EarlyStopping,
    ExactResume,
    GradientClipping,
    LearningCurves,
    LearningRateScheduler,
    Penalty,
    ProgressiveUnfreezing,
    RecalibrateBatchNorm,
    RetrainFor,
    SkipNonFinite,
    SnapshotEnsemble,
    WeightAveraging,
)
from lightning_practices.schedules import LearningRateSchedule
from tests.callbacks.scripted import FILTERS, State, same, state_of, trainer_of

pytestmark = FILTERS

PHASES: list[dict[str, Any]] = [{"blocks": ["head"], "until": {"step": 5}}, {"blocks": ["stem"]}]

CALLBACKS: dict[str, Callable[[], Callback]] = {
    "drop rate": lambda: DropRateSchedule("late", duration=4),
    "checkpoint": lambda: BestCheckpoint("val_loss"),
    "early stopping": lambda: EarlyStopping(["val_loss", "other"], patience=2),
    "resuming": lambda: ExactResume(),
    "clipping": lambda: GradientClipping(percentile=20, groups={"head.*": 0.1}),
    "clipping of a module": lambda: GradientClipping(0.1).for_module(),
    "curves": lambda: LearningCurves("curves.svg"),
    "penalty": lambda: Penalty(0.01, 0.1, proximal=True),
    "unfreezing": lambda: ProgressiveUnfreezing(PHASES, by=[["head"], ["stem"]]),
    "rates": lambda: LearningRateScheduler(LearningRateSchedule("plateau", patience=0)),
    "recalibration": lambda: RecalibrateBatchNorm(),
    "retraining": lambda: RetrainFor(7, 12),
    "skipping": lambda: SkipNonFinite(3),
    "snapshots": lambda: SnapshotEnsemble(3, keep=2),
    "ema": lambda: WeightAveraging(decay=0.5, start=2),
    "swa": lambda: WeightAveraging("swa", start=0.25, interval="step"),
}


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.head = nn.Linear(4, 1)

    @override
    def forward(self, rows: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.stem(rows))
        return outputs

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = (self(batch) - batch.sum(1, keepdim=True)).square().mean()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log_dict({"val_loss": float(self.trainer.current_epoch != 1), "other": 1.0})

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted(callback: Callback, folder: Path) -> State:
    module = Net()
    rows = list(torch.randn(8, 3, generator=torch.Generator().manual_seed(1)))
    loader: DataLoader[Any] = DataLoader(rows, batch_size=2)  # type: ignore[arg-type]
    options: dict[str, Any] = {"max_epochs": 3, "default_root_dir": folder, "log_every_n_steps": 1}
    trainer_of(callback, **options).fit(module, loader, loader)
    return state_of(module)


def flat(value: Any) -> Any:
    """Return a state in a form that can be compared."""
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, Tensor) else value


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_copy_does_what_a_new_one_does_and_leaves_the_original_alone(
    name: str, tmp_path: Path
) -> None:
    expected = fitted(CALLBACKS[name](), tmp_path)
    original = CALLBACKS[name]()
    untouched = flat(original.state_dict())
    for _ in range(2):  # the second copy shows that nothing of the first fit is left
        assert same(fitted(copy.deepcopy(original), tmp_path), expected)
        assert flat(original.state_dict()) == untouched
