"""A fit with all practices, killed in mid-epoch and resumed, against one that was not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks import GradientClipping, Penalty, WeightAveraging
from lightning_practices.mixins import TrainingPractices
from lightning_practices.optim import Optimizer
from lightning_practices.schedules import LearningRateSchedule
from tests.callbacks.scripted import DIP, FILTERS, STEPS, At, Scripted, same, trainer_of
from tests.processes import kill, run, run_killed

pytestmark = FILTERS

KILLED_AT = 14  # the third step of epoch 3


class Net(TrainingPractices, Scripted):
    """What it logs depends on each bit of its weights."""

    def __init__(self, values: tuple[float, ...]) -> None:
        super().__init__(
            values,
            early_stopping=5,
            schedule=LearningRateSchedule("cosine", warmup_steps=3),
            optimizer=Optimizer("adamw", lr=0.05, weight_decay=0.0),
            gradient_clipping=GradientClipping(percentile=50),
            penalty=Penalty(l1=1e-3),
            weight_averaging=WeightAveraging("ema", decay=0.8, start=2),
        )

    @override
    def value(self) -> float:
        return super().value() + 1e-3 * sum(p.sum().item() for p in self.parameters())


class Rates(Callback):
    """Notes the rate and the loss of each step."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[float, float]] = {}

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.seen[trainer.global_step] = (rate, outputs["loss"].item())


def fit(
    folder: Path,
    resume: bool = False,
    killed_at: int = -1,
    every: int | None = None,
    devices: int = 1,
    values: tuple[float, ...] = DIP,
) -> dict[str, Any]:
    """Fit, saving each epoch or ``every`` so many steps, and say how that ended."""
    module, rates = Net(values), Rates()
    save = ModelCheckpoint(folder, save_last=True, every_n_train_steps=every)
    trainer = trainer_of(
        rates, save, At(killed_at, kill),
        devices=devices, strategy="ddp" if devices > 1 else "auto", default_root_dir=folder,
    )  # fmt: skip
    rows = list(torch.randn(2 * STEPS * devices, 2, generator=torch.Generator().manual_seed(1)))
    train: Any = DataLoader(rows, batch_size=2, shuffle=True)  # type: ignore[arg-type]
    path = folder / "last.ckpt" if resume else None
    trainer.fit(module, train, DataLoader(rows, batch_size=8), ckpt_path=path)  # type: ignore[arg-type]
    stopping, averaging = module.early_stopping, module.weight_averaging
    assert stopping is not None
    assert averaging is not None
    state = stopping.state_dict()
    return {
        "weights": {k: v.clone() for k, v in module.state_dict().items()},
        "last": module.seen[trainer.global_step],
        "rates": rates.seen,
        "score": state.pop("best_score").item(),
        "counters": {
            **state,
            "steps": trainer.global_step,
            "epoch": trainer.current_epoch,
            "averaged": averaging.averaged,
        },
    }


def assert_same(resumed: dict[str, Any], whole: dict[str, Any], first: int) -> None:
    assert resumed["rates"] == {step: v for step, v in whole["rates"].items() if step > first}
    assert resumed["score"] == whole["score"]
    assert resumed["counters"] == whole["counters"]
    assert same(resumed["last"], whole["last"])
    assert same(resumed["weights"], whole["weights"])


LATER = (3.0, 1.0, 2.0, 2.0, 0.5, 2.0, 2.0, 2.0)  # better once more, after the kill


@pytest.mark.parametrize(
    ("every", "saved_at", "values", "steps"),
    [
        pytest.param(None, 12, DIP, 28, id="an epoch's end"),
        pytest.param(5, 10, LATER, 32, id="mid-epoch"),
    ],
)
def test_one_process(
    tmp_path: Path, every: int | None, saved_at: int, values: tuple[float, ...], steps: int
) -> None:
    whole = fit(tmp_path / "whole", every=every, values=values)
    run_killed(fit, [(tmp_path, False, KILLED_AT, every, 1, values)])
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == saved_at
    resumed = fit(tmp_path, resume=True, every=every, values=values)
    assert resumed["counters"]["steps"] == steps
    assert_same(resumed, whole, saved_at)


def both(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return fit(folder, resume=True, devices=2), fit(folder / "whole", devices=2)


def test_two_processes(tmp_path: Path) -> None:
    run_killed(fit, [(tmp_path, False, KILLED_AT, None, 2)] * 2)
    ranks = run(both, [(tmp_path,)] * 2)
    assert len(ranks) == 2
    resumed, whole = ranks[0]
    assert_same(resumed, whole, 12)
    for found in ranks[1]:  # a checkpoint has the running statistics of rank 0 alone
        found["weights"] = {k: v for k, v in found["weights"].items() if "running" not in k}
    resumed, whole = ranks[1]
    assert_same(resumed, whole, 12)
