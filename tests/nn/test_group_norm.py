import copy
import functools
import io
from typing import Any

import pytest
import torch
from timm.layers import norm
from torch import nn
from torchvision.models import resnet18

import lightning_kernels
from lightning_practices import nn as ours
from lightning_practices import surgery

LAYERS: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    ("GroupNorm", (2, 6), {}, (3, 6, 4, 5)),
    ("GroupNorm", (3, 6), {"eps": 1e-3, "affine": False}, (3, 6, 7)),
    ("GroupNorm", (6, 6), {"dtype": torch.float64}, (3, 6, 2, 2, 2)),
    ("InstanceNorm1d", (6,), {"affine": True}, (3, 6, 9)),
    ("InstanceNorm2d", (6,), {}, (3, 6, 4, 5)),
    ("InstanceNorm2d", (6,), {"affine": True}, (6, 4, 5)),  # a sample without a batch
    ("InstanceNorm2d", (6,), {"affine": True, "track_running_stats": True}, (3, 6, 4, 5)),
    ("InstanceNorm2d", (6,), {"momentum": None, "track_running_stats": True}, (3, 6, 4, 5)),
    ("InstanceNorm3d", (6,), {"eps": 1e-3, "affine": True}, (3, 6, 2, 3, 2)),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "args", "kwargs", "shape"), LAYERS, ids=str)
def test_computes_is_printed_and_saved_like_torchs(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...], training: bool
) -> None:
    theirs, mine = (getattr(room, name)(*args, **kwargs).train(training) for room in (nn, ours))
    assert isinstance(mine, getattr(nn, name))
    assert repr(mine) == repr(theirs)
    assert vars(mine).keys() == vars(theirs).keys()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    mine.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(shape, dtype=kwargs.get("dtype", torch.float32)).requires_grad_()
    grad = torch.randn_like(x)
    results = []
    for layer in (mine, theirs):
        y = layer(x)
        results.append(
            [y, *torch.autograd.grad(y, [x, *layer.parameters()], grad), *layer.buffers()]
        )
    for one, right in zip(*results, strict=True):
        torch.testing.assert_close(one, right, rtol=1e-5, atol=1e-5)
    theirs.load_state_dict(mine.state_dict(), strict=True)


@pytest.mark.parametrize(
    ("name", "args", "kwargs"),
    [("GroupNorm", (2, 8), {}), ("InstanceNorm2d", (8,), {"affine": True})],
)
def test_copies_and_pickles(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    layer = getattr(ours, name)(*args, **kwargs)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    x = torch.randn(2, 8, 3, 3)
    for other in (copy.deepcopy(layer), torch.load(stream, weights_only=False)):
        assert type(other) is type(layer)
        assert torch.equal(other(x), layer(x))


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"weight.*\[4\].*\[8\]"):
        ours.GroupNorm(2, 8)(torch.randn(2, 4, 3))
    with pytest.raises(ValueError, match=r"num_features.*8.*4"):
        ours.InstanceNorm1d(8, affine=True)(torch.randn(2, 4, 3))


def test_autocast_is_the_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(lightning_kernels, "group_norm", lambda *_, **kwargs: given.append(kwargs))
    layers: list[Any] = [ours.GroupNorm(2, 8), norm.GroupNorm(8, 4), norm.GroupNorm1(8)]
    surgery.fuse(nn.Sequential(*layers))
    for value in ("input", "match"):
        for layer in layers:
            layer.autocast = value
            layer(torch.randn(2, 8, 3))
    assert given == [{"autocast": "input"}] * 3 + [{"autocast": "match"}] * 3


@pytest.mark.parametrize("layer", [norm.GroupNorm(8, 4), norm.GroupNorm1(8)], ids=["some", "one"])
def test_timms_fast_mode_stays(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning_kernels, "group_norm", None)
    layer = copy.deepcopy(layer)
    surgery.fuse(layer)
    layer._fast_norm = True
    assert layer(torch.randn(2, 8, 3)).shape == (2, 8, 3)


def test_surgery_swaps_and_restores() -> None:
    layers: list[nn.Module] = [
        nn.GroupNorm(2, 8),
        nn.InstanceNorm2d(8, affine=True),
        norm.GroupNorm(8, 4),
        norm.GroupNorm1(8),
    ]
    model = nn.Sequential(*layers)
    kinds = [type(layer) for layer in layers]
    x = torch.randn(2, 8, 3, 3)
    before = model(x)
    report = surgery.fuse(model)
    assert len(report.replaced) == 4
    assert not report.skipped
    assert type(model[0]) is ours.GroupNorm
    assert type(model[1]) is ours.InstanceNorm2d
    for layer, kind in zip(layers, kinds, strict=True):
        assert isinstance(layer, kind)
        assert type(layer) is not kind
    torch.testing.assert_close(model(x), before)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    torch.testing.assert_close(torch.load(stream, weights_only=False)(x), before)
    surgery.unfuse(model)
    assert [type(layer) for layer in layers] == kinds


def test_surgery_changes_no_bit_of_a_model_in_float64() -> None:
    """Both are torch's own function then, whatever this run has."""
    model = resnet18(norm_layer=functools.partial(nn.GroupNorm, 8)).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)

    def results() -> list[torch.Tensor]:
        y = model(x)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), [*model.parameters()])]

    before = results()
    assert len(surgery.fuse(model).replaced) == 20
    assert all(torch.equal(a, b) for a, b in zip(results(), before, strict=True))
    assert len(surgery.unfuse(model).replaced) == 20
    assert not any(isinstance(module, ours.GroupNorm) for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(results(), before, strict=True))
