"""The layers that drop channels, branches and blocks, and those for SELU networks."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import lightning_kernels
from lightning_practices.nn import (
    AlphaDropout,
    DropBlock2d,
    DropBlock3d,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    FeatureAlphaDropout,
    StochasticDepth,
)

Twins = tuple[type[nn.Module], type[nn.Module], tuple[Any, ...], tuple[int, ...]]
TWINS: list[Twins] = [
    (Dropout1d, nn.Dropout1d, (0.3,), (6, 8, 5)),
    (Dropout2d, nn.Dropout2d, (0.3,), (6, 8, 5, 4)),
    (Dropout3d, nn.Dropout3d, (0.3,), (6, 8, 2, 3, 4)),
    (AlphaDropout, nn.AlphaDropout, (0.3,), (6, 40)),
    (FeatureAlphaDropout, nn.FeatureAlphaDropout, (0.3,), (6, 8, 5)),
    (StochasticDepth, torchvision.ops.StochasticDepth, (0.3, "row"), (12, 3, 4)),
    (StochasticDepth, torchvision.ops.StochasticDepth, (0.3, "batch"), (12, 3, 4)),
    (DropBlock2d, torchvision.ops.DropBlock2d, (0.3, 3), (2, 4, 9, 8)),
    (DropBlock3d, torchvision.ops.DropBlock3d, (0.3, 3), (1, 2, 5, 6, 7)),
]
each = pytest.mark.parametrize(("ours", "theirs", "args", "shape"), TWINS)


@each
def test_is_built_printed_and_saved_like_the_original(
    ours: type[nn.Module], theirs: type[nn.Module], args: tuple[Any, ...], shape: tuple[int, ...]
) -> None:
    layer, original = ours(*args), theirs(*args)
    assert isinstance(layer, theirs)
    assert repr(layer) == repr(original)
    assert vars(original).items() <= vars(layer).items()
    assert not layer.state_dict()


@each
def test_draws_by_the_seed_and_passes_on_in_evaluation(
    ours: type[nn.Module], theirs: type[nn.Module], args: tuple[Any, ...], shape: tuple[int, ...],
    device: str,
) -> None:  # fmt: skip
    layer = ours(*args)
    x = torch.rand(shape, device=device) + 1
    copies = [layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    draws = 8 if args[-1] == "batch" else 2  # one draw for all samples is often the same
    results = []
    for each_layer in copies:
        torch.manual_seed(5)
        results.append([each_layer(x) for _ in range(draws)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert not all(torch.equal(results[0][0], other) for other in results[0][1:])
    assert any(not torch.equal(y, x) for y in results[0])
    assert layer.eval()(x) is x


FUNCTIONS: dict[type[nn.Module], Callable[[nn.Module, Tensor], Tensor]] = {
    Dropout1d: lambda m, x: lightning_kernels.dropout1d(x, 0.3, True, False),
    Dropout2d: lambda m, x: lightning_kernels.dropout2d(x, 0.3, True, False),
    Dropout3d: lambda m, x: lightning_kernels.dropout3d(x, 0.3, True, False),
    AlphaDropout: lambda m, x: lightning_kernels.alpha_dropout(x, 0.3, True, False),
    FeatureAlphaDropout: lambda m, x: lightning_kernels.feature_alpha_dropout(x, 0.3, True),
    StochasticDepth: lambda m, x: lightning_kernels.stochastic_depth(x, 0.3, m.mode),  # type: ignore[arg-type]
    DropBlock2d: lambda m, x: lightning_kernels.drop_block2d(x, 0.3, 3),
    DropBlock3d: lambda m, x: lightning_kernels.drop_block3d(x, 0.3, 3),
}


@each
def test_is_its_function_and_a_scheduled_rate_is_too(
    ours: type[nn.Module], theirs: type[nn.Module], args: tuple[Any, ...], shape: tuple[int, ...],
    device: str,
) -> None:  # fmt: skip
    layer: Any = ours(*args)
    x = torch.rand(shape, device=device) + 1

    def seeded(function: Callable[[Tensor], Tensor]) -> list[Tensor]:
        torch.manual_seed(2)
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        return [y.detach(), *torch.autograd.grad(y.sum(), leaf)]

    expected = seeded(lambda x: FUNCTIONS[ours](layer, x))
    assert all(torch.equal(a, b) for a, b in zip(seeded(layer), expected, strict=True))
    layer.schedule_rate(device)
    layer.p = 0.0
    torch.testing.assert_close(layer(x), x)
    layer.p = 1.0
    dropped = layer(x) == 0
    if isinstance(layer, DropBlock2d):  # overlapping blocks drop less than their rate
        assert dropped.sum() > (expected[0] == 0).sum()
    else:
        assert dropped.all()
    layer.rate.fill_(0.0)  # the tensor decides, not the attribute
    torch.testing.assert_close(layer(x), x)


@pytest.mark.parametrize("layer", [AlphaDropout(0.5, True), FeatureAlphaDropout(0.5, True)])
def test_inplace_is_honoured_by_alpha_dropout(layer: nn.Module, device: str) -> None:
    x = torch.randn(8, 16, 3, device=device)
    assert layer(x) is x


def test_stochastic_depth_adds_residual_and_layer_scale(device: str) -> None:
    x, residual = (torch.randn(64, 3, 2, 2, device=device) for _ in range(2))
    scale = torch.randn(3, 1, 1, device=device)
    y = StochasticDepth(0.5, "row")(x, residual, scale)
    branch = (y - residual) / (2 * scale * x)
    kept = branch.flatten(1).mean(1).round()
    assert 0 < kept.sum() < 64
    torch.testing.assert_close(y, residual + kept.reshape(-1, 1, 1, 1) * 2 * scale * x)
    torch.testing.assert_close(
        StochasticDepth(0.5, "row").eval()(x, residual, scale), residual + scale * x
    )


def test_drop_block_shares_its_mask_if_asked_to(device: str) -> None:
    x = torch.ones(4, 6, 9, 9, device=device)
    masks = (DropBlock2d(0.3, 3, per_channel=False)(x) == 0).unbind(1)
    assert masks[0].any()
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    masks = (DropBlock2d(0.3, 3)(x) == 0).unbind(1)
    assert not all(torch.equal(mask, masks[0]) for mask in masks)


def test_wrong_arguments_say_so(device: str) -> None:
    x = torch.ones(2, 3, device=device)
    with pytest.raises(ValueError, match="4"):
        DropBlock2d(0.3, 3)(x)
    with pytest.raises(ValueError, match="mode"):
        StochasticDepth(0.3, "columns")(x)
    with pytest.raises(ValueError, match="between 0 and 1"):
        StochasticDepth(1.3, "row")(x)
