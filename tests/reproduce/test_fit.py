"""The learning rate that a fit is given: chosen with another seed, and between two worse ones."""

import math

import pytest

from lightning_practices.reproduce import _fit


@pytest.mark.parametrize("best", [3e-4, 0.01, 0.3, 3.0])
def test_rates_are_tried_until_the_best_lies_between_others(best: float) -> None:
    tried: list[float] = []

    def loss_of(rate: float) -> float:
        tried.append(rate)
        return math.log(rate / best) ** 2

    chosen = _fit._lowest(loss_of, (0.003, 0.01, 0.03, 0.1))
    assert chosen == pytest.approx(best, rel=0.3)
    assert min(tried) < chosen < max(tried)
    assert len(tried) == len(set(tried))


def test_a_single_rate_is_taken_without_a_trial() -> None:
    assert _fit._lowest(lambda _: pytest.fail("no fit is needed"), (0.03,)) == 0.03


def test_where_no_rate_trains_the_search_ends() -> None:
    tried: list[float] = []

    def diverges(rate: float) -> float:
        tried.append(rate)
        return math.inf

    _fit._lowest(diverges, (0.1, 1.0))
    assert len(tried) == 2 + _fit._MOST_FURTHER
    assert min(tried) < 1e-5  # lower ones, as of a fit that diverges
