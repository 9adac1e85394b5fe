"""Arguments of averaging, and what it doesn't go with."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks import EarlyStopping, RecalibrateBatchNorm, WeightAveraging
from lightning_practices.surgery import recalibrate_batch_norm
from tests.callbacks.averaging import VALIDATION, Loader, Net, fit
from tests.callbacks.scripted import Scripted, same, saves, state_of, trainer_of


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "mean"}, "kind has to be 'ema' or 'swa', but got 'mean'"),
        ({"decay": 1.0}, "decay has to be a finite number, at least 0 and below 1, but got 1.0"),
        ({"decay": -0.1}, "decay has to be .* got -0.1"),
        ({"decay": "x"}, "decay has to be a finite number, .* got 'x'"),
        ({"kind": "swa", "decay": 0.9}, "with 'swa' all weights count alike"),
        ({"start": -1}, "start has to be a number of steps .* got -1"),
        ({"start": 1.0}, "start has to be .* below 1, but got 1.0"),
        ({"start": True}, "but got True"),
        ({"start": "0.5"}, "but got '0.5'"),
        ({"interval": "batch"}, "interval has to be 'step' or 'epoch', but got 'batch'"),
        ({"frequency": 0}, "frequency has to be a whole number from 1 on, but got 0"),
        ({"frequency": 0.5}, "frequency has to be a whole number from 1 on, but got 0.5"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        WeightAveraging(**arguments)


def test_defaults() -> None:
    ema, swa = WeightAveraging(), WeightAveraging("swa")
    assert (ema.decay, ema.interval, swa.decay, swa.interval) == (0.999, "step", None, "epoch")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (EMAWeightAveraging(), "WeightAveraging and EMAWeightAveraging would both"),
        (StochasticWeightAveraging(0.1), "and StochasticWeightAveraging would both"),
        (
            ModelCheckpoint(save_weights_only=True),
            "save_weights_only=True.* set save_weights_only=False",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_callbacks(other: Callback, message: str) -> None:
    trainer = trainer_of(WeightAveraging(), other)
    with pytest.raises(MisconfigurationException, match=message):
        trainer.fit(Net(), Loader(), VALIDATION)
    assert trainer.global_step == 0


def test_two_of_them() -> None:
    trainer = trainer_of()
    own = WeightAveraging()
    trainer.callbacks = [own, WeightAveraging("swa")]  # type: ignore[attr-defined]
    with pytest.raises(MisconfigurationException, match="would both give the module"):
        own.setup(trainer, Net(), "fit")


def test_early_stopping_that_keeps_nothing() -> None:
    module = Net()
    stopping = EarlyStopping("val_loss", patience=3, restore_best_weights=False)
    trainer = fit(module, WeightAveraging(decay=0.6), stopping, max_epochs=8)
    assert (trainer.current_epoch, stopping.best_step) == (5, 8)
    assert same(state_of(module), module.seen[20])


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies_whose_shards_are_their_own(strategy: Any) -> None:
    trainer = trainer_of()
    # As if it had a GPU and were installed: what is asked is only of which class it is.
    trainer._accelerator_connector.strategy = object.__new__(strategy)
    message = rf"under {strategy.__name__}, which .*: use ModelParallelStrategy"
    with pytest.raises(MisconfigurationException, match=message):
        WeightAveraging().setup(trainer, Net(), "fit")
    WeightAveraging().setup(trainer, Net(), "validate")


@pytest.mark.parametrize("options", [{"max_epochs": -1, "max_time": {"hours": 1}}], ids=str)
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_share_of_an_unknown_length(options: dict[str, Any], interval: Any) -> None:
    averaging = WeightAveraging(start=0.5, interval=interval)
    trainer = trainer_of(averaging, **options)
    message = rf"share of the fit, but how many {interval}s .* max_epochs is -1\): .* an int"
    with pytest.raises(MisconfigurationException, match=message):
        trainer.fit(Net(), Loader(), VALIDATION)


def test_a_module_without_forward_says_how_to_recompute_statistics() -> None:
    message = (
        r"WeightAveraging\('swa'\) runs .* but Scripted has no `forward`: .*Trainer\(callbacks="
    )
    with pytest.raises(MisconfigurationException, match=message):
        fit(Scripted(), WeightAveraging("swa"))
    fit(Scripted(), WeightAveraging())

    class Keyed(Net):
        @override
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch["x"], batch_idx)

    batches: Any = DataLoader([{"x": batch} for batch in Loader()], batch_size=None)  # type: ignore[arg-type]
    message = (
        r"WeightAveraging\('swa'\) runs .* of type dict.* a RecalibrateBatchNorm in the Trainer"
    )
    with pytest.raises(TypeError, match=message):
        trainer_of(WeightAveraging("swa")).fit(Keyed(), batches, VALIDATION)
    module, expected = Net(), Net()
    own = RecalibrateBatchNorm(lambda module, batch: module.net(batch * 2))
    fit(module, own, WeightAveraging("swa"))
    expected.load_state_dict(module.seen[16])
    recalibrate_batch_norm(expected, Loader(), forward=lambda m, batch: m(batch * 2))
    assert same(state_of(module), state_of(expected))


def test_a_warning_says_that_checkpoints_hold_other_statistics(tmp_path: Path) -> None:
    module, loaded = Net(), Net()
    with pytest.warns(
        UserWarning, match=r"validations, and thus ModelCheckpoint, use the averages"
    ):
        fit(module, WeightAveraging("swa"), saves(tmp_path))
    state = torch.load(tmp_path / "step=16.ckpt", weights_only=True)["state_dict"]
    assert not same(state_of(module), state)
    loaded.load_state_dict(state)
    recalibrate_batch_norm(loaded, Loader())  # as the warning says
    assert same(state_of(module), state_of(loaded))
    fit(Net(), WeightAveraging("ema"), saves(tmp_path / "ema"))
