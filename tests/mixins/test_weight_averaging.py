"""Averaged weights by subclassing."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Timer
from typing_extensions import override

from lightning_practices.callbacks import WeightAveraging
from lightning_practices.mixins import WeightAveragingMixin
from tests.callbacks import averaging
from tests.callbacks.averaging import fit
from tests.callbacks.scripted import FILTERS, same, saves, state_of

pytestmark = FILTERS

SETTINGS: list[dict[str, Any]] = [
    {"decay": 0.6},
    {"decay": 0.9, "decay_warmup": True, "start": 3, "frequency": 2},
    {"kind": "swa", "start": 0.5},
    {"decay": 0.6, "interval": "epoch"},
]


class Base(averaging.Net):
    def __init__(self, width: int = 2) -> None:
        super().__init__(width=width)
        self.save_hyperparameters()


class Net(WeightAveragingMixin, Base):
    pass


def callback_of(module: WeightAveragingMixin) -> WeightAveraging:
    assert module.weight_averaging is not None
    return module.weight_averaging


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_does_what_the_callback_does(settings: dict[str, Any]) -> None:
    callback = WeightAveraging(**settings)
    module, plain = Net(weight_averaging=callback), averaging.Net()
    fit(module)
    fit(plain, callback)
    assert callback_of(module).averaged == callback.averaged > 0
    assert same(state_of(module), state_of(plain))
    assert all(same(module.seen[step], plain.seen[step]) for step in plain.seen)


def test_without_averaging() -> None:
    module, plain = Net(weight_averaging=None), averaging.Net()
    trainer = fit(module)
    fit(plain)
    assert module.weight_averaging is None
    assert not any(isinstance(c, WeightAveraging) for c in trainer.callbacks)  # type: ignore[attr-defined]
    assert same(state_of(module), state_of(plain))


def test_every_run_has_the_same_callback_once_in_place_of_the_trainers() -> None:
    module = Net(weight_averaging=WeightAveraging(decay=0.6))
    trainer = fit(module, WeightAveraging("swa"))
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    assert [c for c in callbacks if isinstance(c, WeightAveraging)] == [module.weight_averaging]
    trainer.validate(module, averaging.VALIDATION, verbose=False)
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    assert [c for c in callbacks if isinstance(c, WeightAveraging)] == [module.weight_averaging]
    plain = averaging.Net()
    fit(plain, WeightAveraging(decay=0.6))
    assert same(state_of(module), state_of(plain))


def test_resuming_in_a_new_module(tmp_path: Path) -> None:
    whole = Net(weight_averaging=WeightAveraging(decay=0.6))
    fit(whole, saves(tmp_path, every_n_train_steps=6))
    resumed = Net(weight_averaging=WeightAveraging(decay=0.6))
    fit(resumed, resume=tmp_path / "step=6.ckpt")
    assert same(state_of(whole), state_of(resumed))
    other = averaging.Net()  # the mixin's checkpoint is the callback's
    fit(other, WeightAveraging(decay=0.6), resume=tmp_path / "step=6.ckpt")
    assert same(state_of(whole), state_of(other))


def test_hyperparameters_and_load_from_checkpoint(tmp_path: Path) -> None:
    module = Net(width=3, weight_averaging="ema")
    assert dict(module.hparams).items() >= {"width": 3, "weight_averaging": "ema"}.items()
    fit(module, saves(tmp_path, every_n_train_steps=16))
    loaded = Net.load_from_checkpoint(tmp_path / "step=16.ckpt", weights_only=True)
    assert same(state_of(loaded), state_of(module))
    assert callback_of(loaded).kind == "ema"


def test_it_extends_what_the_base_brings() -> None:
    class Timed(Base):
        @override
        def configure_callbacks(self) -> Any:
            return Timer({"hours": 1})

    class Both(WeightAveragingMixin, Timed):
        pass

    timer, callback = Both().configure_callbacks()
    assert isinstance(timer, Timer)
    assert isinstance(callback, WeightAveraging)


def test_bad_arguments_and_the_twin_package() -> None:
    with pytest.raises(ValueError, match="mean"):
        Net(weight_averaging="mean")  # type: ignore[arg-type]
