"""Constructors of mixins: those that have not run, and the hyperparameters that loggers get."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_practices import mixins
from lightning_practices.callbacks import GradientClipping
from lightning_practices.optim import Optimizer

# Those of modules; the mixins of datamodules have tests of their own.
ALL = [n for n in mixins.__all__ if issubclass(getattr(mixins, n), mixins.PracticeMixin)]
NAMES = [name for name in ALL if name not in ("PracticeMixin", "MonitorMixin")]


class Base(LightningModule):
    net: nn.Linear

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch).square().mean()
        return loss

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("loss", self.net(batch).mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def skipping(mixin: type[Any], calls: bool) -> LightningModule:
    """Return a module whose class calls the constructor of LightningModule alone, or none."""

    def constructor(self: Any) -> None:
        if calls:
            LightningModule.__init__(self)
            self.net = nn.Linear(2, 1)
        self.width = 2

    module: LightningModule = type("Skipping", (mixin, Base), {"__init__": constructor})()
    return module


@pytest.mark.parametrize("calls", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_skipped_constructor_is_one_clear_error(name: str, calls: bool, tmp_path: Path) -> None:
    trainer = Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data: DataLoader[Any] = DataLoader(list(torch.zeros(2, 2)))  # type: ignore[arg-type]
    message = r"the mixins of Skipping have no settings, .* call super\(\).__init__\(...\) in the"
    with pytest.raises(RuntimeError, match=message):
        trainer.fit(skipping(getattr(mixins, name), calls), data)
    with pytest.raises(RuntimeError, match=message):
        trainer.test(skipping(getattr(mixins, name), calls), data, verbose=False)
    if not calls:
        torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.0"}, tmp_path / "net.ckpt")
        with pytest.raises(RuntimeError, match=message):
            type(skipping(getattr(mixins, name), calls)).load_from_checkpoint(tmp_path / "net.ckpt")


class Saving(mixins.GradientClippingMixin, mixins.OptimizerMixin, Base):
    def __init__(self, nested: dict[str, Any], width: int = 2, **practices: Any) -> None:
        super().__init__(**practices)
        self.save_hyperparameters()
        self.net = nn.Linear(width, 1)


def test_loggers_get_texts_in_place_of_objects(tmp_path: Path) -> None:
    clipping = GradientClipping(1.0)
    module = Saving(
        {"a": [Optimizer("sgd", lr=0.1)]}, optimizer=Optimizer(lr=0.5), gradient_clipping=clipping
    )
    trainer = Trainer(
        accelerator="cpu", max_steps=1, logger=CSVLogger(tmp_path), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    data: DataLoader[Any] = DataLoader(list(torch.zeros(2, 2)))  # type: ignore[arg-type]
    trainer.fit(module, data)
    (file,) = tmp_path.rglob("hparams.yaml")
    assert yaml.safe_load(file.read_text()) == {
        "gradient_clipping": "GradientClipping",
        "nested": {"a": ["Optimizer('sgd', lr=0.1)"]},
        "optimizer": "Optimizer('adamw', lr=0.5)",
        "width": 2,
    }
    assert module.hparams["gradient_clipping"] is clipping


@pytest.mark.parametrize("base", [Base, LightningModule])
@pytest.mark.parametrize("name", ALL)
def test_a_class_before_a_mixin_is_refused(name: str, base: type) -> None:
    mixin = getattr(mixins, name)
    message = (
        rf"Net lists {base.__name__} before {name}, which would do nothing: list mixins first, as"
        rf" in class Net\({name}, {base.__name__}\)"
    )
    with pytest.raises(TypeError, match=message):
        type("Net", (base, mixin), {})


def test_a_class_before_one_that_has_mixins() -> None:
    class Steps(LightningModule):
        pass

    class Practised(mixins.EarlyStoppingMixin, Base):
        pass

    class Below(Steps, Practised):
        pass

    class Further(mixins.GradientClippingMixin, Steps, Practised):
        pass

    assert len(Below(early_stopping=3).configure_callbacks()) == 1
    assert len(Further().configure_callbacks()) == 2
