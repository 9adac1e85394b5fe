import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from lightning_practices import surgery
from lightning_practices.nn import RMSNorm

CONSTRUCTORS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((32,), {}),
    (([4, 8],), {"eps": 1e-3}),
    ((32,), {"elementwise_affine": False}),
    ((32,), {"dtype": torch.float64, "device": "cpu"}),
]


@pytest.mark.parametrize(("args", "kwargs"), CONSTRUCTORS)
def test_computes_is_printed_and_saved_like_torchs(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    theirs, ours = nn.RMSNorm(*args, **kwargs), RMSNorm(*args, **kwargs)
    assert repr(ours) == repr(theirs)
    assert vars(ours).keys() == vars(theirs).keys()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(3, 4, 8) if ours.normalized_shape == (4, 8) else torch.randn(3, 32)
    x = x.to(kwargs.get("dtype", torch.float32)).requires_grad_()
    grad = torch.randn_like(x)
    results = []
    for layer in (ours, theirs):
        y = layer(x)
        results.append([y, *torch.autograd.grad(y, [x, *layer.parameters()], grad)])
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right, rtol=2e-6, atol=2e-6)


def test_copies_and_pickles() -> None:
    layer = RMSNorm(8)
    nn.init.normal_(layer.weight)
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    x = torch.randn(2, 8)
    for other in (copy.deepcopy(layer), torch.load(stream, weights_only=False)):
        assert type(other) is RMSNorm
        assert torch.equal(other(x), layer(x))


def test_surgery_swaps_and_restores() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.RMSNorm(8, eps=1e-6))
    x = torch.randn(2, 8)
    before = model(x)
    surgery.fuse(model)
    assert type(model[1]) is RMSNorm
    torch.testing.assert_close(model(x), before)
    surgery.unfuse(model)
    assert type(model[1]) is nn.RMSNorm
