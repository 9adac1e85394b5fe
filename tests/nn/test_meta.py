"""Layers without data: on the device meta, as fake tensors, and initialised later."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.throughput import measure_flops
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import skip_init

from lightning_practices import nn as fused_nn
from lightning_practices.surgery import fuse

pytestmark = pytest.mark.plain

IMAGE, TOKENS = (2, 4, 6, 6), (2, 5, 4)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "AddDropoutLayerNorm": (
        lambda: fused_nn.AddDropoutLayerNorm(4, 0.1, 0.1, layer_scale=1e-5), TOKENS,
    ),
    "AlphaDropout": (lambda: fused_nn.AlphaDropout(0.3), IMAGE),
    "BatchNorm1d": (lambda: fused_nn.BatchNorm1d(4), (2, 4, 5)),
    "BatchNorm2d": (lambda: fused_nn.BatchNorm2d(4, activation="relu"), IMAGE),
    "BatchNorm3d": (lambda: fused_nn.BatchNorm3d(4, virtual_batch_size=1), (2, 4, 3, 3, 3)),
    "DropBlock2d": (lambda: fused_nn.DropBlock2d(0.1, 3), IMAGE),
    "DropBlock3d": (lambda: fused_nn.DropBlock3d(0.1, 3), (2, 4, 3, 3, 3)),
    "DropCluster2d": (lambda: fused_nn.DropCluster2d(0.0, 3), IMAGE),
    "DropConnectLinear": (lambda: fused_nn.DropConnectLinear(4, 3, per_sample=True), TOKENS),
    "Dropout": (lambda: fused_nn.Dropout(0.3), IMAGE),
    "Dropout1d": (lambda: fused_nn.Dropout1d(0.3), (2, 4, 5)),
    "Dropout2d": (lambda: fused_nn.Dropout2d(0.3), IMAGE),
    "Dropout3d": (lambda: fused_nn.Dropout3d(0.3), (2, 4, 3, 3, 3)),
    "EncoderBlock": (lambda: fused_nn.EncoderBlock(2, 4, 8, 0.1, 0.1), TOKENS),
    "FeatureAlphaDropout": (lambda: fused_nn.FeatureAlphaDropout(0.3), IMAGE),
    "GroupNorm": (lambda: fused_nn.GroupNorm(2, 4), IMAGE),
    "InstanceNorm1d": (lambda: fused_nn.InstanceNorm1d(4), (2, 4, 5)),
    "InstanceNorm2d": (
        lambda: fused_nn.InstanceNorm2d(4, affine=True, track_running_stats=True), IMAGE,
    ),
    "InstanceNorm3d": (lambda: fused_nn.InstanceNorm3d(4), (2, 4, 3, 3, 3)),
    "LabelSmoothingBCEWithLogitsLoss": (
        lambda: _Loss(fused_nn.LabelSmoothingBCEWithLogitsLoss()), TOKENS,
    ),
    "LabelSmoothingCrossEntropyLoss": (
        lambda: _Loss(fused_nn.LabelSmoothingCrossEntropyLoss()), TOKENS,
    ),
    "LayerNorm": (lambda: fused_nn.LayerNorm(4), TOKENS),
    "LayerNorm2d": (lambda: fused_nn.LayerNorm2d(4), IMAGE),
    "RMSNorm": (lambda: fused_nn.RMSNorm(4), TOKENS),
    "StochasticDepth": (lambda: fused_nn.StochasticDepth(0.5, "row"), IMAGE),
    "SyncBatchNorm": (lambda: fused_nn.SyncBatchNorm(4), IMAGE),
    "TransformerDecoderLayer": (
        lambda: _WithMemory(fused_nn.TransformerDecoderLayer(4, 2, 8, batch_first=True)), TOKENS,
    ),
    "TransformerEncoderLayer": (
        lambda: fused_nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), TOKENS,
    ),
}  # fmt: skip


class _Loss(nn.Module):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, x: Tensor) -> Any:
        return self.loss(x, x.detach().sigmoid())


class _WithMemory(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x, x)


def _outcome(name: str, device: str) -> list[Any]:
    """Return the shapes and dtypes of the outputs and gradients, in training and evaluation."""
    make, shape = LAYERS[name]
    found: list[Any] = []
    with torch.device(device):
        layer = make()
        for training in (True, False):
            x = torch.ones(shape, requires_grad=True)
            y = layer.train(training)(x)
            total: Tensor = y[0] + y[1] if isinstance(y, tuple) else y
            total.sum().backward()
            assert x.grad is not None
            results = [total, x.grad, *(p.grad for p in layer.parameters())]
            assert {t.device.type for t in results if t is not None} == {device}
            found.append([t if t is None else (t.shape, t.dtype, t.stride()) for t in results])
    return found


def test_every_layer_is_called() -> None:
    layers = {name for name in fused_nn.__all__ if name[0].isupper()}
    assert set(LAYERS) == layers - {"ScheduledRate"}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_on_meta_and_as_fake_tensors(name: str) -> None:
    expected = _outcome(name, "cpu")
    assert _outcome(name, "meta") == expected
    with FakeTensorMode():
        assert _outcome(name, "cpu") == expected


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_made_on_meta_takes_a_state_dict(name: str) -> None:
    make, shape = LAYERS[name]
    made = make().eval()
    with torch.device("meta"):
        empty = make().eval()
    assert all(t.is_meta for t in empty.state_dict().values())
    empty.to_empty(device="cpu").load_state_dict(made.state_dict(), assign=True)
    x = torch.randn(shape)
    assert str(empty(x)) == str(made(x))


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (fused_nn.AddDropoutLayerNorm, (4,)),
        (fused_nn.BatchNorm1d, (4,)),
        (fused_nn.BatchNorm2d, (4,)),
        (fused_nn.BatchNorm3d, (4,)),
        (fused_nn.SyncBatchNorm, (4,)),
        (fused_nn.DropConnectLinear, (4, 3)),
        (fused_nn.GroupNorm, (2, 4)),
        (fused_nn.InstanceNorm1d, (4,)),
        (fused_nn.InstanceNorm2d, (4,)),
        (fused_nn.InstanceNorm3d, (4,)),
        (fused_nn.LayerNorm, (4,)),
        (fused_nn.LayerNorm2d, (4,)),
        (fused_nn.RMSNorm, (4,)),
        (fused_nn.TransformerDecoderLayer, (4, 2)),
        (fused_nn.TransformerEncoderLayer, (4, 2)),
    ],
)
def test_skip_init_makes_the_layer(kind: Any, arguments: tuple[int, ...]) -> None:
    skipped: nn.Module = skip_init(kind, *arguments, dtype=torch.float64)
    made = kind(*arguments, dtype=torch.float64)
    assert repr(skipped) == repr(made)
    shapes = {key: (t.shape, t.dtype, t.device) for key, t in skipped.state_dict().items()}
    assert shapes == {key: (t.shape, t.dtype, t.device) for key, t in made.state_dict().items()}


def _network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.1),
        nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.Flatten(2), nn.Linear(36, 8),
        nn.LayerNorm(8), nn.RMSNorm(8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    )  # fmt: skip


def test_flops_of_a_fused_model_are_counted_without_data() -> None:
    counts = []
    for prepare in (lambda model: None, fuse):
        with torch.device("meta"):
            model, x = _network(), torch.randn(2, 3, 6, 6)
        prepare(model)
        counts.append(measure_flops(model, partial(model, x), torch.sum))
    assert counts[0] == counts[1] > 0


def test_a_model_is_fused_before_it_has_data() -> None:
    state, x = _network().state_dict(), torch.randn(2, 3, 6, 6)
    reference = _network().eval()
    reference.load_state_dict(state)
    with torch.device("meta"):
        model = _network().eval()
    assert fuse(model)
    assert model(x.to("meta")).shape == reference(x).shape
    model.to_empty(device="cpu").load_state_dict(state, assign=True)
    torch.testing.assert_close(model(x), reference(x))
