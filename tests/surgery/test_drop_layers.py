"""Surgery on layers that drop: torch's, torchvision's and timm's."""

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers import drop
from torch import Tensor, nn

from lightning_practices.surgery import fuse, unfuse

LAYERS: list[tuple[nn.Module, tuple[int, ...], str]] = [
    (nn.Dropout1d(0.4), (6, 8, 5), "lightning_practices.nn.Dropout1d"),
    (nn.Dropout2d(0.4), (6, 8, 5, 4), "lightning_practices.nn.Dropout2d"),
    (nn.Dropout3d(0.4), (6, 8, 2, 3, 4), "lightning_practices.nn.Dropout3d"),
    (nn.AlphaDropout(0.4), (6, 40), "lightning_practices.nn.AlphaDropout"),
    (nn.FeatureAlphaDropout(0.4), (6, 8, 5), "lightning_practices.nn.FeatureAlphaDropout"),
    (
        torchvision.ops.StochasticDepth(0.4, "row"),
        (40, 3),
        "lightning_practices.nn.StochasticDepth",
    ),
    (torchvision.ops.DropBlock2d(0.4, 3), (2, 4, 9, 9), "lightning_practices.nn.DropBlock2d"),
    (torchvision.ops.DropBlock3d(0.4, 3), (1, 2, 6, 6, 6), "lightning_practices.nn.DropBlock3d"),
    (drop.DropPath(0.4), (40, 3), "lightning_practices.surgery._fuse.timm_layers.DropPath"),
]


@pytest.mark.parametrize(("layer", "shape", "after"), LAYERS)
def test_is_swapped_drops_and_is_restored(
    layer: nn.Module, shape: tuple[int, ...], after: str, device: str
) -> None:
    model = nn.Sequential(copy.deepcopy(layer))
    before = {name: value for name, value in vars(model[0]).items() if name != "_modules"}
    report = fuse(model)
    assert [(r.names, r.after) for r in report.replaced] == [(("0",), after)]
    assert isinstance(model[0], type(layer))
    x = torch.rand(shape, device=device) + 1

    def draw(model: nn.Module) -> Tensor:
        torch.manual_seed(1)
        y: Tensor = model(x)
        return y

    dropped = draw(model)
    assert not torch.equal(dropped, x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other[0]) is type(model[0])
        assert torch.equal(draw(other), dropped)
    model[0].schedule_rate(device)  # type: ignore[operator]
    setattr(model[0], "p" if hasattr(layer, "p") else "drop_prob", 0.0)
    torch.testing.assert_close(model(x), x)
    setattr(model[0], "p" if hasattr(layer, "p") else "drop_prob", 0.4)
    assert model.eval()(x) is x
    model.train()
    unfuse(model)
    assert type(model[0]) is type(layer)
    after_all = {name: value for name, value in vars(model[0]).items() if name != "_modules"}
    assert after_all == before


def test_a_path_that_is_not_rescaled_is_timms_own(device: str) -> None:
    layer = drop.DropPath(0.4, scale_by_keep=False)
    x = torch.rand(8, 4, 9, 9, device=device) + 1
    results: list[Tensor] = []
    for swap in (False, True):
        model = nn.Sequential(copy.deepcopy(layer))
        if swap:
            assert len(fuse(model).replaced) == 1
        torch.manual_seed(2)
        results.append(model(x))
    assert torch.equal(*results)


def test_a_whole_model_with_drop_path(device: str) -> None:
    options: dict[str, Any] = {"num_classes": 3, "drop_path_rate": 0.3, "img_size": 16}
    model = timm.create_model(
        "vit_tiny_patch16_224", depth=2, embed_dim=12, num_heads=2, **options
    ).to(device)
    x = torch.randn(2, 3, 16, 16, device=device)
    expected = model.eval()(x)
    report = fuse(model)
    assert sum(r.before.endswith("DropPath") for r in report.replaced) == 2  # the first has rate 0
    torch.testing.assert_close(model(x), expected)
    assert not torch.equal(model.train()(x), expected)
