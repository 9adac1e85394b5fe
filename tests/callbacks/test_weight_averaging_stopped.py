"""The best of the averages, by EarlyStopping."""

from pathlib import Path
from typing import Any

import pytest

from lightning_practices.callbacks import EarlyStopping, WeightAveraging
from tests.callbacks.averaging import Net, fit
from tests.callbacks.scripted import DIP, FILTERS, At, interrupt, same, saves, state_of

pytestmark = FILTERS

BEST = 8  # of DIP, by step: after the second epoch


def made(**arguments: Any) -> tuple[EarlyStopping, WeightAveraging]:
    return EarlyStopping("val_loss", patience=3), WeightAveraging(decay=0.9, **arguments)


@pytest.mark.parametrize("first", ["stopping", "averaging"])
def test_the_best_averages_are_given_back(first: str) -> None:
    stopping, averaging = made()
    module, bare = Net(), Net()
    ordered = [stopping, averaging] if first == "stopping" else [averaging, stopping]
    trainer = fit(module, *ordered, max_epochs=8)
    fit(bare, WeightAveraging(decay=0.9), max_epochs=8)
    assert (stopping.best_step, trainer.global_step) == (BEST, 20)
    assert same(state_of(module), bare.seen[BEST])
    assert not same(bare.seen[BEST], bare.trained[BEST])
    assert all(same(module.trained[step], bare.trained[step]) for step in module.trained)


def test_before_averaging_begins_the_best_are_the_trained() -> None:
    stopping, averaging = made(start=BEST + 1)
    module = Net()
    fit(module, stopping, averaging, max_epochs=8)
    assert averaging.averaged > 0
    assert same(state_of(module), module.trained[BEST])


def test_interrupted() -> None:
    stopping, averaging = made()
    module = Net()
    with pytest.raises(SystemExit):
        fit(module, stopping, averaging, At(14, interrupt), max_epochs=8)
    assert same(state_of(module), module.seen[BEST])


@pytest.mark.parametrize("at", [4, 8, 12, 20])
def test_resumed(at: int, tmp_path: Path) -> None:
    """From before the best, from it, from later, and from after both were given back."""
    whole, resumed = Net(), Net()
    stopping, averaging = made()
    trainer = fit(whole, stopping, averaging, saves(tmp_path, every_n_epochs=1), max_epochs=8)
    path = tmp_path / f"step={at}.ckpt"
    if at == 20:
        trainer.save_checkpoint(path)
    again = made()
    again[0].patience = 6 if at == 20 else 3
    fit(resumed, *again, resume=path, max_epochs=8)
    assert again[0].best_step == BEST
    assert same(state_of(resumed), whole.seen[BEST])
    for step, state in resumed.trained.items():
        if step in whole.trained:
            assert same(state, whole.trained[step])
    assert (max(resumed.trained) > 20) == (at == 20)


def test_of_a_checkpoint_the_state_is_the_averages(tmp_path: Path) -> None:
    module = Net()
    fit(module, *made(), saves(tmp_path, every_n_epochs=1), max_epochs=8)
    loaded = Net.load_from_checkpoint(tmp_path / f"step={BEST}.ckpt", values=DIP)
    assert same(state_of(loaded), module.seen[BEST])
