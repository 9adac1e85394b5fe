"""Schedules of the learning rate: their equations, torch's own, and what those do otherwise."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from lightning_practices.schedules import (
    LearningRateSchedule,
    cosine_decay,
    exponential_decay,
    learning_rate_factor,
    linear_warmup,
    one_cycle,
    plateau,
    power_decay,
    step_decay,
    warmed_up,
)

RATES = (0.1, 0.003)


def optimizer_of(*rates: float) -> SGD:
    return SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates], lr=1.0)


def rates_of(optimizer: SGD) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def run(optimizer: SGD, scheduler: Any, steps: int) -> list[list[float]]:
    """Return the rates with which each step is made."""
    seen = []
    for _ in range(steps):
        seen.append(rates_of(optimizer))
        optimizer.step()
        scheduler.step()
    return seen


def near(rates: Any) -> Any:
    return pytest.approx(rates, rel=1e-13, abs=1e-17)


# Equations.


@pytest.mark.parametrize("t", [0, 1, 7, 20, 21, 400])
def test_the_equations_of_the_lecture(t: int) -> None:
    assert power_decay(20)(t) == near(1 / (1 + t / 20))
    assert power_decay(20, 0.5)(t) == near(1 / math.sqrt(1 + t / 20))
    assert exponential_decay(20)(t) == near(0.1 ** (t / 20))
    assert step_decay(20, 2)(t) == near(0.5 ** math.floor(t / 20))


def test_what_the_lecture_says_of_them() -> None:
    power, exponential = power_decay(30, 2), exponential_decay(30)
    for k in range(5):
        assert power((k + 1) * 30) / power(k * 30) == near((1 - 1 / (k + 2)) ** 2)
        assert exponential((k + 1) * 30) / exponential(k * 30) == near(0.1)


@pytest.mark.parametrize(
    ("factor", "make"),
    [
        pytest.param(step_decay(3), lambda o: StepLR(o, 3, 0.1), id="step"),
        pytest.param(exponential_decay(7), lambda o: ExponentialLR(o, 0.1 ** (1 / 7)), id="exp"),
        # Its T_max is the step after the last.
        pytest.param(cosine_decay(20), lambda o: CosineAnnealingLR(o, 19), id="cosine"),
        pytest.param(
            one_cycle(20, 4e-6), lambda o: OneCycleLR(o, list(RATES), total_steps=20), id="cycle"
        ),
    ],
)
def test_the_rates_are_those_of_torchs_own(factor: Any, make: Callable[[SGD], Any]) -> None:
    theirs, ours = optimizer_of(*RATES), optimizer_of(*RATES)
    expected = run(theirs, make(theirs), 20)
    for got, wanted in zip(run(ours, LambdaLR(ours, factor), 20), expected, strict=True):
        assert got == pytest.approx(wanted, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("make", [cosine_decay, one_cycle])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 19, 100])
def test_the_last_step_has_the_floor_and_one_the_whole_rate(make: Any, steps: int) -> None:
    factor = make(steps, 0.01)
    factors = [factor(t) for t in range(steps)]
    assert max(factors) == 1.0
    assert factors.count(1.0) == 1
    assert steps == 1 or factors[-1] == 0.01 == min(factors)
    assert steps == 1 or factor(steps) == factor(10**9) == 0.01  # and it stays


def test_one_cycle_rises_and_falls() -> None:
    factors = [one_cycle(100)(t) for t in range(100)]
    assert factors[0] == 1 / 25
    assert factors[29] == 1.0
    assert factors[:30] == sorted(factors[:30])
    assert factors[29:] == sorted(factors[29:], reverse=True)


# Warmup.


@pytest.mark.parametrize(
    "factor",
    [power_decay(9), exponential_decay(9), step_decay(9), cosine_decay(9, 0.1), one_cycle(9)],
    ids=["power", "exponential", "step", "cosine", "one cycle"],
)
def test_warmup_comes_before_any_of_them(factor: Callable[[int], float]) -> None:
    warm = warmed_up(factor, 4)
    rise = [factor(0) * (t + 1) / 5 for t in range(4)]
    assert [warm(t) for t in range(24)] == near(rise + [factor(t) for t in range(20)])
    assert warm(4) == factor(0)
    cold = warmed_up(factor, 0)
    assert [cold(t) for t in range(20)] == [factor(t) for t in range(20)]


@pytest.mark.parametrize(
    ("schedule", "same"),
    [
        ("power", power_decay(20, 2.0)),
        ("exponential", exponential_decay(20)),
        ("step", step_decay(20, 4.0)),
        ("cosine", cosine_decay(17, 0.2)),
        ("one_cycle", one_cycle(17, 0.2)),
    ],
)
def test_by_name(schedule: Any, same: Callable[[int], float]) -> None:
    factor = learning_rate_factor(
        schedule, 20, warmup_steps=3, floor=0.2, exponent=2.0, divisor=4.0
    )
    expected = warmed_up(same, 3)
    assert [factor(t) for t in range(50)] == [expected(t) for t in range(50)]


def test_a_warmup_longer_than_the_fit_is_only_that() -> None:
    factor = learning_rate_factor("cosine", 3, warmup_steps=7)
    assert [factor(t) for t in range(3)] == near([1 / 8, 2 / 8, 3 / 8])


# As torch's schedulers.


def test_groups_keep_their_ratios_and_a_resumed_run_its_rates() -> None:
    factor = learning_rate_factor("cosine", 30, warmup_steps=4, floor=0.05)
    optimizer = optimizer_of(*RATES)
    scheduler = LambdaLR(optimizer, factor)
    first = run(optimizer, scheduler, 11)
    state = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    rest = run(optimizer, scheduler, 19)
    for rates, t in zip(first + rest, range(30), strict=True):
        assert rates == near([rate * factor(t) for rate in RATES])
    assert rest[-1] == near([rate * 0.05 for rate in RATES])

    resumed = optimizer_of(*RATES)
    scheduler = LambdaLR(resumed, factor)
    resumed.load_state_dict(state[0])
    scheduler.load_state_dict(state[1])
    assert run(resumed, scheduler, 19) == rest


def test_where_torchs_own_are_wrong() -> None:
    """The reasons that the module's docstring gives for LambdaLR."""
    cosine = optimizer_of(0.1, 0.02)
    rates = run(cosine, CosineAnnealingLR(cosine, 4, eta_min=0.01), 6)
    assert rates[3][0] > 0.02  # the last of four steps
    assert rates[4] == near([0.01, 0.01])  # one rate for both
    assert rates[5][0] > 0.02  # rises again

    cycle = optimizer_of(0.1)
    scheduler = OneCycleLR(cycle, 0.1, total_steps=3)
    assert rates_of(cycle)[0] > 0.099  # 0.004 is where it ought to start
    old = scheduler.state_dict()
    longer = OneCycleLR(cycle, 0.1, total_steps=50)
    longer.load_state_dict(old)
    with pytest.raises(ValueError, match="number of total steps is 3"):
        run(cycle, longer, 5)

    both = optimizer_of(0.1)
    warm = linear_warmup(both, 3)
    with pytest.raises(ValueError, match="SequentialLR does not support `ReduceLROnPlateau`"):
        SequentialLR(both, [warm, ReduceLROnPlateau(both)], [3])
    both = optimizer_of(0.1)
    sequence = [linear_warmup(both, 3), OneCycleLR(both, 0.1, total_steps=20)]
    rates = run(both, SequentialLR(both, sequence, [3]), 5)
    assert max(rates[:3])[0] < 0.1 / 25
    assert rates[3][0] == pytest.approx(0.004)


# Performance.


def test_plateau_divides_after_patience() -> None:
    optimizer = optimizer_of(*RATES)
    scheduler = plateau(optimizer, divisor=4, patience=2, floor=1 / 64)
    seen = []
    for value in [3.0, 2.0, 2.0, 2.5, 1.999, 2.0, 2.0, *[math.nan] * 9]:
        scheduler.step(value)
        seen.append(rates_of(optimizer))
    powers = [0] * 7 + [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert seen == [near([rate * 4.0**-k for rate in RATES]) for k in powers]
    for _ in range(9):
        scheduler.step(5.0)
    assert rates_of(optimizer) == near([rate / 64 for rate in RATES])


def test_plateau_of_a_metric_that_is_to_rise() -> None:
    optimizer = optimizer_of(1.0)
    scheduler = plateau(optimizer, mode="max", patience=0)
    for value in [0.1, 0.2, 0.3]:
        scheduler.step(value)
    assert rates_of(optimizer) == [1.0]
    scheduler.step(0.3)
    assert rates_of(optimizer) == near([0.1])


def test_plateau_where_torchs_defaults_see_nothing() -> None:
    """A negative metric that worsens slowly, and a rate that is tiny."""
    worsening = [-1 + k * 5e-5 for k in range(6)]
    for make, expected in ((ReduceLROnPlateau, 1e-8), (plateau, 1e-13)):
        optimizer = optimizer_of(1e-8)
        scheduler = make(optimizer, patience=0)
        for value in worsening:
            scheduler.step(value)
        assert rates_of(optimizer) == near([expected])


def test_warmup_before_a_plateau() -> None:
    optimizer = optimizer_of(*RATES)
    warm, divided = linear_warmup(optimizer, 4), plateau(optimizer, patience=0, floor=0.05)
    assert run(optimizer, warm, 4) == [
        near([rate * (t + 1) / 5 for rate in RATES]) for t in range(4)
    ]
    assert rates_of(optimizer) == near(list(RATES))
    divided.step(1.0)
    divided.step(1.0)
    for rates in run(optimizer, warm, 3):  # which leaves alone what was divided
        assert rates == near([rate / 10 for rate in RATES])
    divided.step(1.0)
    assert rates_of(optimizer) == near([rate * 0.05 for rate in RATES])  # of the full rate


# The object.


@pytest.mark.parametrize("name", ["power", "exponential", "step", "cosine", "one_cycle"])
def test_the_object_in_any_loop(name: Any) -> None:
    arguments: Any = {"warmup_steps": 3, "floor": 0.125, "exponent": 2.0, "divisor": 3.0}
    schedule = LearningRateSchedule(name, steps=10, **arguments)
    factor = learning_rate_factor(name, 10, **arguments)
    assert [schedule.factor()(t) for t in range(12)] == [factor(t) for t in range(12)]
    optimizer = optimizer_of(*RATES)
    (scheduler,) = schedule.schedulers(optimizer, 99)  # its own steps count
    rates = [near([rate * factor(t) for rate in RATES]) for t in range(12)]
    assert run(optimizer, scheduler, 12) == rates
    resumed = optimizer_of(*RATES)
    (scheduler,) = schedule.schedulers(resumed, done=5)
    assert run(resumed, scheduler, 7) == rates[5:]


def test_the_object_of_a_plateau_and_of_a_fit_without_a_length() -> None:
    schedule = LearningRateSchedule("plateau", warmup_steps=1, divisor=4, patience=0)
    optimizer = optimizer_of(1.0)
    warmup, divided = schedule.schedulers(optimizer, mode="max")
    assert isinstance(divided, ReduceLROnPlateau)
    assert run(optimizer, warmup, 2) == [near([0.5]), near([1.0])]
    for metric in (1.0, 2.0, 1.5):
        divided.step(metric)
    assert rates_of(optimizer) == near([0.25])
    with pytest.raises(ValueError, match="'plateau' depends on a metric"):
        schedule.factor(10)
    with pytest.raises(ValueError, match="'cosine' depends on the number of steps"):
        LearningRateSchedule("cosine").schedulers(optimizer)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"name": "cos"}, "has to be 'power', .* or 'plateau', but got 'cos'"),
        (
            {"name": "power"},
            r"'power' needs steps.*: give LearningRateSchedule\(\"power\", steps=...\)",
        ),
        ({"warmup_steps": -1}, "warmup_steps .* got -1"),
        ({"warmup_steps": 1.5}, "warmup_steps .* got 1.5"),
        ({"name": "plateau", "exponent": "2"}, "exponent .* got '2'"),
        ({"steps": 0}, "steps .* got 0"),
        ({"floor": 2.0}, "floor .* got 2.0"),
        ({"name": "plateau", "patience": -1}, "got -1"),
        ({"name": "plateau", "warmup_steps": -1}, "got -1"),
    ],
)
def test_bad_arguments_of_the_object(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        LearningRateSchedule(**arguments)


def test_the_object_is_shown_in_one_line() -> None:
    assert repr(LearningRateSchedule()) == "LearningRateSchedule('cosine')"
    schedule = LearningRateSchedule("step", steps=torch.tensor(9), divisor=2)  # type: ignore[arg-type]
    assert repr(schedule) == "LearningRateSchedule('step', steps=9, divisor=2.0)"


# Arguments.


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: power_decay(0), "steps has to be a whole number from 1 on, but got 0"),
        (lambda: power_decay(5, 0), "exponent has to be a finite number, above 0, but got 0"),
        (lambda: power_decay(5, math.nan), "exponent .* got nan"),
        (lambda: exponential_decay(2.5), "steps .* got 2.5"),  # type: ignore[arg-type]
        (lambda: step_decay(True), "steps .* got True"),
        (lambda: step_decay(5, 1.0), "divisor has to be a finite number, above 1, but got 1.0"),
        (lambda: cosine_decay(0), "steps .* got 0"),
        (
            lambda: cosine_decay(5, 1.5),
            "floor has to be a number between 0 and 1, but got 1.5",
        ),
        (lambda: one_cycle(5, -0.1), "floor .* got -0.1"),
        (lambda: warmed_up(cosine_decay(5), -1), "steps .* from 0 on, but got -1"),
        (lambda: linear_warmup(optimizer_of(1.0), -1), "steps .* got -1"),
        (
            lambda: learning_rate_factor("cos", 5),  # type: ignore[arg-type]
            "has to be 'power', .* or 'one_cycle', but got 'cos'",
        ),
        (lambda: learning_rate_factor("cosine", 0), "steps .* got 0"),
        (lambda: learning_rate_factor("cosine", 5, warmup_steps=0.5), "warmup_steps .* 0.5"),  # type: ignore[arg-type]
        (lambda: plateau(optimizer_of(1.0), mode="low"), "'min' or 'max', but got 'low'"),  # type: ignore[arg-type]
        (lambda: plateau(optimizer_of(1.0), patience=-1), "patience .* got -1"),
        (lambda: plateau(optimizer_of(1.0), divisor=0.1), "divisor .* got 0.1"),
        (lambda: plateau(optimizer_of(1.0), floor=2), "floor .* got 2"),
    ],
)
def test_bad_arguments(make: Callable[[], object], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        make()
