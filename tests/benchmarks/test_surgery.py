"""What fusing costs, with planted costs."""

from typing import Any

import pytest
from torch import nn
from torchvision.models import resnet18

from benchmarks.surgery import coverage, paired
from tests.benchmarks.clock import Clock


def test_the_ratio_is_the_median_of_rounds_in_turns() -> None:
    noise = [40.0 if call in (4, 9) else 0.0 for call in range(100)]
    clock = Clock(drift=0.1, noise=noise)
    plain, fused = nn.Identity(), nn.Identity()
    cost: dict[Any, float] = {plain: 1e-3, fused: 1.5e-3}
    ratio = paired(lambda net: clock.pass_by(cost[net]), plain, fused, 9, clock)
    assert ratio == pytest.approx(1.5, rel=1e-3)


def test_what_is_served_is_counted_and_summed() -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(2), nn.ReLU6(), nn.BatchNorm2d(2), nn.Hardtanh())

    second = nn.Sequential(net(), nn.Dropout(), nn.LocalResponseNorm(2))
    third = resnet18()
    served, left = coverage([("a", "first", net()), ("b", "second", second), ("a", "third", third)])
    rows = list(zip(*(column.cells for column in served.columns), strict=True))
    assert rows == [
        ("a", "2", "22", "22", "18", "8", "1", "0"),
        ("b", "1", "2", "3", "1", "0", "1", "1"),
    ]
    total = [column.footer for column in served.columns]
    assert total == ["all", "3", "24", "25", "19", "8", "2", "1"]
    rows = list(zip(*(column.cells for column in left.columns), strict=True))
    assert rows == [
        ("2", "torch.nn.BatchNorm2d", "not folded: Hardtanh can't be fused"),
        ("1", "torch.nn.LocalResponseNorm", "no fused class is known for it"),
    ]


def test_an_error_is_raised() -> None:
    def act(net: nn.Module) -> None:
        raise LookupError("no such layer")

    with pytest.raises(LookupError):
        paired(act, nn.Identity(), nn.Identity(), 3, Clock())
