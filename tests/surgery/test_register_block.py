"""Blocks of users' own, registered with a forward that folds."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices.nn import norm_activation
from lightning_practices.surgery import Replaced, fuse, register_block, unfuse
from lightning_practices.surgery._fuse import twins
from tests.surgery.conftest import Calls
from tests.surgery.models import everything

pytestmark = pytest.mark.plain


class Residual(nn.Module):
    """What a user may write."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.act = nn.SiLU()

    @override
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        y: Tensor = self.act(self.norm(self.conv(x)) + x)
        return y * scale


class Renamed(Residual):
    """A subclass without a forward of its own."""


class OwnForward(Residual):
    @override
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        y: Tensor = self.norm(x)
        return y * scale


def fused_forward(self: Any, x: Tensor, scale: float = 1.0) -> Tensor:
    return norm_activation(self.conv(x), self.norm, self.act, residual=x) * scale


@pytest.fixture
def _registered() -> Iterator[None]:
    register_block(Residual, fused_forward)
    yield
    twins._registered.clear()
    twins._of_subclasses.clear()


def images() -> Tensor:
    return torch.randn(2, 4, 5, 5, dtype=torch.float64)


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize("cls", [Residual, Renamed])
def test_registered_block_is_folded(cls: type[nn.Module], calls: Calls) -> None:
    net: Any = nn.Sequential(cls()).double()
    plain, x, attributes = copy.deepcopy(net), images(), dict(vars(net[0]))
    report = fuse(net)
    name = f"{__name__}.{cls.__name__}"
    assert report.replaced[0] == Replaced(("0",), name, f"{__name__}.fused_forward")
    assert report.skipped == []
    assert isinstance(net[0], cls)
    assert repr(net) == repr(plain)
    assert net.state_dict().keys() == plain.state_dict().keys()
    for each in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), net):
        assert type(each[0]) is type(net[0])
        torch.testing.assert_close(everything(each, x), everything(copy.deepcopy(plain), x))
    assert calls == [("silu", True)] * 3
    plain(x)  # once, as the fused one
    torch.testing.assert_close(net[0](x, scale=2.0), 2 * plain(x))
    assert len(unfuse(net).replaced) == 2
    assert type(net[0]) is cls
    assert vars(net[0]) == attributes


@pytest.mark.usefixtures("_registered")
def test_subclass_with_a_forward_of_its_own_is_left_alone() -> None:
    block = OwnForward()
    (left,) = fuse(block).skipped
    assert left.reason == f"not folded: {OwnForward.__name__} overrides forward"
    assert type(block) is OwnForward


@pytest.mark.usefixtures("_registered")
def test_hooks_run(calls: Calls) -> None:
    block, x = Residual().double(), images()
    plain = copy.deepcopy(block)
    fuse(block)
    for module in (block, plain):
        module.act.register_forward_hook(lambda module, args, y: 2 * y)
    torch.testing.assert_close(everything(block, x), everything(plain, x))
    assert calls == []


@pytest.mark.usefixtures("_registered")
def test_forward_that_the_class_gets_later(monkeypatch: pytest.MonkeyPatch, calls: Calls) -> None:
    block, x = Residual().double(), images()
    fuse(block)
    monkeypatch.setattr(Residual, "forward", lambda self, x: self.conv(x))
    torch.testing.assert_close(block(x), block.conv(x))
    assert calls == []


def test_pickle_where_it_is_not_registered_is_the_plain_block() -> None:
    register_block(Residual, fused_forward)
    block, x = Residual().double(), images()
    fuse(block)
    pickled = pickle.dumps(block)
    twins._registered.clear()
    plain = pickle.loads(pickled)
    assert type(plain) is Residual
    torch.testing.assert_close(everything(plain, x), everything(block, x))


def test_block_that_nobody_registered_is_named() -> None:
    block = Residual()
    (left,) = fuse(nn.Sequential(block)).skipped
    assert (left.names, left.cls) == (("0",), f"{__name__}.Residual")
    assert "no fused forward is known for its class, see surgery.register_block" in left.reason
    assert type(block) is Residual


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize(
    ("block", "forward", "error", "match"),
    [
        (Residual, fused_forward, ValueError, "Residual has a fused forward already"),
        (nn.BatchNorm2d, fused_forward, ValueError, "BatchNorm2d has a fused forward already"),
        (
            nn.ReLU(),
            fused_forward,
            TypeError,
            r"block has to be a class of torch.nn.Module, but got ReLU",
        ),
        (int, fused_forward, TypeError, "block has to be a class of torch.nn.Module"),
        (Renamed, None, TypeError, "forward has to be a function .* but got None"),
    ],
)
def test_wrong_arguments(block: Any, forward: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        register_block(block, forward)
