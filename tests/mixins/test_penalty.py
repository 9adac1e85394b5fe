"""Penalties by subclassing."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from typing_extensions import override

from lightning_practices.callbacks import Penalty
from lightning_practices.mixins import GradientClippingMixin, PenaltyMixin
from tests.callbacks.clipping import Net, Noted, fit, loader
from tests.callbacks.scripted import FILTERS, same, state_of

pytestmark = FILTERS

SETTINGS: list[dict[str, Any]] = [
    {"l1": 0.1, "l2": 0.3},
    {"l1": 0.1, "proximal": True},
    {"l2": 0.3, "exclude": ("bias", "net.0.*")},
]


class Penalised(PenaltyMixin, Net):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_does_what_the_callback_does(settings: dict[str, Any]) -> None:
    module, logger = Penalised(penalty=Penalty(**settings)), Noted()
    fit(module, logger=logger)
    plain, other = Net(), Noted()
    fit(plain, Penalty(**settings), logger=other)
    assert same(state_of(module), state_of(plain))
    assert logger.steps == other.steps
    bare = Net()
    fit(bare)
    assert not same(state_of(bare), state_of(plain))


def test_with_clipping_of_either_kind() -> None:
    class Both(GradientClippingMixin, PenaltyMixin, Net):
        pass

    class Reversed(PenaltyMixin, GradientClippingMixin, Net):
        pass

    states = []
    for kind in (Both, Reversed):
        both = kind(penalty=Penalty(l2=0.3), gradient_clipping=2.0)
        fit(both)
        states.append(state_of(both))
    module = Penalised(penalty=Penalty(l2=0.3))
    fit(module, gradient_clip_val=2.0)
    assert same(states[0], states[1])
    for name, value in state_of(module).items():
        assert value.allclose(states[0][name], rtol=1e-5, atol=1e-7)


def test_it_replaces_the_trainers_callback_and_lasts() -> None:
    module = Penalised(penalty=Penalty(l2=0.3))
    trainer = fit(module, Penalty(l2=10.0), max_epochs=1)
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    assert sum(isinstance(callback, Penalty) for callback in callbacks) == 1
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader())
    plain = Net()
    trainer = fit(plain, Penalty(l2=0.3), max_epochs=1)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(plain, loader())
    assert same(state_of(module), state_of(plain))


def test_configure_callbacks() -> None:
    class Base(Net):
        @override
        def configure_callbacks(self) -> Any:
            return Timer({"hours": 1})

    class Both(PenaltyMixin, Base):
        pass

    made = Both(penalty=Penalty(l2=0.1))
    timer, penalty = made.configure_callbacks()
    assert isinstance(timer, Timer)
    assert isinstance(penalty, Penalty)
    assert made.configure_callbacks()[1] is made.configure_callbacks()[1]


def test_hyperparameters_and_load_from_checkpoint(tmp_path: Path) -> None:
    penalty = Penalty(l1=0.1, l2=0.3, proximal=True)
    fit(module := Penalised(penalty=penalty), ModelCheckpoint(tmp_path, "net"))
    with pytest.warns(UserWarning, match="leaves out penalty of Penalised"):
        loaded = Penalised.load_from_checkpoint(tmp_path / "net.ckpt")
    assert loaded.penalty is None
    loaded = Penalised.load_from_checkpoint(tmp_path / "net.ckpt", penalty=penalty)
    assert loaded.penalty is not None
    fit(loaded)
    fit(module)
    assert same(state_of(loaded), state_of(module))


def test_bad_arguments_and_the_twin_package() -> None:
    with pytest.raises(TypeError, match=r"penalty has to be .*\.Penalty, None, but got 0.1"):
        Penalised(penalty=0.1)
