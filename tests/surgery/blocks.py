"""A block for any forward, and what a fold may not change of it."""

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import nn

from lightning_practices.surgery import Report, fuse, unfuse
from tests.surgery.models import everything

Calls = list[tuple[str, bool]]
Forward = Callable[..., Any]


class Block(nn.Module):
    """Has layers for all the forwards below."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.act, self.identity = nn.ReLU(inplace=True), nn.Identity()
        self.silu, self.gelu = nn.SiLU(), nn.GELU(approximate="tanh")
        self.layers = nn.ModuleList([nn.ModuleDict({"conv": nn.Conv2d(4, 4, 1)}), nn.ReLU()])
        self.drop, self.scale = nn.Dropout(0.5), nn.Parameter(torch.ones(1))
        self.flag, self.rate, self.items = True, 0.3, [1]
        self.register_buffer("count", torch.zeros(()))


def make(forward: Forward) -> Any:
    """Return a block with that forward, in float64."""
    return type("Made", (Block,), {"forward": forward, "__module__": forward.__module__})().double()


def check(block: Any, x: Any = None) -> Report:
    """Compare the block, fused, with itself before, in both modes."""
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64) if x is None else x
    plain = copy.deepcopy(block)
    before = {name: list(vars(module)) for name, module in block.named_modules()}
    generators = random.getstate(), str(numpy.random.get_state()), torch.get_rng_state()
    report = fuse(block)
    assert random.getstate() == generators[0]
    assert str(numpy.random.get_state()) == generators[1]
    assert torch.equal(torch.get_rng_state(), generators[2])
    marks = {"_fused_from"}
    for name, module in block.named_modules():
        assert [key for key in vars(module) if key not in marks] == before[name]
    assert "__getattribute__" not in vars(nn.Module)
    for training in (True, False):
        actual = everything(block.train(training), x)
        torch.testing.assert_close(actual, everything(plain.train(training), x))
    unfuse(block)
    assert type(block) is type(plain)
    return report


def reasons(report: Report) -> list[str]:
    return [left.reason.removeprefix("not folded: ") for left in report.skipped]
