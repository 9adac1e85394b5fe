"""Averaged weights where steps are skipped."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from typing_extensions import override

from lightning_practices.callbacks import SkipNonFinite, WeightAveraging
from tests.callbacks.averaging import VALIDATION, Loader, Net, averaged
from tests.callbacks.scripted import FILTERS, same, saves, state_of, trainer_of

pytestmark = FILTERS


class Spoilt(Loader):
    """Batches of which some make gradients nan: by their number from the first."""

    def __init__(self, *spoilt: int) -> None:
        super().__init__()
        self.spoilt = spoilt
        self.total = 0

    @override
    def __iter__(self) -> Any:
        for batch in super().__iter__():
            self.total += 1
            yield batch * math.nan if self.total in self.spoilt else batch


class Unnormed(Net):
    """Without batch norm, whose statistics a nan spoils."""

    def __init__(self) -> None:
        super().__init__()
        del self.net[1]


@pytest.mark.parametrize("how", ["SkipNonFinite", "GradScaler"])
@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"decay": 0.6}, [1, 4, 5, 6, 7, 8]),
        ({"decay": 0.6, "frequency": 2}, [2, 4, 6, 8]),
        ({"decay": 0.6, "frequency": 3}, [3, 6]),
    ],
    ids=str,
)
def test_skipped_steps(how: str, arguments: dict[str, Any], steps: list[int]) -> None:
    module, averaging = Unnormed(), WeightAveraging(**arguments)
    callbacks: list[Callback] = [averaging]
    options: dict[str, Any] = {"max_epochs": 2}
    if how == "SkipNonFinite":
        callbacks.append(SkipNonFinite())
    else:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
        options["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler)]
    trainer = trainer_of(*callbacks, **options)
    trainer.fit(module, Spoilt(2, 3), VALIDATION)
    assert same(module.trained[1], module.trained[3])
    assert averaging.averaged == len(steps)
    expected = averaged([module.trained[s] for s in steps], 0.6, Unnormed())
    assert same(state_of(module), expected)


def test_a_point_in_time_at_which_nothing_has_changed() -> None:
    module, averaging = Unnormed(), WeightAveraging(decay=0.6, frequency=2)
    trainer = trainer_of(SkipNonFinite(), averaging, max_epochs=2)
    trainer.fit(module, Spoilt(3, 4), VALIDATION)
    assert averaging.averaged == 3
    expected = averaged([module.trained[s] for s in (2, 6, 8)], 0.6, Unnormed())
    assert same(state_of(module), expected)


def test_resumed_between_a_step_and_one_that_is_skipped(tmp_path: Path) -> None:
    states = []
    for spoilt, resume in ((Spoilt(4), None), (Spoilt(1), tmp_path / "step=3.ckpt")):
        module, averaging = Unnormed(), WeightAveraging(decay=0.6, frequency=2)
        callbacks: list[Callback] = [averaging, SkipNonFinite()]
        if resume is None:
            callbacks.append(saves(tmp_path, every_n_train_steps=3))
        trainer = trainer_of(*callbacks, max_epochs=2)
        trainer.fit(module, spoilt, VALIDATION, ckpt_path=resume)
        assert averaging.averaged == 4
        states.append(state_of(module))
    assert same(*states)
