"""Fits from checkpoints of callbacks and schedules that the resumed fit doesn't have."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from typing_extensions import override

from lightning_practices.callbacks import (
    LearningRateScheduler,
    ProgressiveUnfreezing,
    SkipNonFinite,
    WeightAveraging,
)
from lightning_practices.mixins import (
    FineTuningMixin,
    LearningRateScheduleMixin,
    WeightAveragingMixin,
)
from tests.callbacks.scripted import FILTERS, saves
from tests.callbacks.unfreezing import SCHEDULE, fit
from tests.callbacks.unfreezing import Net as Named

pytestmark = [
    *FILTERS,
    pytest.mark.filterwarnings("ignore:.*Please add the following callbacks"),
    pytest.mark.filterwarnings("ignore:the fit has 8 optimizer steps, and the phases"),
]


class Net(Named):
    @override
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        pass  # the groups have no names without ProgressiveUnfreezing


class Fine(FineTuningMixin, Net):
    pass


class Averaged(WeightAveragingMixin, Net):
    pass


class Scheduled(LearningRateScheduleMixin, Net):
    pass


class OfMine(ProgressiveUnfreezing):
    pass


class AverageOfMine(WeightAveraging):
    pass


def saved(folder: Path, *callbacks: Callback) -> Path:
    fit(Net(), *callbacks, saves(folder), max_epochs=2)
    return folder / "step=4.ckpt"


def warnings_of(module: Any, path: Path, *callbacks: Callback) -> list[str]:
    """Return the warnings of a fit that is resumed, with the schedule and averages or without."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, *callbacks, resume=path)
    texts = [str(one.message) for one in caught]
    return [text for text in texts if text.startswith("the checkpoint was saved with")]


@pytest.mark.parametrize("kind", [ProgressiveUnfreezing, OfMine])
def test_unfreezing(kind: type[ProgressiveUnfreezing], tmp_path: Path) -> None:
    path = saved(tmp_path, kind(SCHEDULE))
    runs: list[tuple[Any, list[Callback]]] = [
        (Net(), [SkipNonFinite()]),
        (Fine(fine_tuning=None), []),
        (Fine(fine_tuning=None), [SkipNonFinite()]),
    ]
    for module, callbacks in runs:
        with pytest.raises(MisconfigurationException, match="add ProgressiveUnfreezing, with"):
            fit(module, *callbacks, resume=path)
    assert not warnings_of(Net(), path, kind(SCHEDULE), SkipNonFinite())


def test_averages(tmp_path: Path) -> None:
    path = saved(tmp_path, AverageOfMine())
    message = "the checkpoint was saved with WeightAveraging, and this fit doesn't have it: train"
    runs: list[tuple[Any, list[Callback]]] = [
        (Net(), [SkipNonFinite(), LearningRateScheduler()]),
        (Averaged(weight_averaging=None), []),
        (Averaged(weight_averaging=None), [SkipNonFinite()]),
    ]
    for module, callbacks in runs:
        (text,) = warnings_of(module, path, *callbacks)
        assert text.startswith(message)
    assert not warnings_of(Averaged(), saved(tmp_path / "other", WeightAveraging()))
    assert not warnings_of(Net(), path, SkipNonFinite(), AverageOfMine())
    # Before the first average there is nothing to leave out.
    early = saved(tmp_path / "early", WeightAveraging(start=6))
    assert not warnings_of(Net(), early, SkipNonFinite())


def test_a_schedule(tmp_path: Path) -> None:
    path = saved(tmp_path, LearningRateScheduler())
    module = Scheduled(schedule=None)
    (text,) = warnings_of(module, path)
    assert "a schedule of the learning rate, and this fit has none" in text
    (optimizer,) = torch.load(path, weights_only=True)["optimizer_states"]
    rate = optimizer["param_groups"][0]["lr"]
    assert 0 < rate < 0.1
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == rate
    assert not warnings_of(Scheduled(), path)
    assert not warnings_of(Scheduled(schedule=None), path, LearningRateScheduler())
    assert not warnings_of(Scheduled(schedule=None), saved(tmp_path / "without"))
