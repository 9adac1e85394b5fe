"""All practices in one mixin."""

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks import (
    EarlyStopping,
    GradientClipping,
    LearningCurves,
    Penalty,
    SkipNonFinite,
    SnapshotEnsemble,
    WeightAveraging,
)
from lightning_practices.mixins import (
    EarlyStoppingMixin,
    GradientClippingMixin,
    LearningRateScheduleMixin,
    OptimizerMixin,
    TrainingPractices,
)
from lightning_practices.optim import Optimizer
from lightning_practices.schedules import LearningRateSchedule
from tests.callbacks.scripted import same, state_of, trainer_of

EPOCHS, STEPS = 4, 6


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


def stopping_of(module: EarlyStoppingMixin) -> EarlyStopping:
    assert module.early_stopping is not None
    return module.early_stopping


def kinds(trainer: Trainer) -> set[type]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return {kind for callback in callbacks for kind in type(callback).__mro__}


def test_what_it_does_by_default() -> None:
    module = Net(optimizer=Optimizer(lr=0.05))
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
    assert stopping_of(module).best_step == EPOCHS * STEPS
    assert not {Penalty, WeightAveraging, SkipNonFinite, LearningCurves} & kinds(trainer)


@pytest.mark.filterwarnings("ignore:.*the plateau schedule divides the rate after")
def test_what_is_asked_for(tmp_path: Path) -> None:
    picture = tmp_path / "curves.svg"
    module = Net(
        monitor="accuracy",
        mode="max",
        early_stopping=4,
        schedule="plateau",
        weight_averaging=WeightAveraging(decay=0.5),
        penalty=Penalty(l2=1e-3),
        optimizer=Optimizer("nesterov", lr=0.01),
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
    stopping, scheduler = stopping_of(module), module.learning_rate_scheduler
    assert scheduler is not None
    assert (stopping.monitor, stopping.mode) == (scheduler.monitor, scheduler.mode)
    assert (stopping.monitor, stopping.mode) == ("accuracy", "max")
    assert stopping.best_step is not None
    assert "accuracy" in picture.read_text()


def test_a_class_of_its_own_optimizer_schedules_it() -> None:
    class Own(Net):
        @override
        def configure_optimizers(self) -> Any:
            return torch.optim.Adagrad(self.parameters(), lr=0.1)

    module = Own()
    trainer = fit(module)
    assert type(trainer.optimizers[0]) is torch.optim.Adagrad
    assert module.rates[0] == 0.1
    assert module.rates[-1] < 0.01


class Planned(LightningModule):
    """A class whose ``configure_optimizers`` returns a scheduler too, as torchgeo's tasks do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.net(batch).square().mean())

    @override
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "val_loss"}


class Kept(TrainingPractices, Planned):
    pass


def test_the_optimizer_and_scheduler_of_a_base_class(caplog: pytest.LogCaptureFixture) -> None:
    module = Kept()
    with caplog.at_level("INFO"):
        trainer = fit(module)
    assert type(trainer.optimizers[0]) is torch.optim.SGD
    (config,) = trainer.lr_scheduler_configs
    assert type(config.scheduler) is torch.optim.lr_scheduler.ReduceLROnPlateau
    assert "Kept brings its own schedulers or several optimizers, so that the def" in caplog.text
    with pytest.raises(MisconfigurationException, match="got SGD, ReduceLROnPlateau from"):
        fit(Kept(schedule="one_cycle"))
    caplog.clear()
    with caplog.at_level("INFO"):
        trainer = fit(Kept(optimizer=Optimizer("adam", lr=0.01)))
    (config,) = trainer.lr_scheduler_configs
    assert type(trainer.optimizers[0]) is torch.optim.Adam
    assert type(config.scheduler) is torch.optim.lr_scheduler.LambdaLR
    assert "optimizer='adam' replaces Planned.configure_optimizers" in caplog.text


def test_snapshots_of_the_trainer_set_the_rates(caplog: pytest.LogCaptureFixture) -> None:
    for module in (Net(schedule=None), Net()):
        caplog.clear()
        trainer = trainer_of(SnapshotEnsemble(2), max_epochs=EPOCHS)
        with caplog.at_level("INFO"):
            trainer.fit(module, loader(), loader())
        assert module.learning_rate_scheduler is None
        period = EPOCHS * STEPS // 2
        assert module.rates[:period] == module.rates[period:]
        assert module.rates[0] > module.rates[1] > 0
    assert "default schedule='cosine' is left out" in caplog.text
    fit(module, max_epochs=EPOCHS)  # without snapshots
    assert module.learning_rate_scheduler is not None
    assert module.rates[-1] < module.rates[-2]
    message = r"LearningRateScheduler\('one_cycle'\) and SnapshotEnsemble would both set"
    with pytest.raises(MisconfigurationException, match=message):
        trainer_of(SnapshotEnsemble(2)).fit(Net(schedule="one_cycle"), loader(), loader())


def test_averages_that_never_begin_leave_the_weights_alone() -> None:
    plain, averaged = Net(), Net(weight_averaging=WeightAveraging(start=10**6))
    fit(plain)
    with pytest.warns(UserWarning, match="it never will"):
        fit(averaged)
    assert same(state_of(plain), state_of(averaged))


def test_the_trainers_threshold() -> None:
    with pytest.raises(
        MisconfigurationException, match=r"of them alone, as by gradient_clipping=None"
    ):
        fit(Net(), gradient_clip_val=0.5)
    module = Net(gradient_clipping=GradientClipping())
    trainer = fit(module, gradient_clip_val=0.5)
    assert max(module.norms) == pytest.approx(0.5, rel=1e-3)
    assert any(isinstance(c, GradientClipping) for c in trainer.callbacks)  # type: ignore[attr-defined]


@pytest.mark.parametrize("patience", [2, 3])
def test_stopping_waits_longer_than_the_schedule(patience: int) -> None:
    with pytest.raises(ValueError, match=f"with a patience of {patience} ends training before"):
        Net(early_stopping=patience, schedule="plateau")
    with pytest.raises(ValueError, match="with 10, has divided the rate once"):
        Net(schedule=LearningRateSchedule("plateau", patience=10))
    Net(early_stopping=4, schedule="plateau")
    Net(early_stopping=patience)  # which no other schedule minds
    Net(early_stopping=None, schedule="plateau")


def test_every_run_has_the_same_callbacks_once() -> None:
    module = Net(skip_non_finite=3)
    trainer = fit(module)
    first = [*trainer.callbacks]  # type: ignore[attr-defined]
    trainer.validate(module, loader(), verbose=False)
    assert {id(c) for c in trainer.callbacks} == {id(c) for c in first}  # type: ignore[attr-defined]
    assert len({type(c) for c in first}) == len(first)


def test_fast_dev_run() -> None:
    trainer = trainer_of(fast_dev_run=True)
    trainer.fit(Net(schedule=LearningRateSchedule(warmup_steps=50)), loader(), loader())
    assert trainer.global_step == 1


def test_all_off() -> None:
    class Plain(Net):
        @override
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    names = [
        "optimizer",
        "schedule",
        "early_stopping",
        "gradient_clipping",
        "checkpoint",
        "exact_resume",
        "fuse_layers",
    ]
    off: Any = dict.fromkeys(names)
    module = Plain(**off)
    trainer = fit(module)
    assert not [kind for kind in kinds(trainer) if "lightning_practices" in kind.__module__]
    assert set(module.rates) == {0.01}
    assert max(module.norms) > 1


def test_each_default_is_that_of_its_mixin() -> None:
    ours = inspect.signature(TrainingPractices.__init__).parameters
    # They change which weights are validated, and those that may be pretrained.
    off = {"weight_averaging": None, "initialization": None}
    for mixin in TrainingPractices.__mro__[1:-1]:
        if mixin.__module__.startswith("lightning_practices") and "__init__" in vars(mixin):
            own = inspect.signature(mixin.__init__).parameters.values()  # type: ignore[misc]
            for p in own:
                if p.kind is p.KEYWORD_ONLY:
                    assert ours[p.name].default == off.get(p.name, p.default), p.name
                    assert ours[p.name].annotation == p.annotation, p.name


# Arguments.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"early_stoping": 3}, "'early_stoping': TrainingPractices takes 'early_stopping'"),
        ({"weigth_averaging": "ema"}, "'weigth_averaging': TrainingPractices takes 'weight_aver"),
        ({"with": 3}, "'with': Net takes 'width'"),
        ({"zebra": 3}, "Net got an unknown argument 'zebra': there are .*'width'"),
    ],
)
def test_a_misspelt_argument(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Net(**given)


class Channels(LightningModule):
    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.channels = channels


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"chanels": 4}, "'chanels': Channels takes 'channels'"),
        ({"lr": 0.1}, r"'lr': give it to the optimizer, .* optimizer=Optimizer\('adamw', lr="),
        ({"learning_rate": 0.1}, r"optimizer=Optimizer\('adamw', lr="),
        ({"weight_decay": 0.1}, r"optimizer=Optimizer\('adamw', weight_decay="),
    ],
)
def test_an_argument_of_the_base_or_of_the_optimizer(given: dict[str, Any], message: str) -> None:
    class Both(TrainingPractices, Channels):
        pass

    assert Both(channels=3, optimizer="adam").channels == 3
    with pytest.raises(TypeError, match=message):
        Both(**given)


def test_the_mixin_that_takes_an_argument_is_named() -> None:
    class Both(EarlyStoppingMixin, GradientClippingMixin, LightningModule):
        pass

    with pytest.raises(TypeError, match="GradientClippingMixin takes 'gradient_clipping'"):
        Both(gradient_cliping=1.0)
    with pytest.raises(TypeError, match="MonitorMixin takes 'monitor'"):
        Both(moniter="loss")


def test_arguments_of_base_classes() -> None:
    class Base(LightningModule):
        def __init__(self, width: int, *, depth: int = 1) -> None:
            super().__init__()
            self.size = width, depth

    class Open(LightningModule):
        def __init__(self, *args: Any, **config: Any) -> None:
            super().__init__()
            self.given = args, config

    class Before(LearningRateScheduleMixin, Base):
        """A base that has a mixin itself, and an argument between those of the mixins."""

        def __init__(self, *args: Any, height: int = 0, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.height = height

    class First(EarlyStoppingMixin, OptimizerMixin, Base):
        pass

    class Second(EarlyStoppingMixin, Open):
        pass

    class Third(EarlyStoppingMixin, OptimizerMixin, Before):
        pass

    first = First(3, depth=2, early_stopping=4, optimizer="adam")
    assert (first.size, stopping_of(first).patience) == ((3, 2), 4)
    with pytest.raises(TypeError, match="unknown argument 'dept'"):
        First(3, dept=2)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'width'"):
        First(depth=2)
    second = Second(1, early_stopping=5, anything="goes")
    assert (second.given, stopping_of(second).patience) == (((1,), {"anything": "goes"}), 5)
    third = Third(3, height=2, monitor="loss", schedule="plateau", depth=4)
    assert (third.size, third.height) == ((3, 4), 2)
    assert third.learning_rate_scheduler is not None
    assert (third.learning_rate_scheduler.monitor, stopping_of(third).monitor) == ("loss",) * 2
    assert len(third.configure_callbacks()) == 3


def test_a_copy_of_a_module_has_its_own_callbacks() -> None:
    module = Net()
    copied = copy.deepcopy(module)
    fit(module)
    assert stopping_of(module).best_step is not None
    assert stopping_of(copied).best_step is None
    ours, theirs = module.configure_callbacks(), copied.configure_callbacks()
    assert not {id(one) for one in ours} & {id(one) for one in theirs}


def test_a_path_as_a_short_value(tmp_path: Path) -> None:
    class Saved(Net):
        def __init__(self, **practices: Any) -> None:
            super().__init__(**practices)
            self.save_hyperparameters()

    module = Saved(learning_curves=tmp_path / "curves.svg", checkpoint=None)
    trainer = fit(module, max_epochs=1)
    assert (tmp_path / "curves.svg").exists()
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    saved = torch.load(tmp_path / "net.ckpt", weights_only=True)["lightning_practices_arguments"]
    assert saved["learning_curves"] == str(tmp_path / "curves.svg")


def test_bad_monitor_and_mode() -> None:
    with pytest.raises(TypeError, match="monitor has to be a name, but got None"):
        Net(monitor=None)
    with pytest.raises(ValueError, match="mode has to be 'min' or 'max', but got 'maximum'"):
        Net(mode="maximum")


class Further(Net):
    """With a further callback of the type of one of the mixins."""

    def __init__(self, **practices: Any) -> None:
        super().__init__(**practices)
        self.further = EarlyStopping("accuracy", mode="max", restore_best_weights=False)

    @override
    def configure_callbacks(self) -> list[Callback]:
        return [*super().configure_callbacks(), self.further]


@pytest.mark.parametrize("kind", [Net, Further])
def test_each_run_of_a_trainer_has_all_callbacks(
    kind: type[Net], caplog: pytest.LogCaptureFixture
) -> None:
    module = kind(weight_averaging="ema")
    trainer = fit(module, max_epochs=1)
    before = trainer.callbacks  # type: ignore[attr-defined]
    ours = module.configure_callbacks()
    assert len(ours) > 3
    caplog.clear()
    trainer.validate(module, loader(), verbose=False)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader(), loader())
    assert all(one in trainer.callbacks for one in ours)  # type: ignore[attr-defined]
    assert len(trainer.callbacks) == len(before)  # type: ignore[attr-defined]
    assert ("will override" in caplog.text) == (kind is Further)
    assert stopping_of(module).best_step is not None
