"""The picture of the schedules, drawn as a user draws it, and what is on it."""

from pathlib import Path

import pytest

from examples import schedules
from tests.examples.scripts import assert_like_the_committed, run_main


@pytest.fixture(scope="module")
def made() -> schedules.Rates:
    return schedules.make_rates()


def test_each_schedule_starts_with_the_warmup(made: schedules.Rates) -> None:
    for name, rates in made.rates.items():
        assert len(rates) == schedules.STEPS
        start = schedules.RATE / 25 if name == "one_cycle" else schedules.RATE
        warmup = schedules.WARMUP
        expected = [start * (t + 1) / (warmup + 1) for t in range(warmup + 1)]
        assert rates[: warmup + 1] == pytest.approx(expected, rel=1e-12)
        assert max(rates) == pytest.approx(schedules.RATE, rel=1e-12)


def test_where_each_of_them_ends(made: schedules.Rates) -> None:
    left = schedules.STEPS - 1 - schedules.WARMUP
    expected = {
        "power": 1 / (1 + left / schedules.SCALE),
        "exponential": 0.1 ** (left / schedules.SCALE),
        "step": 0.1**3,
        "cosine": 0.0,
        "one_cycle": 0.0,
        "plateau": 0.1,
    }
    ends = {name: rates[-1] / schedules.RATE for name, rates in made.rates.items()}
    assert ends == pytest.approx(expected, rel=1e-12)


def test_the_plateau_divides_where_the_metric_stalls(made: schedules.Rates) -> None:
    rates = made.rates["plateau"]
    (divided,) = (t for t in range(schedules.WARMUP + 1, len(rates)) if rates[t] < rates[t - 1])
    checks = divided // schedules.CHECK
    assert divided == checks * schedules.CHECK
    # The level at which gradients with noise of variance 1 hold a weight: rate / (2 - rate).
    stalled = made.metric[checks - schedules.PATIENCE : checks]
    level = schedules.RATE / (2 - schedules.RATE)
    assert stalled == pytest.approx([level] * len(stalled), rel=0.2)
    assert min(stalled) >= min(made.metric[:checks])
    assert made.metric[-1] < level / 5


def test_the_picture_is_drawn_where_it_is_told(
    made: schedules.Rates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "new" / "schedules.png"
    monkeypatch.setattr(schedules, "make_rates", lambda: made)
    run_main(schedules, "--out", out)
    assert capsys.readouterr().out == f"Wrote {out}\n"
    assert_like_the_committed(out, schedules)
