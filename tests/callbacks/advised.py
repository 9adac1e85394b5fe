"""Fits with a TrainingAdvisor."""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_practices.callbacks import TrainingAdvisor
from tests.callbacks.faulty_fits import Fit

MARKS = [
    pytest.mark.plain,
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:Found .* module:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*Please add the following callbacks"),
    pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`"),
]


def fitted(
    module: LightningModule, train: Any, val: Any = None, steps: int = 100, **options: Any
) -> TrainingAdvisor:
    """Fit with an advisor, and return it."""
    torch.manual_seed(0)
    advisor = options.pop("advisor", None) or TrainingAdvisor()
    options["callbacks"] = [*options.get("callbacks", ()), advisor]
    quiet: dict[str, Any] = {"max_epochs": -1, "logger": DummyLogger()}
    trainer = Trainer(
        **quiet | {"enable_checkpointing": False} | options,
        max_steps=steps, accelerator="cpu", enable_progress_bar=False, num_sanity_val_steps=0,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, train, val)
    return advisor


def fit_of(made: Fit, **options: Any) -> TrainingAdvisor:
    options |= made.options or {}
    return fitted(
        made.module, made.train, made.val, made.steps, callbacks=made.callbacks, **options
    )
