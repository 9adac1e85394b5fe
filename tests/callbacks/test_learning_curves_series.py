"""Series: exact while they are short, and means over equally many values after that."""

import io
import math
import random

import pytest
import torch

from lightning_practices.callbacks._curves.series import MOST_BINS, History, Series


def noise(count: int) -> list[float]:
    """Return values of which each seventh is nan or infinite, a whole stretch too."""
    made = random.Random(0)
    odd = (math.nan, math.inf, -math.inf)
    values = [odd[t % 3] if t % 7 == 0 else made.gauss(0, 1) for t in range(count)]
    values[2000:2600] = [math.nan] * len(values[2000:2600])
    return values


def series_of(values: list[float]) -> Series:
    series = Series(stepwise=True)
    for i, value in enumerate(values):
        series.add(3 * i, value)
    return series


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 1003, 2000, 7001, 20_000])
def test_bins_are_of_equally_many(count: int) -> None:
    values = noise(count)
    series = series_of(values)
    width = series.width
    assert width == 2 ** max(0, math.ceil(math.log2((count + 1) / MOST_BINS)))
    assert len(series.bins) == math.ceil(count / width) < MOST_BINS
    for i, one in enumerate(series.bins):
        places = range(i * width, min((i + 1) * width, count))
        finite = [values[place] for place in places if math.isfinite(values[place])]
        assert (one.total, one.finite) == (len(places), len(finite))
        assert one.step == pytest.approx(3 * sum(places) / len(places), rel=1e-12)
        if finite:
            assert (one.low, one.high) == (min(finite), max(finite))
            assert one.mean == pytest.approx(sum(finite) / len(finite), rel=1e-9, abs=1e-12)
        else:
            assert all(map(math.isnan, one[1:4]))


@pytest.mark.parametrize("count", [1, 3, 5000])
def test_extremes_and_the_last_stay_exact(count: int) -> None:
    values = noise(count)
    series = series_of(values)
    finite = [(3 * i, value) for i, value in enumerate(values) if math.isfinite(value)]
    assert series.lowest == min(finite, key=lambda point: point[1], default=None)
    assert series.highest == max(finite, key=lambda point: point[1], default=None)
    assert series.not_finite == count - len(finite)
    assert series.last is not None
    assert repr(series.last.value) == repr(values[-1])


def test_the_first_of_equal_extremes_counts() -> None:
    series = series_of([2.0, 1.0, 1.0, 3.0, 3.0])
    assert (series.lowest, series.highest) == ((3, 1.0), (9, 3.0))


def test_the_same_again_is_no_value() -> None:
    series = Series()
    for step, value in [(0, 1.0), (0, 1.0), (0, 2.0), (4, 2.0)]:
        series.add(step, value)
    assert series.points() == [(0, 1.0), (0, 2.0), (4, 2.0)]


@pytest.mark.parametrize("count", [1, 3, 1500])
def test_a_checkpoint_holds_all_of_it(count: int) -> None:
    values = noise(4000)
    history = History()
    for i, value in enumerate(values[:count]):
        history.add("loss", 3 * i, value, stepwise=True)
    file = io.BytesIO()
    torch.save(history.state_dict(), file)
    assert len(file.getvalue()) < 60_000
    file.seek(0)
    loaded = History()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for i, value in enumerate(values[count:], start=count):
        history.add("loss", 3 * i, value)
        loaded.add("loss", 3 * i, value)
    expected, (got,) = series_of(values), loaded.series().values()
    for series in (*history.series().values(), got):
        assert repr(vars(series)) == repr(vars(expected))


def test_values_of_several_types_keep_their_order() -> None:
    kinds = [torch.float32, torch.float64, torch.bfloat16, torch.int64]
    history = History()
    for i in range(10_000):
        value = torch.tensor([i % 128], dtype=kinds[i % 4])
        history.add("abcde"[i % 5], i, value)
        value.fill_(-1)  # in place, as some metrics do
    assert sum(one.width == 4 for one in history.series().values()) == 5
    for place, one in enumerate(history.series().values()):
        assert [each.high for each in one.bins] == [
            max(i % 128 for i in range(start, min(start + 20, 10_000), 5))
            for start in range(place, 10_000, 20)
        ]
        assert one.last == (9995 + place, float((9995 + place) % 128))


def test_what_waits_is_bounded() -> None:
    history = History()
    for i in range(20_000):
        history.add("loss", i, float(i))
    assert len(history._pending) < 5000
    assert history.series()["loss"].last == (19_999, 19_999.0)
