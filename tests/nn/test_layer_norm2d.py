import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import convnext

import lightning_kernels
from lightning_practices.nn import LayerNorm, LayerNorm2d, RMSNorm

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def twins(channels: int = 6, **kwargs: Any) -> tuple[nn.Module, LayerNorm2d]:
    """Return torchvision's layer and ours, with the same parameters."""
    theirs, ours = convnext.LayerNorm2d(channels, **kwargs), LayerNorm2d(channels, **kwargs)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def run(layer: nn.Module, x: Tensor, grad: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], grad)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"elementwise_affine": False}])
def test_float64_is_torchvisions_bit_for_bit(
    options: dict[str, Any], layout: torch.memory_format, device: str
) -> None:
    theirs, ours = twins(**options, dtype=torch.float64, device=device)
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64, device=device).to(memory_format=layout)
    grad = torch.randn_like(x)
    for actual, expected in zip(run(ours, x, grad), run(theirs, x, grad), strict=True):
        assert torch.equal(actual, expected)
        assert actual.stride() == expected.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_as_near_to_float64_as_torchvisions(
    dtype: torch.dtype, layout: torch.memory_format, device: str
) -> None:
    theirs, ours = twins(96, dtype=dtype, device=device)
    x = torch.randn(2, 96, 5, 7, dtype=dtype, device=device).to(memory_format=layout)
    grad = torch.randn_like(x)
    exact = run(copy.deepcopy(theirs).double(), x.double(), grad.double())
    for actual, expected, truth in zip(
        run(ours, x, grad), run(theirs, x, grad), exact, strict=True
    ):
        assert (actual.dtype, actual.stride()) == (expected.dtype, expected.stride())
        rounding = torch.finfo(dtype).eps * truth.abs().max()
        error, allowed = (actual - truth).abs().max(), (expected - truth).abs().max()
        assert error <= 1.5 * allowed + rounding


def test_is_torchvisions_and_travels() -> None:
    theirs, ours = twins(eps=1e-3)
    assert isinstance(ours, convnext.LayerNorm2d)
    assert repr(ours) == repr(theirs)
    x = torch.randn(2, 6, 3, 4)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(other) is LayerNorm2d
        assert torch.equal(other(x), ours(x))


@pytest.mark.parametrize(
    ("layer", "function"),
    [(LayerNorm(4), "layer_norm"), (LayerNorm2d(4), "layer_norm"), (RMSNorm(4), "rms_norm")],
)
def test_autocast_is_the_functions(
    layer: Any, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    original = getattr(lightning_kernels, function)

    def spy(*args: Any, autocast: str) -> Tensor:
        given.append(autocast)
        result: Tensor = original(*args, autocast=autocast)
        return result

    monkeypatch.setattr(lightning_kernels, function, spy)
    x = torch.randn(2, 4, 4, 4)
    layer(x)
    layer.autocast = "match"
    layer(x)
    layer.autocast = "float32"
    with pytest.raises(ValueError, match="autocast as 'input' or 'match', but got 'float32'"):
        layer(x)
    assert given == ["input", "match", "float32"]


def test_other_shapes_are_refused() -> None:
    layer = LayerNorm2d(6)
    with pytest.raises(RuntimeError, match=r"\(N, C, H, W\), but got \[2, 6, 3\]"):
        layer(torch.randn(2, 6, 3))
    with pytest.raises(RuntimeError, match="6"):
        layer(torch.randn(2, 5, 3, 3))
