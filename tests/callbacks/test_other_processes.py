"""A fit in processes that end with it: a warning says that results of callbacks stay there."""

import pytest

from lightning_practices.callbacks import EarlyStopping, ExactResume, SkipNonFinite
from tests.callbacks.scripted import Scripted, fit

MESSAGE = "this strategy fits in processes of its own"


@pytest.mark.parametrize("strategy", ["ddp_spawn", "auto"])
def test_one_warning(strategy: str, capfd: pytest.CaptureFixture[str]) -> None:
    stopping, module = EarlyStopping("val_loss"), Scripted()
    fit(module, ExactResume(), stopping, SkipNonFinite(), strategy=strategy)
    is_spawned = strategy == "ddp_spawn"
    assert capfd.readouterr().err.count(MESSAGE) == is_spawned
    assert stopping.best_step == (None if is_spawned else 8)
