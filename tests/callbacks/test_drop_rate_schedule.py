"""Schedules of dropout rates: real fits, in which each forward notes the rate that it had."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    GradientAccumulationScheduler,
)
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader
from torchvision import ops
from typing_extensions import override

from lightning_practices.callbacks import DropRateSchedule
from lightning_practices.nn import Dropout
from tests.callbacks.dropping import (
    BATCHES,
    OWN,
    Endless,
    Late,
    Manual,
    Noting,
    fit,
    loader,
    near,
    trainer_of,
)
from tests.callbacks.scripted import FILTERS, At, fail, interrupt

pytestmark = [
    *FILTERS,
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`"),
]

# The rates that each forward sees.


@pytest.mark.parametrize(
    ("arguments", "options", "expected"),
    [
        pytest.param({}, {}, [step / 12 for step in range(12)], id="linear"),
        pytest.param(
            {"schedule": "cosine"},
            {},
            [(1 - math.cos(math.pi * step / 12)) / 2 for step in range(12)],
            id="cosine",
        ),
        pytest.param({"schedule": "early", "duration": 5}, {}, [1] * 5 + [0] * 7, id="early"),
        pytest.param({"schedule": "late", "duration": 0.25}, {}, [0] * 3 + [1] * 9, id="late"),
        pytest.param(
            {"schedule": "early_linear", "duration": 0.5},
            {},
            [1 - step / 6 for step in range(6)] + [0] * 6,
            id="early_linear",
        ),
        pytest.param(
            {"duration": 4}, {}, [0, 0.25, 0.5, 0.75] + [1] * 8, id="a number of steps"
        ),
        pytest.param({"duration": 48}, {}, [s / 48 for s in range(12)], id="more than the fit",
            marks=pytest.mark.filterwarnings("ignore:the fit has 12 steps, and the schedule"),
        ),
        pytest.param(
            {"interval": "epoch"}, {"max_epochs": 4},
            [epoch / 4 for epoch in range(4) for _ in range(BATCHES)], id="epochs",
        ),
        pytest.param(
            {"interval": "epoch", "schedule": "late", "duration": 1}, {},
            [0] * 6 + [1] * 6, id="a number of epochs",
        ),
        pytest.param({}, {"max_steps": 8}, [step / 8 for step in range(8)], id="max_steps"),
        pytest.param(
            {}, {"max_steps": -1, "max_epochs": 1}, [s / 6 for s in range(6)], id="no max_steps"
        ),
        pytest.param(
            {}, {"max_steps": 99, "max_epochs": 2}, [s / 12 for s in range(12)], id="both limits"
        ),
        pytest.param(
            {}, {"limit_train_batches": 0.5}, [s / 6 for s in range(6)], id="limit_train_batches"
        ),
        pytest.param({}, {"fast_dev_run": 3}, [0, 1 / 3, 2 / 3], id="fast_dev_run"),
        pytest.param(
            {}, {"accumulate_grad_batches": 2},
            [batch // 2 / 6 for batch in range(12)], id="accumulation",
        ),
        pytest.param(
            {}, {"accumulate_grad_batches": 4},
            [0, 0, 0, 0, 0.25, 0.25, 0.5, 0.5, 0.5, 0.5, 0.75, 0.75], id="a remainder",
        ),
        pytest.param({"duration": 4}, {"max_epochs": -1, "max_steps": 5},
            [0, 0.25, 0.5, 0.75, 1], id="no max_epochs",
        ),
    ],
)  # fmt: skip
def test_rates_by_hand(
    arguments: dict[str, Any], options: dict[str, Any], expected: list[float]
) -> None:
    module = Noting()
    fit(module, DropRateSchedule(**arguments), **options)
    assert module.factors == near(expected)
    assert module.rates() == list(OWN.values())


def test_an_accumulation_that_changes() -> None:
    module = Noting()
    trainer = fit(
        module, DropRateSchedule(), GradientAccumulationScheduler({1: 2, 2: 6}), max_epochs=3
    )
    assert trainer.global_step == 6 + 3 + 1
    steps = [*range(6), 6, 6, 7, 7, 8, 8, *[9] * 6]
    assert module.factors == near([step / 10 for step in steps])


def test_manual_optimization_counts_each_step() -> None:
    module = Manual()
    fit(module, DropRateSchedule(), max_steps=20, max_epochs=-1)
    steps = [step for _, step, _ in module.seen]
    assert steps == [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 18, 19]
    assert module.factors == near([step / 20 for step in steps])


def test_a_module_that_is_built_late() -> None:
    module = Late()
    fit(module, DropRateSchedule(), max_epochs=1)
    assert module.factors == near([s / 6 for s in range(6)])


def test_validation_in_between_finds_dropout_off() -> None:
    module = Noting()
    trainer_of(DropRateSchedule(), max_epochs=1, val_check_interval=3).fit(
        module, loader(), loader()
    )
    own, half = list(OWN.values()), [p / 3 for p in OWN.values()]
    expected = [own] * 2 + [half] * 6 + [[5 / 6 * p for p in OWN.values()]] * 6
    assert len(module.validated) == len(expected)  # two of them before training
    for rates, of_then in zip(module.validated, expected, strict=True):
        assert rates == near(of_then)


# Which layers.


def test_two_schedules_of_layers_apart() -> None:
    module = Noting()
    fit(
        module,
        DropRateSchedule("early", layers=ops.StochasticDepth, duration=2),
        DropRateSchedule("late", layers="net.[12]", duration=4),
        max_epochs=1,
    )
    early, late = [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1]
    expected = [[0.5 * b, 0.25 * b, 0.2 * a] for a, b in zip(early, late, strict=True)]
    assert [rates for _, _, rates in module.seen] == expected
    assert module.rates() == list(OWN.values())


def test_two_schedules_of_one_layer_are_refused() -> None:
    module = Noting()
    schedules = DropRateSchedule(layers=nn.Dropout), DropRateSchedule("cosine", layers="net.2")
    with pytest.raises(MisconfigurationException, match=r"would set the rate of 'net.2'"):
        fit(module, *schedules)
    assert not module.seen
    fit(module, DropRateSchedule(), max_epochs=1)  # nothing is left of the refused ones
    fit(module, schedules[0], max_epochs=1)


def test_layers_that_are_not_there_are_refused_before_anything_is_run() -> None:
    module = Noting()
    with pytest.raises(
        ValueError,
        match=r"layers='head.\*' matches no dropout .*; there are: 'net.1', a Dropout of 0.5",
    ):
        trainer_of(DropRateSchedule(layers="head.*")).fit(module, loader(), loader())
    assert not module.validated


def test_the_layers_of_timm() -> None:
    layers: Any = pytest.importorskip("timm.layers")
    network: Any = nn.Sequential(nn.Linear(4, 4), layers.DropPath(0.4), layers.DropPath(0.1))
    module, seen = Noting(network), []
    look = At(3, lambda trainer: seen.append([network[1].drop_prob, network[2].drop_prob]))
    fit(module, DropRateSchedule(layers=layers.DropPath), look, max_epochs=1)
    assert seen == [[0.2, 0.05]]
    assert [network[1].drop_prob, network[2].drop_prob] == [0.4, 0.1]


# Ends and beginnings.


class Save(Callback):
    """Save a checkpoint after a given step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step = step
        self.path = path

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("step", [3, 6, 8])
def test_resuming_is_as_if_never_stopped(tmp_path: Path, step: int, interval: Any) -> None:
    whole = Noting()
    path = tmp_path / "middle.ckpt"
    fit(whole, DropRateSchedule(interval=interval), Save(step, path))
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["state_dict"].keys() == {"net.0.weight", "net.0.bias"}
    assert not checkpoint["callbacks"]  # the schedule has no state

    resumed = Noting()
    fit(resumed, DropRateSchedule(interval=interval), resume=path)
    of_whole = {s: rates for _, s, rates in whole.seen}
    of_resumed = {s: rates for _, s, rates in resumed.seen}
    assert list(of_resumed) == list(range(step, 12))
    assert of_resumed == {s: of_whole[s] for s in range(step, 12)}
    assert resumed.rates() == list(OWN.values())


@pytest.mark.parametrize(("how", "raised"), [(fail, ValueError), (interrupt, SystemExit)])
def test_however_the_fit_ends_the_rates_are_given_back(how: Any, raised: type) -> None:
    module, schedule = Noting(), DropRateSchedule()
    with pytest.raises(raised):
        fit(module, schedule, At(4, how))
    assert len(module.factors) == 4
    assert module.rates() == list(OWN.values())
    module.seen.clear()
    fit(module, schedule, max_epochs=1)  # with the same callback, from the start
    assert module.factors == near([s / 6 for s in range(6)])


@pytest.mark.filterwarnings("ignore:the fit has 6 steps, and the schedule")
def test_a_second_fit_of_the_same_trainer_goes_on() -> None:
    module, schedule = Noting(), DropRateSchedule(duration=12)
    trainer = fit(module, schedule, max_epochs=1)
    assert module.rates() == list(OWN.values())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader())
    assert module.factors == near([s / 12 for s in range(12)])


def test_tests_and_predictions_find_the_own_rates() -> None:
    module = Noting()
    trainer = fit(module, DropRateSchedule(), max_epochs=1)
    trainer.validate(module, loader(), verbose=False)
    assert module.validated == [list(OWN.values())] * BATCHES


# Arguments and lengths.


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"schedule": "exp"}, "'linear', .* or 'late', but got 'exp'"),
        ({"interval": "batch"}, "has to be 'step' or 'epoch', but got 'batch'"),
        ({"duration": 0}, "a number of steps, an int from 1 on, .* but got 0$"),
        ({"duration": 1.5}, "but got 1.5$"),
        ({"duration": 0.0}, "but got 0.0$"),
        ({"duration": math.nan}, "but got nan$"),
        ({"duration": True}, "but got True$"),
        ({"duration": "all"}, "but got 'all'$"),
        ({"schedule": "early"}, "'early' a duration of the whole fit is no schedule"),
        ({"schedule": "late"}, "'late' a duration of the whole fit is no schedule"),
    ],
)
def test_arguments_that_are_refused(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises((ValueError, TypeError), match=error):
        DropRateSchedule(**arguments)


@pytest.mark.parametrize(
    ("interval", "module", "data", "options", "reason"),
    [
        ("step", Noting, loader, {"max_epochs": -1}, "max_epochs is -1"),
        ("epoch", Noting, loader, {"max_epochs": -1}, "max_epochs is -1"),
        ("step", Noting, loader, {"max_epochs": None, "max_time": {"hours": 1}}, "is -1"),
        ("step", Noting, lambda: DataLoader(Endless()), {}, "data has no length"),
        ("step", Manual, loader, {}, "under manual optimization the module decides"),
    ],
)
def test_lengths_that_are_not_known(
    interval: Any, module: Any, data: Any, options: dict[str, Any], reason: str
) -> None:
    trainer = trainer_of(DropRateSchedule(interval=interval), **options)
    with pytest.raises(MisconfigurationException, match=f"{reason}.*{interval}s, an int"):
        trainer.fit(module(), data())


def test_data_without_a_length() -> None:
    module = Noting()
    data = DataLoader(Endless(), batch_size=4)
    trainer_of(DropRateSchedule(), max_steps=8, max_epochs=-1).fit(module, data)
    assert module.factors == near([s / 8 for s in range(8)])
    module.seen.clear()
    trainer_of(DropRateSchedule(interval="epoch")).fit(module, data)
    assert module.factors == [0] * 6 + [0.5] * 6


# Beside others.


def logged(folder: Path, name: str) -> dict[int, float]:
    lines = (folder / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    names, *rows = [line.split(",") for line in lines]
    found = [dict(zip(names, row, strict=True)) for row in rows]
    return {int(row["step"]): float(row[name]) for row in found if row.get(name)}


def test_the_factors_are_logged(tmp_path: Path) -> None:
    module = Noting()
    fit(
        module,
        DropRateSchedule(layers=nn.Dropout),
        DropRateSchedule("early", layers="net.3", duration=7),
        logger=CSVLogger(tmp_path),
        log_every_n_steps=4,
    )
    assert logged(tmp_path, "drop_rate_factor") == pytest.approx(
        {3: 3 / 12, 7: 7 / 12, 11: 11 / 12}, rel=1e-6
    )
    assert logged(tmp_path, "drop_rate_factor-1") == {3: 1, 7: 0, 11: 0}


def test_a_compiled_module_is_not_compiled_again() -> None:
    torch.compiler.reset()
    network = nn.Sequential(nn.Linear(4, 4), Dropout(0.5), Dropout(0.25), Dropout(0.2))
    compiled: Any = torch.compile(network, backend="aot_eager", fullgraph=True)
    module = Noting(compiled)

    class Compiled(Callback):
        """Let nothing be compiled after the first step."""

        @override
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            torch.compiler.set_stance("fail_on_recompile")

    with torch.compiler.set_stance("default"):  # given back at the end, whatever is set within
        fit(module, DropRateSchedule(), Compiled())
    assert module.factors == near([s / 12 for s in range(12)])


def test_averaged_weights_are_the_same(tmp_path: Path) -> None:
    averages = []
    for kind in (nn.Dropout, Dropout):
        torch.manual_seed(0)
        layers = (nn.BatchNorm1d(4), kind(1e-12), nn.BatchNorm1d(4))
        module = Noting(nn.Sequential(nn.Linear(4, 4), *layers))
        fit(module, EMAWeightAveraging(decay=0.5), DropRateSchedule(), max_epochs=1)
        averages.append(module.state_dict())
    for name, value in averages[0].items():
        assert torch.equal(averages[1][name], value), name
