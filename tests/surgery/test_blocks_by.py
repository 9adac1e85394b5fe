"""Blocks that somebody has named, the table, and what is refused."""

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from lightning_practices.surgery import Block, blocks
from tests.surgery.test_blocks import Tied, assert_partition, mlp

pytestmark = pytest.mark.plain


def residual() -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = resnet18(weights=None)
    return model


# By names.


def test_names_take_what_is_below_them() -> None:
    model = residual()
    found = blocks(model, ["fc", "layer4.1", "layer4", ["layer3", "layer2"], ""])
    assert [(block.depth, block.name, block.modules) for block in found] == [
        (0, "fc", ("fc",)),
        (1, "layer4.1", ("layer4.1",)),
        (2, "layer4", ("layer4.0",)),
        (3, "layer3", ("layer2", "layer3")),
        (4, "rest", ("conv1", "bn1", "relu", "maxpool", "layer1", "avgpool")),
    ]
    assert_partition(model, found)


def test_a_parameter_and_a_module_without_any_can_be_named() -> None:
    model = mlp()
    found = blocks(model, [["8", "3"], "8.bias", ""])
    assert found[0].modules == ("3",)
    assert (found[0].parameters, found[1].parameters) == (("8.weight",), ("8.bias",))


def test_a_prefix_ends_at_a_dot() -> None:
    model = nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(11)])
    found = blocks(model, ["1", ""])
    assert found[0].parameters == ("1.weight",)
    assert len(found[1].parameters) == 10


def test_a_regular_expression() -> None:
    model = residual()
    found = blocks(model, r"(layer\d|fc)|conv1|bn1")
    assert [block.name for block in found] == ["fc", "layer4", "layer3", "layer2", "layer1",
                                               "bn1", "conv1"]  # fmt: skip
    assert found[1].modules == ("layer4",)
    assert [block.name for block in blocks(model, r"layer\d|fc|")] == [
        "fc", "layer4", "layer3", "layer2", "layer1", "rest"
    ]  # fmt: skip
    compiled: Any = torch.compile(model)
    assert [block.name for block in blocks(compiled, r"(fc)|(?:)")] == ["fc", "rest"]


def test_shared_ones_are_nearest_to_the_head_by_names_too() -> None:
    for by in (["head", "hidden"], r"hidden|head|words", ["head", ["words", "hidden"]]):
        found = blocks(Tied(), by)
        assert found.of("words.weight") == found[0]
        assert found.of("hidden.bias") == found[1]
        assert len(found) == 2
    found = blocks(Tied(), ["words", ["hidden", "head"]])  # wherever it comes first
    assert found[0].parameters == ("words.weight",)


# The table, and looking up.


def test_the_table() -> None:
    lines = str(blocks(mlp())).splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert cells == [
        ["0", "8", "7, 9", "10", "14.9%"],
        ["1", "4", "3, 5, 6", "28", "41.8%"],
        ["2", "1", "0, 2", "29", "43.3%"],
    ]
    assert repr(blocks(mlp())) == "Blocks('8', '4', '1')"


def test_looking_up() -> None:
    found = blocks(residual())
    assert found.of("layer4.1") == found.of("layer4.1.bn2") == found.of("layer4.1.bn2.bias")
    assert found.of("layer4.1") == found[1]
    assert found.of("bn1") == found.of("conv1") == found[9]
    assert found.of("avgpool") == found[0]
    with pytest.raises(ValueError, match=r"'layer4' is not in one block but in 2: 'layer4.1', 'la"):
        found.of("layer4")
    with pytest.raises(ValueError, match=r"called 'layer4.2'; near it: 'layer4.1'"):
        found.of("layer4.2")
    with pytest.raises(TypeError, match=r"numbered from the head, 0: .*blocks\(...\).of\('fc'\)"):
        found["fc"]  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="called 'zzz'; there are: 'fc'"):
        found.of("zzz")


def test_a_sequence_that_stays() -> None:
    found = blocks(residual())
    assert found[-1].depth == 9
    assert found[1:3] == (found[1], found[2])
    assert found[0] in found
    assert isinstance(found[0], Block)
    unchangeable: Any = found
    with pytest.raises(TypeError, match="does not support item assignment"):
        unchangeable[0] = found[1]
    with pytest.raises(AttributeError, match="cannot assign to field 'depth'"):
        unchangeable[0].depth = 3


# What is refused.


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (["fc", "layer5", ""], "called 'layer5'; near it: 'layer4'"),
        (["fc", "layer4"], "leaves out 'conv1.weight', .* and 40 more: name these too, or add ''"),
        (["fc", "fc", ""], "'fc' is in .* twice"),
        (["fc", "fc.weight", "fc.bias", ""], "'fc' of .* would be blocks without parameters"),
        (["fc", "relu", ""], "'relu' of .* would be blocks without parameters"),
        (["fc", "layer4", ["layer4.0", "layer4.1"], ""], "'layer4' of .* would be blocks without"),
        (r"fc|layer\d", "leaves out 'conv1.weight', 'bn1.weight', 'bn1.bias': name these too"),
        (r"layer(\d", "is no regular expression: missing"),
        (r"head", "'head' matches no parameter's name; there are: 'conv1.weight'"),
    ],
)
def test_names_that_do_not_fit(by: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blocks(residual(), by)


@pytest.mark.parametrize("by", [3, ["fc", 3], ["fc", []], [["fc", 3], ""], {"fc": 0}])
def test_no_names(by: Any) -> None:
    with pytest.raises(TypeError, match=r"has to (be|have)"):
        blocks(residual(), by)


def test_models_without_parameters_or_shapes() -> None:
    with pytest.raises(TypeError, match=r"model has to be a torch.nn.Module, but got 'resnet18'"):
        blocks("resnet18")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Sequential has no parameters"):
        blocks(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match=r"0.weight of Sequential has no shape yet \(Uninit"):
        blocks(nn.Sequential(nn.LazyLinear(2)))
