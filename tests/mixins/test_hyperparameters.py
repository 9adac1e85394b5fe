"""Hyperparameters that are objects of practices, or hold one: checkpoints leave them out."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_practices import mixins
from lightning_practices.callbacks import GradientClipping
from lightning_practices.optim import Optimizer

SGD = Optimizer("sgd", lr=0.1)


class Base(LightningModule):
    net: nn.Linear

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch).square().mean()
        return loss


class Own:
    """A base class whose hook doesn't call ``super()``."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["own"] = 1


class Saving(mixins.GradientClippingMixin, mixins.OptimizerMixin, Base):
    def __init__(self, nested: Any = None, width: int = 2, **practices: Any) -> None:
        super().__init__(**practices)
        self.save_hyperparameters()
        self.net = nn.Linear(width, 1)


class SavingAlone(Saving):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["own"] = 1


class Later(SavingAlone):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["later"] = 1


class SavingByBase(Own, Saving):
    pass


class Required(mixins.OptimizerMixin, Base):
    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(**settings)
        self.save_hyperparameters()
        self.net = nn.Linear(2, 1)


@dataclass
class Settings:
    optimizer: Optimizer
    width: int = 2


def fit(module: LightningModule, folder: Path, weights_only: bool = False, **options: Any) -> Path:
    saving = ModelCheckpoint(folder, filename="net", save_weights_only=weights_only)
    options = {"logger": False} | options
    trainer = Trainer(
        accelerator="cpu", max_steps=1, enable_progress_bar=False, log_every_n_steps=1,
        enable_model_summary=False, callbacks=[saving], **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(list(torch.zeros(2, 2))))  # type: ignore[arg-type]
    return folder / "net.ckpt"


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("kind", [Saving, SavingAlone, Later, SavingByBase])
def test_a_hook_without_super(kind: type[Any], weights_only: bool, tmp_path: Path) -> None:
    objects = {"optimizer": SGD, "gradient_clipping": GradientClipping(0.5)}
    module = kind(width=2, **objects)
    path = fit(module, tmp_path, weights_only)
    saved = torch.load(path, weights_only=True)
    assert saved["hyper_parameters"] == {"nested": None, "width": 2}
    assert saved.get("own") == (None if kind is Saving else 1)
    assert saved.get("later") == (1 if kind is Later else None)
    assert module.hparams["optimizer"] is SGD
    loaded = kind.load_from_checkpoint(path, **objects, weights_only=True)
    torch.testing.assert_close(loaded.net.weight, module.net.weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    "nested",
    [
        {"a": SGD, "b": 1},
        {"a": {"b": [1, SGD]}},
        [SGD],
        (1, (SGD,)),
        {GradientClipping(1.0)},
        Settings(SGD),
        Namespace(one=SGD),
        SimpleNamespace(one={"a": Settings(SGD)}),
    ],
    ids=lambda nested: type(nested).__name__,
)
def test_an_argument_that_holds_an_object_is_left_out(nested: Any, tmp_path: Path) -> None:
    path = fit(Saving(nested, width=2, optimizer=SGD), tmp_path)
    saved = torch.load(path, weights_only=True)["hyper_parameters"]
    assert saved == {"width": 2}
    loaded = Saving.load_from_checkpoint(path, nested=nested, optimizer=SGD, weights_only=True)
    assert loaded.hparams["nested"] == nested


def test_arguments_without_objects_are_kept(tmp_path: Path) -> None:
    itself: list[Any] = [1]
    itself.append(itself)
    path = fit(Saving({"a": [itself, "b"], "c": (1, 2)}, optimizer=SGD), tmp_path)
    saved = torch.load(path, weights_only=True)["hyper_parameters"]
    assert saved["nested"]["c"] == (1, 2)
    assert saved["nested"]["a"][0][1] is saved["nested"]["a"][0]


def test_loading_names_the_argument_that_was_left_out(tmp_path: Path) -> None:
    path = fit(Required({"optimizer": SGD}), tmp_path)
    with pytest.raises(TypeError, match=r"Required.load_from_checkpoint\(path, settings=...\)"):
        Required.load_from_checkpoint(path, weights_only=True)
    Required.load_from_checkpoint(path, settings={"optimizer": SGD}, weights_only=True)


def test_loggers_get_texts_of_nested_objects(tmp_path: Path) -> None:
    fit(Saving({"a": (SGD, 1), "b": Settings(SGD)}, optimizer="sgd"), tmp_path / "saved",
        logger=CSVLogger(tmp_path))  # fmt: skip
    (file,) = tmp_path.rglob("hparams.yaml")
    text = "Optimizer('sgd', lr=0.1)"
    nested = {"a": [text, 1], "b": f"Settings(optimizer={text}, width=2)"}
    assert yaml.safe_load(file.read_text())["nested"] == nested
