"""Early stopping by subclassing."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks import EarlyStopping
from lightning_practices.mixins import EarlyStoppingMixin

# A second fit saves into the folder of the first.
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")

LOSSES = (3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0)


class Base(LightningModule):
    """Logs the loss of a script, one value an epoch of one step."""

    def __init__(self, width: int = 2, losses: Sequence[float] = LOSSES) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(2, width)
        self.losses = losses
        self.seen: list[Tensor] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch).square().mean()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.seen.append(self.layer.weight.detach().clone())
        loss = self.losses[self.current_epoch]
        self.log("val_loss", loss)
        self.log("accuracy", -loss)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Net(EarlyStoppingMixin, Base):
    def __init__(self, *, early_stopping: int | EarlyStopping | None = 3, **kwargs: Any) -> None:
        super().__init__(early_stopping=early_stopping, **kwargs)


def fit(
    module: LightningModule, *callbacks: Callback, resume: Path | None = None, **options: Any
) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=8,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, loader(), loader(), ckpt_path=resume)
    return trainer


def stopping_of(module: EarlyStoppingMixin) -> EarlyStopping:
    assert module.early_stopping is not None
    return module.early_stopping


def loader() -> DataLoader[Tensor]:
    return DataLoader([torch.ones(2), torch.zeros(2)], batch_size=2)  # type: ignore[arg-type]


def stoppings(trainer: Trainer) -> list[Callback]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, LightningEarlyStopping)]


def test_it_stops_and_gives_the_best_weights_back() -> None:
    module = Net()
    trainer = fit(module)
    assert trainer.current_epoch == 5
    stopping = stopping_of(module)
    assert (stopping.best_epoch, stopping.best_step) == (1, 2)
    assert torch.equal(module.layer.weight, module.seen[1])


def test_its_arguments() -> None:
    module = Net(early_stopping=1, monitor="accuracy", mode="max", width=3)
    stopping = stopping_of(module)
    assert (stopping.monitor, stopping.mode, stopping.patience) == ("accuracy", "max", 1)
    assert module.layer.out_features == 3
    assert fit(module).current_epoch == 3


def test_a_configured_callback_is_taken_as_it_is() -> None:
    given = EarlyStopping("accuracy", mode="max", patience=1, min_delta=2.5)
    module = Net(early_stopping=given)
    assert fit(module).current_epoch == 2  # a rise from -3 to -1 isn't one
    assert stopping_of(module).best_epoch == 0


def test_one_callback_for_several_modules() -> None:
    given = EarlyStopping("val_loss", patience=1)
    first, second = (
        Net(early_stopping=given),
        Net(early_stopping=given, losses=(5.0, 4.0, 4.5, 4.5)),
    )
    assert fit(first).current_epoch == 3
    assert fit(second).current_epoch == 3  # though 4 is more than the 1 of the first
    assert stopping_of(first).best_score == 1.0
    assert stopping_of(second).best_score == 4.0
    assert torch.equal(second.layer.weight, second.seen[1])
    assert (given.best_epoch, given.wait_count) == (None, 0)


def test_none_turns_it_off() -> None:
    module = Net(early_stopping=None)
    trainer = fit(module)
    assert (trainer.current_epoch, stoppings(trainer), module.early_stopping) == (8, [], None)


@pytest.mark.parametrize("given", [True, "3", LightningEarlyStopping("val_loss")])
def test_what_is_neither(given: Any) -> None:
    expected = r"types int, lightning_practices\.callbacks\.EarlyStopping, None, but got"
    with pytest.raises(TypeError, match=expected):
        Net(early_stopping=given)


def test_several_values() -> None:
    both = EarlyStopping(
        ["val_loss", "accuracy"], mode=["min", "max"], min_delta=[0.0, 3.0], patience=2
    )
    module = Net(early_stopping=both)
    assert fit(module).current_epoch == 4
    assert stopping_of(module).best_step == 2
    assert torch.equal(module.layer.weight, module.seen[1])


def test_every_run_has_the_same_callback_once() -> None:
    module = Net()
    trainer = fit(module)
    assert stoppings(trainer) == [module.early_stopping]
    trainer.validate(module, loader(), verbose=False)
    assert stoppings(trainer) == [module.early_stopping]
    module.seen.clear()
    other = fit(module)  # with another Trainer: a new fit
    assert stoppings(other) == [module.early_stopping]
    assert (other.current_epoch, stopping_of(module).wait_count) == (5, 3)
    assert torch.equal(module.layer.weight, module.seen[1])


def test_another_module_in_the_same_trainer_has_its_own() -> None:
    first, second = Net(), Net()
    trainer = fit(first)
    trainer.fit_loop.max_epochs = 13
    second.losses = 13 * [1.0]
    trainer.fit(second, loader(), loader())
    assert stoppings(trainer) == [second.early_stopping]
    assert stopping_of(second).best_epoch == 5


class Default(EarlyStoppingMixin, Base):
    pass


class OwnStopping(EarlyStopping):
    pass


KINDS = (EarlyStopping, LightningEarlyStopping, OwnStopping)


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_leaves_stopping_to_that_of_the_trainer(
    kind: type[LightningEarlyStopping], caplog: pytest.LogCaptureFixture
) -> None:
    module, theirs = Default(), kind("accuracy", patience=1, mode="max")
    with caplog.at_level("INFO"):
        trainer = fit(module, theirs)
    assert stoppings(trainer) == [theirs]
    assert trainer.current_epoch == 3
    assert module.early_stopping is (theirs if isinstance(theirs, EarlyStopping) else None)
    line = (
        f"the Trainer's {kind.__name__}('accuracy') stops this fit.*early_stopping=10.*'val_loss'"
    )
    found = [r.message for r in caplog.records if "EarlyStoppingMixin" in r.message]
    assert len(found) == 1
    assert re.search(line.replace("(", r"\(").replace(")", r"\)"), found[0])
    assert "will override existing callbacks" not in caplog.text
    trainer.validate(module, loader(), verbose=False)
    assert stoppings(trainer) == [theirs]
    other = fit(module)  # of a Trainer without one
    assert stoppings(other) == [module.early_stopping]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [3, EarlyStopping("val_loss", patience=10)])
def test_two_that_the_user_gave(kind: type[LightningEarlyStopping], given: Any) -> None:
    module = Default(early_stopping=given)
    theirs = kind("accuracy", patience=1, mode="max")
    with pytest.raises(MisconfigurationException, match=r"\('accuracy'\), and early_stopping="):
        fit(module, theirs)
    assert fit(Default(early_stopping=None), theirs).current_epoch == 3


class Two(Net):
    @override
    def configure_callbacks(self) -> list[Callback]:
        extra = EarlyStopping("accuracy", patience=1, mode="max", restore_best_weights=False)
        return [*super().configure_callbacks(), extra]


def test_a_module_can_have_more() -> None:
    module = Two()
    trainer = fit(module)
    assert len(stoppings(trainer)) == 2
    assert (trainer.current_epoch, stopping_of(module).wait_count) == (3, 1)


class OneBase(Base):
    @override
    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        return Timer({"hours": 1})


def test_it_extends_what_the_base_brings() -> None:
    class OneNet(EarlyStoppingMixin, OneBase):
        pass

    timer, stopping = OneNet().configure_callbacks()
    assert isinstance(timer, Timer)
    assert isinstance(stopping, EarlyStopping)


def test_resuming_in_a_new_module_with_more_patience(tmp_path: Path) -> None:
    fit(Net(), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1))
    module = Net(early_stopping=10)
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer = fit(module, save, resume=tmp_path / "epoch=4.ckpt")
    assert trainer.current_epoch == 8
    assert (stopping_of(module).best_epoch, stopping_of(module).wait_count) == (1, 6)
    best = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(module.layer.weight, best["layer.weight"])


class Leaf(EarlyStoppingMixin, LightningModule):
    """A leaf with arguments of its own, over the mixin alone."""

    def __init__(self, width: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        self.layer = nn.Linear(2, width)


@pytest.mark.parametrize("kind", [Net, Leaf])
def test_hyperparameters_and_load_from_checkpoint(tmp_path: Path, kind: Any) -> None:
    module = kind(width=3, early_stopping=7)
    assert dict(module.hparams).items() >= {"width": 3, "early_stopping": 7}.items()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    loaded = kind.load_from_checkpoint(tmp_path / "net.ckpt")
    assert loaded.layer.out_features == 3
    assert stopping_of(loaded).patience == 7
