import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import ops
from torchvision.models import ConvNeXt
from torchvision.models.convnext import CNBlockConfig
from typing_extensions import override

from lightning_practices.nn import Dropout
from lightning_practices.schedules import DropRate, drop_rate_factor


class DropPath(nn.Module):
    """As many a repository has it."""

    def __init__(self, drop_prob: float | None) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x


class Block(nn.Module):
    """Keeps the rate for its ``repr``; its child drops."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_prob = 0.3
        self.p = 0.7
        self.drop_path = DropPath(0.3)


def every_kind() -> dict[str, nn.Module]:
    return {
        "dropout": nn.Dropout(0.5),
        "dropout1d": nn.Dropout1d(0.4),
        "dropout2d": nn.Dropout2d(0.3),
        "dropout3d": nn.Dropout3d(0.2),
        "alpha": nn.AlphaDropout(0.1),
        "feature_alpha": nn.FeatureAlphaDropout(0.6),
        "fused": Dropout(0.25),
        "depth": ops.StochasticDepth(0.35, "row"),
        "block": ops.DropBlock2d(0.15, 3),
        "block3d": ops.DropBlock3d(0.05, 3),
        "own_path": DropPath(0.65),
    }


BEFORE_END = math.nextafter(1.0, 0.0)
RATES = {
    "dropout": 0.5, "dropout1d": 0.4, "dropout2d": 0.3, "dropout3d": 0.2, "alpha": 0.1,
    "feature_alpha": 0.6, "fused": 0.25, "depth": 0.35, "block": 0.15, "block3d": 0.05,
    "own_path": 0.65,
}  # fmt: skip


def rate(layer: Any) -> float:
    """Return what the layer's forward reads."""
    if isinstance(layer, Dropout):
        return float(layer.current_rate())
    return float(layer.drop_prob if hasattr(layer, "drop_prob") else layer.p)


def convnext() -> Any:
    settings = [CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)]
    return ConvNeXt(settings, stochastic_depth_prob=0.3, num_classes=5)


@pytest.mark.parametrize(
    ("schedule", "by_progress"),
    [
        ("linear", {0: 0, 0.25: 0.25, 0.999: 0.999, 1: 1, 7.5: 1}),
        ("cosine", {0: 0, 1 / 3: 0.25, 0.5: 0.5, 2 / 3: 0.75, 1: 1, 2: 1}),
        ("early", {0: 1, BEFORE_END: 1, 1: 0, 1.001: 0, 9: 0}),
        ("early_linear", {0: 1, 0.25: 0.75, 1: 0, 4: 0}),
        ("late", {0: 0, BEFORE_END: 0, 1: 1, 3: 1}),
    ],
)
def test_factors_by_hand(schedule: Any, by_progress: dict[float, float]) -> None:
    for progress, expected in by_progress.items():
        factor = drop_rate_factor(schedule, progress)
        assert isinstance(factor, float)
        assert factor == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("progress", [-1e-9, -1.0, math.nan])
def test_progress_before_the_start_is_refused(progress: float) -> None:
    with pytest.raises(
        ValueError, match=f"progress has to be a number, at least 0, but got {progress}"
    ):
        drop_rate_factor("linear", progress)


def test_schedules_that_are_not_there_are_refused() -> None:
    unknown: Any = "exponential"
    expected = "'linear', 'cosine', 'early', 'early_linear' or 'late', but got 'exponential'"
    with pytest.raises(ValueError, match=expected):
        drop_rate_factor(unknown, 0.5)
    with pytest.raises(ValueError, match=expected):
        DropRate(nn.Dropout(), unknown)


def test_every_kind_of_layer_gets_its_share_and_its_own_rate_back() -> None:
    model = nn.ModuleDict(every_kind())
    text = repr(model)
    drop_rate = DropRate(model)
    assert drop_rate.rates == RATES
    for progress in (0.0, 0.3, 0.3, 1.0, 0.7):
        assert drop_rate.apply(progress) == drop_rate.factor == progress
        for name, own in RATES.items():
            assert rate(model[name]) == pytest.approx(progress * own, rel=1e-7), name
    drop_rate.restore()
    assert drop_rate.factor == 1
    assert {name: rate(layer) for name, layer in model.items()} == RATES
    assert repr(model) == text


def test_the_layers_of_timm() -> None:
    layers: Any = pytest.importorskip("timm.layers")
    model: Any = nn.Sequential(layers.DropPath(0.4), layers.DropBlock2d(0.2))
    drop_rate = DropRate(model)
    assert drop_rate.rates == {"0": 0.4, "1": 0.2}
    x = torch.ones(256, 1, 2, 2)
    for progress, p in [(0.0, 0.0), (0.5, 0.2)]:
        drop_rate.apply(progress)
        assert [layer.drop_prob for layer in model] == [p, p / 2]
        share = (model[0](x)[:, 0, 0, 0] == 0).double().mean().item()
        assert abs(share - p) <= 5 * (p * (1 - p) / len(x)) ** 0.5
    drop_rate.restore()
    assert [layer.drop_prob for layer in model] == [0.4, 0.2]


def test_the_rates_of_stochastic_depth_keep_their_ratios() -> None:
    model = convnext()
    depths = [module for module in model.modules() if isinstance(module, ops.StochasticDepth)]
    own = [0.3 * block / 3 for block in range(4)]  # the first has 0, and stays out
    drop_rate = DropRate(model, "cosine")
    assert list(drop_rate.rates.values()) == pytest.approx(own[1:])
    drop_rate.apply(1 / 3)
    assert [layer.p for layer in depths] == pytest.approx([0.25 * p for p in own])
    drop_rate.restore()
    assert [layer.p for layer in depths] == pytest.approx(own, abs=0)


def test_the_share_that_is_dropped(device: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Dropout(0.8)).to(device)
    x = torch.ones(128, 64, device=device)
    drop_rate = DropRate(model)  # on the device of the model's first parameter
    for progress in (0.0, 0.25, 1.0):
        drop_rate.apply(progress)
        p = 0.8 * progress
        share = (model[1](x) == 0).double().mean().item()
        assert abs(share - p) <= 5 * (p * (1 - p) / x.numel()) ** 0.5


def test_what_does_not_drop_is_left_alone() -> None:
    block = Block()
    model = nn.ModuleDict(
        {"block": block, "none": DropPath(None), "zero": nn.Dropout(0.0), "linear": nn.Linear(2, 2)}
    )
    drop_rate = DropRate(model)
    assert drop_rate.rates == {"block.drop_path": 0.3}
    drop_rate.apply(0.5)
    assert (block.drop_prob, block.p, block.drop_path.drop_prob) == (0.3, 0.7, 0.15)
    assert model["none"].drop_prob is None


def test_shared_layers_are_set_once() -> None:
    shared = nn.Dropout(0.5)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared), "c": nn.Dropout(0.1)})
    assert DropRate(model).rates == {"a": 0.5, "c": 0.1}
    assert DropRate(model, layers="b.*").rates == {"a": 0.5}  # by any of its names
    drop_rate = DropRate(model)
    drop_rate.apply(0.5)
    assert shared.p == 0.25


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (nn.Dropout, {"dropout", "fused"}),
        (Dropout, {"fused"}),
        (nn.Module, set(RATES)),
        ("depth", {"depth"}),
        ("*block*", {"block", "block3d"}),
        (["dropout?d", ops.StochasticDepth], {"dropout1d", "dropout2d", "dropout3d", "depth"}),
        ([nn.AlphaDropout, "alpha"], {"alpha"}),
        (("[ad]l*",), {"alpha"}),
    ],
)
def test_layers_by_class_and_by_name(layers: Any, expected: set[str]) -> None:
    model = nn.ModuleDict(every_kind())
    drop_rate = DropRate(model, layers=layers)
    assert drop_rate.rates.keys() == expected
    drop_rate.apply(0)
    assert {name for name, layer in model.items() if rate(layer) == 0} == expected


def test_names_are_those_without_wrappers() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2))
    model = nn.ModuleDict({"net": torch.compile(net, backend="eager")})  # type: ignore[dict-item]
    assert DropRate(model, layers="net.1").rates == {"net.1": 0.2}


def test_a_choice_that_matches_nothing_says_what_there_is() -> None:
    model = nn.Sequential(nn.Dropout(0.5), DropPath(0.1), nn.Dropout(0.0))
    there = (
        "layers={} matches no dropout layer with a rate above 0; there are: '0', a Dropout of 0.5;"
        " '1', a DropPath of 0.1$"
    )
    for layers, got in [
        ("head.*", r"'head.\*'"),
        (["0", "2"], "'2'"),
        (nn.AlphaDropout, "AlphaDropout"),
    ]:
        with pytest.raises(ValueError, match=there.format(got)):
            DropRate(model, layers=layers)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layers has to hold at least one class or name, but got "):
        DropRate(model, layers=[])
    with pytest.raises(ValueError, match=r"layers='\*' matches no .*; there are none"):
        DropRate(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)))
    with pytest.raises(ValueError, match=r"'9', a Dropout of 0.5; and 2 more$"):
        DropRate(nn.Sequential(*(nn.Dropout() for _ in range(12))), layers="x")


@pytest.mark.parametrize("layers", [3, [None], [nn.Dropout()]])
def test_other_choices_are_refused(layers: Any) -> None:
    with pytest.raises(TypeError, match="layers has to be classes of layers or names"):
        DropRate(nn.Dropout(), layers=layers)


def test_anything_but_a_module_is_refused() -> None:
    model: Any = [nn.Dropout()]
    with pytest.raises(TypeError, match=r"has to be a torch.nn.Module, but got"):
        DropRate(model)


def test_fused_layers_are_not_compiled_again(device: str) -> None:
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(4, 4), Dropout(0.5)).to(device)
    drop_rate = DropRate(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(8, 4, device=device)
    compiled(x).sum().backward()
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in range(3):
            drop_rate.apply(step / 2)
            compiled(x).sum().backward()
