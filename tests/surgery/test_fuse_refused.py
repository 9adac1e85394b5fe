"""Layers and blocks of users whose own attributes a fused class would read or hide."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock
from typing_extensions import override

from lightning_practices.surgery import fuse, register_block, unfuse
from tests.surgery.models import everything


class Activated(nn.BatchNorm2d):
    """A norm with an attribute that means something else to its owner."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.activation = nn.ReLU()  # for a caller to apply


class Helper(nn.BatchNorm2d):
    def normalise(self, x: Tensor) -> Tensor:
        return x


class Rated(nn.Dropout):
    def __init__(self, p: float) -> None:
        super().__init__(p)
        self.rate = 2 * p


class Folding(BasicBlock):  # type: ignore[misc]  # untyped
    def folds(self) -> str:
        return "a map"


class Reversed(nn.Sequential):
    @override
    def __iter__(self) -> Iterator[nn.Module]:
        return iter(reversed(list(self._modules.values())))


class Doubled(nn.InstanceNorm2d):
    @override
    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        doubled: Tensor = super()._apply_instance_norm(input) * 2
        return doubled


def with_attribute(name: str, value: Any) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(4)
    setattr(layer, name, value)
    return layer


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "activation of an instance": (lambda: with_attribute("activation", "relu"), "'activation'"),
    "virtual_batch_size": (lambda: with_attribute("virtual_batch_size", 2), "'virtual_batch_size'"),
    "activation of a subclass": (lambda: Activated(4), "'activation'"),
    "method of a norm": (lambda: Helper(4), "'normalise'"),
    "method of a block": (lambda: Folding(4, 4), "'folds'"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_users_attribute_is_not_taken_for_an_option(name: str) -> None:
    make, reason = MODELS[name]
    plain = make().double()
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    assert any(reason in skipped.reason for skipped in report.skipped)
    x = torch.randn(6, 4, 5, 5, dtype=torch.float64)
    for training in (True, False):
        torch.testing.assert_close(
            everything(fused.train(training), x), everything(plain.train(training), x)
        )


def test_a_users_rate_stays() -> None:
    layer = Rated(0.25)
    assert fuse(layer).skipped
    torch.manual_seed(0)
    dropped = layer(torch.ones(1000))
    torch.manual_seed(0)
    assert torch.equal(dropped, nn.Dropout(0.25)(torch.ones(1000)))
    unfuse(layer)
    assert layer.rate == 0.5


def test_a_sequential_with_another_order_is_left_alone() -> None:
    plain = Reversed(nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4)).double()
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    assert not report.folded
    assert any("overrides __iter__" in skipped.reason for skipped in report.skipped)
    x = torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(everything(fused, x), everything(plain, x))


def test_an_instance_norm_with_its_own_norm_is_not_folded() -> None:
    plain = nn.Sequential(Doubled(4), nn.ReLU())
    fused = copy.deepcopy(plain)
    fuse(fused)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(fused(x), plain(x))


def test_a_class_without_a_forward_is_not_registered() -> None:
    with pytest.raises(ValueError, match="block must have a forward, but Module has none"):
        register_block(nn.Module, lambda self, x: x)
