"""A fit in processes that end with it: a warning says that results of callbacks stay there."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_practices.callbacks import EarlyStopping, ExactResume, SkipNonFinite
from tests.callbacks.scripted import Scripted, fit

MESSAGE = "this strategy fits in processes of its own"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a process that uses a GPU can't fork")
@pytest.mark.parametrize("strategy", ["ddp_fork", "auto"])
def test_one_warning(strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = tmp_path / "shown"
    shown.touch()

    def show(message: Any, *_: Any, **__: Any) -> None:
        with shown.open("a") as file:  # of all processes
            file.write(f"{message}\n")

    stopping, module = EarlyStopping("val_loss"), Scripted()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", show)
        fit(module, ExactResume(), stopping, SkipNonFinite(), strategy=strategy)
    is_forked = strategy == "ddp_fork"
    assert shown.read_text().count(MESSAGE) == is_forked
    assert stopping.best_step == (None if is_forked else 8)
