"""The learning rate that Lightning's finder finds: it reaches the optimizer and checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner.tuning import Tuner
from torch import nn
from typing_extensions import override

from lightning_practices.mixins import OptimizerMixin, TrainingPractices
from lightning_practices.optim import Optimizer
from tests.callbacks.scripted import FILTERS
from tests.mixins.tuned import RATE, Base, trainer_of

pytestmark = FILTERS


class Net(TrainingPractices, Base):
    pass


class Rates(Callback):
    """Notes the rates of the groups in the first step of each fit, and then ends the fit."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    @override
    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])
        trainer.should_stop = True


def search(trainer: Trainer, module: LightningModule) -> float:
    found = Tuner(trainer).lr_find(module, num_training=15, early_stop_threshold=None)
    assert found is not None
    rate = found.suggestion()
    assert rate is not None
    assert rate != RATE
    return rate


def rates(module: LightningModule, folder: Path, *callbacks: Callback) -> list[float]:
    noted = Rates()
    trainer_of(folder, *callbacks, noted).fit(module)
    return noted.seen[0]


class Plain(OptimizerMixin, Base):
    """Without a rate in its own arguments."""

    def __init__(self, width: int = 4, **practices: Any) -> None:
        super().__init__(**practices)
        self.save_hyperparameters()


class Argument(OptimizerMixin, Base):
    """With the rate as its own argument, under one of the two names that the finder knows."""

    def __init__(self, learning_rate: float = RATE, **practices: Any) -> None:
        super().__init__(optimizer=Optimizer("sgd", learning_rate), **practices)
        self.save_hyperparameters()


class Attribute(OptimizerMixin, Base):
    """With its own attribute."""

    def __init__(self, **practices: Any) -> None:
        super().__init__(**practices)
        self.learning_rate = 0.5

    @override
    def on_train_batch_start(self, *_: Any) -> None:
        self.learning_rate = 0.5


def test_the_rate_in_hyperparameters_and_checkpoints(tmp_path: Path) -> None:
    given = Optimizer("sgd", RATE)
    module = Plain(optimizer=given)
    trainer = trainer_of(tmp_path)
    rate = search(trainer, module)
    assert module.lr == module.hparams["optimizer"].lr == rate
    assert given.lr == RATE  # the user's object may serve another module
    trainer.save_checkpoint(path := tmp_path / "net.ckpt")
    loaded = Plain.load_from_checkpoint(path, optimizer=given)
    assert rates(loaded, tmp_path) == [rate, rate]
    assert loaded.hparams["optimizer"].lr == rate
    another = Plain.load_from_checkpoint(path, optimizer=Optimizer("sgd", 0.3))
    assert rates(another, tmp_path) == [0.3, 0.3]
    # By hand, after a fit.
    module.lr = 0.125
    assert rates(module, tmp_path) == [0.125, 0.125]


def test_the_rate_of_a_short_value_survives(tmp_path: Path) -> None:
    module = Plain(optimizer="momentum")
    trainer = trainer_of(tmp_path)
    rate = search(trainer, module)
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    loaded = Plain.load_from_checkpoint(tmp_path / "net.ckpt")
    assert loaded.hparams["optimizer"] == "momentum"
    assert rates(loaded, tmp_path) == [rate, rate]


def test_the_rate_of_an_own_argument(tmp_path: Path) -> None:
    module = Argument()
    trainer = trainer_of(tmp_path)
    rate = search(trainer, module)
    assert rates(module, tmp_path) == [rate, rate]
    assert module.hparams["learning_rate"] == rate
    trainer.save_checkpoint(path := tmp_path / "net.ckpt")
    assert rates(Argument.load_from_checkpoint(path), tmp_path) == [rate, rate]
    assert rates(Argument.load_from_checkpoint(path, learning_rate=RATE), tmp_path) == [RATE] * 2


def test_an_own_attribute(tmp_path: Path) -> None:
    module = Attribute(optimizer="sgd")
    assert module.learning_rate == 0.5
    assert rates(module, tmp_path) == [0.5, 0.5]
    rate = search(trainer_of(tmp_path), module)
    assert module.learning_rate == rate
    assert not hasattr(module, "lr")
    assert rates(module, tmp_path) == [rate, rate]
    del module.learning_rate
    assert module.lr == rate


class Assigned(TrainingPractices, Base):
    """With an argument of its own that it doesn't pass on."""

    def __init__(self, lr: float = RATE, **practices: Any) -> None:
        super().__init__(**practices)
        self.lr = lr


@pytest.mark.parametrize("optimizer", ["adamw", Optimizer("sgd"), Optimizer("sgd", 0.125)])
def test_an_attribute_that_the_constructor_sets(optimizer: Any, tmp_path: Path) -> None:
    practices: dict[str, Any] = {"optimizer": optimizer, "schedule": None, "checkpoint": None}
    module = Assigned(0.125, **practices)
    assert set(rates(module, tmp_path)) == {0.125}
    module = Assigned(0.125, **practices)
    module.lr = 0.25
    assert set(rates(module, tmp_path)) == {0.25}
    # A rate that is found later survives, though the constructor assigns again.
    trainer = trainer_of(tmp_path)
    module = Assigned(0.125, **practices)
    rate = search(trainer, module)
    trainer.save_checkpoint(path := tmp_path / "net.ckpt")
    loaded = Assigned.load_from_checkpoint(path, lr=0.125, **practices)
    assert set(rates(loaded, tmp_path)) == {rate}
    other = Assigned.load_from_checkpoint(path, lr=0.5, **practices | {"optimizer": "sgd"})
    assert set(rates(other, tmp_path)) == {0.5}


def test_an_attribute_against_the_rate_of_the_optimizer(tmp_path: Path) -> None:
    given = Optimizer("sgd", 0.125)
    with pytest.warns(UserWarning, match=r"attribute lr=0\.01 .* replaces .* lr=0\.125"):
        module = Assigned(optimizer=given, schedule=None, checkpoint=None)
    module.lr = 0.5  # without a second warning
    assert set(rates(module, tmp_path)) == {0.5}
    assert given.lr == 0.125
    with pytest.raises(ValueError, match=r"lr has to be .* but got -1"):
        Assigned(-1.0)
    for value in (None, "auto", True):
        module = Assigned(value, optimizer=given, schedule=None, checkpoint=None)  # type: ignore[arg-type]
        assert module.lr is value
        assert set(rates(module, tmp_path)) == {0.125}
    assert Assigned(optimizer=None).lr == RATE


class WithoutSuper(OptimizerMixin, Base):
    """With checkpoint hooks of its own that don't call ``super()``."""

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["own"] = 1

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.own = checkpoint["own"]


class Below(WithoutSuper):
    pass


@pytest.mark.parametrize("kind", [WithoutSuper, Below])
def test_hooks_without_super(kind: Any, tmp_path: Path) -> None:
    module = kind(optimizer="momentum")
    trainer = trainer_of(tmp_path)
    rate = search(trainer, module)
    trainer.save_checkpoint(path := tmp_path / "net.ckpt")
    loaded = kind.load_from_checkpoint(path, optimizer="momentum")
    assert loaded.own == 1
    assert rates(loaded, tmp_path) == [rate, rate]


def test_the_mixin_hides_no_attribute_of_a_class() -> None:
    class Class(LightningModule):
        lr = 0.25

    class Property(LightningModule):
        @property
        def lr(self) -> float:
            return self.kept

        @lr.setter
        def lr(self, value: float) -> None:
            self.kept = value

    class Weight(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.lr = nn.Parameter(torch.ones(2))
            self.register_buffer("learning_rate", torch.zeros(1))

    def made(base: type) -> Any:
        return type("Made", (OptimizerMixin, base), {})()

    module = made(Class)
    assert module.lr == 0.25
    module.lr = "any value"
    assert module.lr == "any value"
    module = made(Property)
    module.lr = 3
    assert (module.lr, module.kept) == (3, 3)
    assert "lr" not in vars(module)
    module = made(Weight)
    assert set(module.state_dict()) == {"lr", "learning_rate"}
    assert torch.equal(module.lr, torch.ones(2))
    module = made(LightningModule)
    with pytest.raises(AttributeError, match="no attribute 'lr'"):
        _ = module.lr
    with pytest.raises(AttributeError, match="no own 'lr'"):
        del module.lr


@pytest.mark.parametrize("schedule", [None, "cosine"])
def test_rates_by_layer_keep_their_factors(schedule: Any, tmp_path: Path) -> None:
    optimizer = Optimizer("adamw", RATE, layer_decay=0.5)
    module = Net(optimizer=optimizer, schedule=schedule, checkpoint=None)
    seen = rates(module, tmp_path, LearningRateFinder(num_training_steps=15))
    rate = module.lr
    assert rate != RATE
    assert sorted(set(seen)) == [rate * 0.5, rate]


class Holding(Base):
    """A base that assigns the rate to an attribute and has no optimizer."""

    def __init__(self, lr: float = 0.5) -> None:
        super().__init__()
        self.lr = lr


class Hyper(Base):
    """A base with the rate as a hyperparameter alone."""

    def __init__(self, lr: float = 0.5) -> None:
        super().__init__()
        self.save_hyperparameters()


class Both(Base):
    def __init__(self, lr: float = 0.5) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr


class Own(OptimizerMixin, Base):
    """The same without a base: the class itself saves the hyperparameter."""

    def __init__(self, learning_rate: float = 0.5, **practices: Any) -> None:
        super().__init__(**practices)
        self.save_hyperparameters()


def rate_of(module: Any) -> list[float]:
    return [group["lr"] for group in module.configure_optimizers().param_groups]


@pytest.mark.parametrize("base", [Holding, Hyper, Both, Own])
@pytest.mark.parametrize("optimizer", [None, "momentum", Optimizer("sgd")])
def test_the_rate_of_a_base(base: Any, optimizer: Any, tmp_path: Path) -> None:
    kind: Any = base if base is Own else type("Kind", (OptimizerMixin, base), {})
    name = "learning_rate" if base is Own else "lr"

    def check(module: Any, rate: float) -> None:
        assert set(rate_of(module)) == {rate}
        for holder in (vars(module), module.hparams):
            assert holder.get(name, rate) == rate

    check(kind(optimizer=optimizer), 0.5)
    module = kind(optimizer=optimizer, **{name: 0.125})
    check(module, 0.125)
    trainer = trainer_of(tmp_path)
    rate = search(trainer, module)
    check(module, rate)
    trainer.save_checkpoint(path := tmp_path / "net.ckpt")
    given = {name: 0.125} if base is Holding else {}  # it saves no arguments
    loaded = kind.load_from_checkpoint(path, optimizer=optimizer, **given)
    check(loaded, rate)
    check(kind.load_from_checkpoint(path, optimizer=optimizer, **{name: 0.25}), 0.25)


@pytest.mark.parametrize("base", [Holding, Hyper, Both])
def test_a_rate_of_the_optimizer_counts_more_than_that_of_a_base(base: Any) -> None:
    kind: Any = type("Kind", (OptimizerMixin, base), {})
    module = kind(optimizer=Optimizer("sgd", 0.25))
    assert set(rate_of(module)) == {0.25}
    module.hparams["lr"] = 0.75
    assert set(rate_of(module)) == {0.25}
    module = Own()
    for rate in (0.75, 0.5):  # between fits
        module.hparams["learning_rate"] = rate
        assert set(rate_of(module)) == {rate}
