"""All practices in one mixin."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks import (
    EarlyStopping,
    GradientClipping,
    LearningCurves,
    Penalty,
    SkipNonFinite,
    WeightAveraging,
)
from lightning_practices.mixins import TrainingPractices
from tests.callbacks.scripted import same, state_of, trainer_of

EPOCHS, STEPS = 4, 6
WIRED = {  # to `monitor` and `mode`
    "early_stopping_monitor", "early_stopping_mode", "learning_rate_monitor", "learning_rate_mode"
}  # fmt: skip


class Net(TrainingPractices, LightningModule):
    """Layers, a training step and a validation step: what a user has to bring."""

    def __init__(self, width: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width), nn.Linear(width, 1))
        self.norms: list[float] = []
        self.rates: list[float] = []
        self.seen: dict[int, dict[str, Tensor]] = {}

    def loss(self, batch: Tensor) -> Tensor:
        loss: Tensor = (self.net(batch) - 9 * batch.sum(1, keepdim=True)).square().mean()
        return loss

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))
        self.log("accuracy", -self.loss(batch))

    @override
    def on_before_zero_grad(self, optimizer: Any) -> None:
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        if grads:
            self.norms.append(torch.cat([g.flatten() for g in grads]).norm().item())

    @override
    def on_train_batch_start(self, *_: Any) -> None:
        self.rates.append(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]

    @override
    def on_validation_end(self) -> None:
        self.seen[self.trainer.global_step] = state_of(self)


def loader() -> DataLoader[Tensor]:
    rows = torch.randn(2 * STEPS, 3, generator=torch.Generator().manual_seed(1))
    return DataLoader(list(rows), batch_size=2)  # type: ignore[arg-type]


def fit(module: LightningModule, **options: Any) -> Trainer:
    trainer = trainer_of(**{"max_epochs": EPOCHS, **options})
    trainer.fit(module, loader(), loader())
    return trainer


def kinds(trainer: Trainer) -> set[type]:
    return {type(callback) for callback in trainer.callbacks}  # type: ignore[attr-defined]


def test_what_it_does_by_default() -> None:
    module = Net(optimizer_lr=0.05)
    trainer = fit(module)
    (optimizer,) = trainer.optimizers
    assert type(optimizer) is torch.optim.AdamW
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert sorted(decays.values()) == [0.0, 0.01]
    assert module.rates[0] == 0.05
    assert module.rates == sorted(module.rates, reverse=True)
    assert len(module.rates) == EPOCHS * STEPS
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    assert max(module.norms) == pytest.approx(1.0, rel=1e-3)
    assert [layer.names for layer in module.fused_layers.replaced] == [("net.1",)]
    assert module.early_stopping.best_step == EPOCHS * STEPS
    assert not {Penalty, WeightAveraging, SkipNonFinite, LearningCurves} & kinds(trainer)


def test_what_is_asked_for(tmp_path: Path) -> None:
    picture = tmp_path / "curves.svg"
    module = Net(
        monitor="accuracy",
        mode="max",
        early_stopping_patience=4,
        learning_rate_schedule="performance",
        weight_averaging_kind="ema",
        weight_averaging_decay=0.5,
        penalty_l2=1e-3,
        optimizer="nesterov",
        optimizer_lr=0.01,
        skip_non_finite=5,
        learning_curves=str(picture),
    )
    trainer = fit(module)
    assert {EarlyStopping, Penalty, WeightAveraging, SkipNonFinite, LearningCurves} <= kinds(
        trainer
    )
    (optimizer,) = trainer.optimizers
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.param_groups[0]["nesterov"]
    assert (module.early_stopping.monitor, module.early_stopping.mode) == ("accuracy", "max")
    best = module.early_stopping.best_step
    assert best is not None
    assert "accuracy" in picture.read_text()


def test_a_class_of_its_own_optimizer_schedules_it() -> None:
    class Own(Net):
        @override
        def configure_optimizers(self) -> Any:
            return self.schedule_learning_rate(torch.optim.Adagrad(self.parameters(), lr=0.1))

    module = Own()
    trainer = fit(module)
    assert type(trainer.optimizers[0]) is torch.optim.Adagrad
    assert module.rates[0] == 0.1
    assert module.rates[-1] < 0.01


def test_averages_that_never_begin_leave_the_weights_alone() -> None:
    plain, averaged = Net(), Net(weight_averaging_kind="ema", weight_averaging_start=10**6)
    fit(plain)
    with pytest.warns(UserWarning, match="it never will"):
        fit(averaged)
    assert same(state_of(plain), state_of(averaged))


def test_the_trainers_threshold() -> None:
    with pytest.raises(MisconfigurationException, match="would both clip: give the value to one"):
        fit(Net(), gradient_clip_val=0.5)
    module = Net(gradient_clipping_value=None)
    trainer = fit(module, gradient_clip_val=0.5)
    assert max(module.norms) == pytest.approx(0.5, rel=1e-3)
    assert any(isinstance(c, GradientClipping) for c in trainer.callbacks)  # type: ignore[attr-defined]


@pytest.mark.parametrize("patience", [2, 3])
def test_stopping_waits_longer_than_the_schedule(patience: int) -> None:
    with pytest.raises(ValueError, match=f"early_stopping_patience={patience} ends training befo"):
        Net(early_stopping_patience=patience, learning_rate_schedule="performance")
    Net(early_stopping_patience=4, learning_rate_schedule="performance")
    Net(early_stopping_patience=patience)  # which no other schedule minds


def test_every_run_has_the_same_callbacks_once() -> None:
    module = Net(skip_non_finite=3)
    trainer = fit(module)
    first = [*trainer.callbacks]  # type: ignore[attr-defined]
    trainer.validate(module, loader(), verbose=False)
    assert {id(c) for c in trainer.callbacks} == {id(c) for c in first}  # type: ignore[attr-defined]
    assert len({type(c) for c in first}) == len(first)


def test_fast_dev_run() -> None:
    trainer = trainer_of(fast_dev_run=True)
    trainer.fit(Net(learning_rate_warmup_steps=50), loader(), loader())
    assert trainer.global_step == 1


SCRIPT = """
import torch
from lightning.pytorch.cli import LightningCLI
from lightning_practices.mixins import TrainingPractices

class Net(TrainingPractices):
    def __init__(self, width: int = 4, **kwargs):
        super().__init__(**kwargs)

LightningCLI(Net, args=["fit", "--print_config"], seed_everything_default=None)
"""


def test_all_arguments_are_in_the_config_of_a_command_line(tmp_path: Path) -> None:
    script = tmp_path / "net.py"  # a file: which arguments are passed on is read from the source
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)["model"]
    expected: dict[str, Any] = {"width": 4}
    for base in reversed(TrainingPractices.__mro__[:-1]):
        if base.__module__.startswith("lightning_practices") and "__init__" in vars(base):
            own = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
            expected |= {p.name: p.default for p in own if p.kind is p.KEYWORD_ONLY}
    assert shown.keys() == expected.keys() - WIRED
    plain = {name: default for name, default in expected.items() if name in shown}
    assert {n: list(v) if isinstance(v, tuple) else v for n, v in plain.items()} == shown
