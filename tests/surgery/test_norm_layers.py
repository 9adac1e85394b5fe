"""Surgery on norms that torchvision and timm bring: those of channels, and timm's own."""

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from timm.layers import norm as layers
from torch import Tensor, nn
from torchvision.models import convnext

import lightning_kernels
from lightning_practices.surgery import fuse, unfuse
from tests.surgery.models import assert_equal, randomise

TIMM = "lightning_practices.surgery._fuse.timm_layers"
LAYERS: list[tuple[nn.Module, tuple[int, ...], str]] = [
    (convnext.LayerNorm2d(6), (2, 6, 5, 4), "lightning_practices.nn.LayerNorm2d"),
    (
        layers.LayerNorm2d(6),
        (2, 6, 5, 4),
        "lightning_practices.surgery._fuse.timm_layers.LayerNorm2d",
    ),
    (layers.LayerNorm(6), (2, 5, 6), f"{TIMM}.LayerNorm"),
    (layers.RmsNorm(6), (2, 5, 6), f"{TIMM}.RmsNorm"),
]


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the output and the gradients of input and parameters, made contiguous."""
    leaf = x.clone().requires_grad_()
    y = model(leaf)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [leaf, *model.parameters()])]


@pytest.mark.parametrize(("layer", "shape", "after"), LAYERS)
def test_is_swapped_computes_the_same_and_is_restored(
    layer: nn.Module, shape: tuple[int, ...], after: str, device: str
) -> None:
    model = nn.Sequential(copy.deepcopy(layer)).to(device, torch.float64)
    randomise(model)
    x = torch.randn(shape, device=device, dtype=torch.float64)
    before, attributes, text = step(model, x), dict(vars(model[0])), repr(model)
    report = fuse(model)
    assert [(r.names, r.after) for r in report.replaced] == [(("0",), after)]
    assert isinstance(model[0], type(layer))
    assert repr(model) == text
    assert_equal(step(model, x), before)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other[0]) is type(model[0])
        assert_equal(step(other, x), before)
    unfuse(model)
    assert type(model[0]) is type(layer)
    assert vars(model[0]) == attributes
    assert_equal(step(model, x), before)


@pytest.mark.parametrize(("layer", "shape", "_"), LAYERS)
def test_the_kernels_are_what_runs(
    layer: nn.Module, shape: tuple[int, ...], _: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("layer_norm", "rms_norm"):
        original = getattr(lightning_kernels, name)

        def spy(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Tensor:
            calls.append(name)
            result: Tensor = original(*args, **kwargs)
            return result

        monkeypatch.setattr(lightning_kernels, name, spy)
    model = nn.Sequential(copy.deepcopy(layer))
    fuse(model)
    model(torch.randn(shape))
    assert calls == ["rms_norm" if isinstance(layer, layers.RmsNorm) else "layer_norm"]


def test_timms_fast_mode_is_timms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning_kernels, "layer_norm", None)
    model = nn.Sequential(layers.LayerNorm(6))
    model[0]._fast_norm = True  # type: ignore[assignment]
    fuse(model)
    x = torch.randn(2, 6)
    assert torch.equal(model(x), layers.LayerNorm(6)(x))


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
def test_timms_models(name: str, device: str) -> None:
    options = {"img_size": 32, "depth": 2} if name.startswith("vit") else {"depths": (1, 1, 1, 1)}
    model = timm.create_model(name, num_classes=3, **options).to(device, torch.float64).eval()
    x = torch.randn(2, 3, 32, 32, device=device, dtype=torch.float64)
    before = step(model, x)
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    report = fuse(model)
    assert len(report.replaced) >= len(norms) > 3
    assert not [s for s in report.skipped if "Norm" in s.cls]
    assert_equal(step(model, x), before)
