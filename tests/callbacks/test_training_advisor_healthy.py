"""Fits that train well, by their own metric, raise no alarm."""

import pytest
import torch

from tests.callbacks.advised import MARKS, fit_of
from tests.callbacks.healthy.declared import HEALTHY_FITS, load_all

load_all()
pytestmark = MARKS


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.full if one.full else ())
        for name, one in HEALTHY_FITS.items()
    ],
)
def test_healthy_fit_trains_well_without_alarm(name: str) -> None:
    torch.manual_seed(0)
    program = HEALTHY_FITS[name]
    made, metric = program.make()
    report = fit_of(made).report
    value = metric()
    assert program.has_learnt(value), value
    assert [one for one in report if one.severity != "hint"] == [], report
