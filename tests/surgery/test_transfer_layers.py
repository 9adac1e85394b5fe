"""Layers taken out, and layers that two models share."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from typing_extensions import override

from lightning_practices.surgery import (
    blocks,
    freeze,
    remove_top_blocks,
    replace_head,
    share_layers,
)
from tests.surgery.test_blocks import Tied, Trunk, network
from tests.surgery.test_transfer_freeze import modes, state

pytestmark = pytest.mark.plain

# Taken out.


def mlp() -> Any:
    return nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 6), nn.BatchNorm1d(6),
        nn.ReLU(), nn.Dropout(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2),
    )  # fmt: skip


def batch() -> Tensor:
    return torch.randn(8, 4)


def test_the_next_feeds_the_head() -> None:
    model = mlp()
    first, second, head = model[0:2], model[2:5], model[8:]
    expected = nn.Sequential(*first, *second, *head).eval()
    model.eval()
    assert remove_top_blocks(model, 1, batch()) == ("7",)
    x = batch()
    assert torch.equal(model(x), expected(x))
    assert [*model.state_dict()] == [*expected.state_dict()]
    assert not any(modes(model).values())


def test_a_head_of_another_width_is_made_anew() -> None:
    model = mlp()
    before, kept = state(model), model[0]
    head = model[9]
    assert remove_top_blocks(model, 2, batch()) == ("7", "3")
    assert [type(layer).__name__ for layer in model] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert model[0] is kept
    assert model[3] is not head
    assert model[3].weight.shape == (2, 5)
    assert all(modes(model).values())
    assert torch.equal(model[1].running_mean, before["1.running_mean"])
    assert model(batch()).shape == (8, 2)


IMAGES = torch.empty(2, 3, 224, 224, device="meta")


@pytest.mark.parametrize(("name", "n", "dropped", "left"), [
    ("resnet18", 1, ("layer4.1",), "layer4"),
    ("resnet18", 3, ("layer4.1", "layer4.0", "layer3.1"), "layer3"),
    ("vit_b_16", 2, ("encoder.layers.encoder_layer_11", "encoder.layers.encoder_layer_10"),
     "encoder.layers.encoder_layer_9"),
    ("efficientnet_b0", 2, ("features.8", "features.7"), "features.6.3"),
    ("vgg11", 2, ("classifier.3", "classifier.0"), "features.18"),
    ("timm/resnet18", 2, ("layer4.1", "layer4.0"), "layer3.1"),
    ("timm/vit_tiny_patch16_224", 1, ("blocks.11",), "blocks.10"),
])  # fmt: skip
def test_networks(name: str, n: int, dropped: tuple[str, ...], left: str) -> None:
    model = network(name)
    before = list(blocks(model))
    kept = {id(p) for p in model.parameters()}
    assert remove_top_blocks(model, n, IMAGES) == dropped
    after = blocks(model)
    assert len(after) == len(before) - n
    assert after[1].name == left
    assert [block.name for block in after[2:]] == [block.name for block in before[n + 2 :]]
    assert {id(p) for block in after[1:] for name in block.parameters
            for p in [model.get_parameter(name)]} <= kept  # fmt: skip
    assert model(IMAGES).shape == (2, 1000)
    replace_head(model, 7)
    assert model(IMAGES).shape == (2, 7)


def test_norms_after_the_list_stay() -> None:
    model = network("vit_b_16")
    norm = model.encoder.ln
    remove_top_blocks(model, 3, IMAGES)
    assert model.encoder.ln is norm
    assert "encoder.ln" in blocks(model)[1].modules


def test_frozen_layers_below_stay_frozen() -> None:
    model = mlp()
    freeze(model, blocks(model)[1:])
    remove_top_blocks(model, 2, batch())
    model.train()
    assert modes(model) == {"": True, "0": False, "1": False, "2": True, "3": True}
    assert [p.requires_grad for p in model.parameters()] == [False] * 4 + [True] * 2


class Called(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.second(self.first(x)))


@pytest.mark.parametrize(("model", "n", "given", "message"), [
    (mlp(), 3, batch(), "n has to be an integer from 1 to 2, since Sequential has 4 blocks"),
    (mlp(), 0, batch(), "n has to be an integer from 1 to 2"),
    (nn.Linear(4, 2), 1, batch(), "n has to be an integer from 1 to 0"),
    (Called(), 1, batch(), "'second' can't be dropped: 'second' is not an element of an nn.Seq"),
    (network("densenet121"), 1, IMAGES, "'features.denseblock4.denselayer16' is not an element"),
    (network("convnext_tiny"), 4, IMAGES, "without 'features.7.2', .* ConvNeXt doesn't run: "),
])  # fmt: skip
def test_what_cannot_be_dropped(model: Any, n: int, given: Tensor, message: str) -> None:
    modules, attributes = list(model.named_modules()), [set(vars(m)) for m in model.modules()]
    before = modes(model)
    with pytest.raises(ValueError, match=message):
        remove_top_blocks(model, n, given)
    assert list(model.named_modules()) == modules
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert modes(model) == before


def test_features_of_another_shape() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 3), nn.Flatten(2), nn.Linear(4, 2))
    assert remove_top_blocks(model, 1, torch.randn(1, 1, 4, 4)) == ("1",)
    assert model[2].in_features == 16


def test_another_shape_of_output_is_refused() -> None:
    model = nn.Sequential(
        nn.Linear(2, 2), nn.Linear(2, 4), nn.Flatten(0), nn.Unflatten(0, (-1, 2)), nn.Linear(2, 2)
    )
    modules = list(model.named_modules())
    with pytest.raises(ValueError, match=r"of shape \(3, 2\), and not \(6, 2\) as before"):
        remove_top_blocks(model, 1, torch.randn(3, 2))
    assert list(model.named_modules()) == modules
    assert model(torch.randn(3, 2)).shape == (6, 2)


class Rows(nn.Module):
    @override
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[1] - 1)


def test_a_new_head_that_does_not_help_is_taken_back() -> None:
    body = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    model: Any = nn.Sequential(body, Rows(), nn.Linear(3, 2))
    model.num_features = 3
    modules = list(model.named_modules())
    with pytest.raises(ValueError, match=r"of shape \(9, 2\), and not \(8, 2\) as before"):
        remove_top_blocks(model, 1, torch.randn(6, 2))
    assert list(model.named_modules()) == modules
    assert model.num_features == 3


# Shared.


def test_both_train_the_same_layers_once() -> None:
    a, b = mlp(), mlp()
    keys, own = [*b.state_dict()], b[0].weight
    assert share_layers(a, b, ["3", "4", "9.bias"]) == (
        "3.weight", "3.bias", "4.weight", "4.bias", "9.bias"
    )  # fmt: skip
    assert [*b.state_dict()] == keys
    assert b[3] is a[3]
    assert b[9] is not a[9]
    assert b[0].weight is own is not a[0].weight
    both = nn.ModuleList([a, b])
    parameters = list(both.parameters())
    assert len(parameters) == 2 * 12 - 5
    before = a[3].weight.detach().clone()
    x, y = batch(), batch()
    gradients = [torch.autograd.grad(m.eval()(z).square().sum(), m[3].weight)[0]
                 for m, z in ((a, x), (b, y))]  # fmt: skip
    optimizer = SGD(parameters, 0.1)
    (a(x).square().sum() + b(y).square().sum()).backward()
    optimizer.step()
    torch.testing.assert_close(
        a[3].weight.detach(), before - 0.1 * sum(gradients), rtol=1e-6, atol=1e-7
    )
    assert b[3].weight is a[3].weight


def test_blocks_and_copies_and_checkpoints() -> None:
    a, b = network("resnet18"), network("resnet18")
    later = blocks(a)[1:3]
    shared = share_layers(a, b, later)
    assert set(shared) == {name for block in later for name in block.parameters}
    assert b.layer4 is not a.layer4
    assert [b.layer4[0] is a.layer4[0], b.layer4[1] is a.layer4[1]] == [True, True]
    one, two = copy.deepcopy((a, b))
    assert one.layer4[1] is two.layer4[1] is not a.layer4[1]
    a, b = mlp(), mlp()
    share_layers(a, b, ["7"])
    kept = state(b)
    with torch.no_grad():
        b[7].weight.zero_()
    b.load_state_dict(kept)
    assert torch.equal(a[7].weight, kept["7.weight"])


def test_nested_names_are_the_outer_one() -> None:
    a, b = Trunk(), Trunk()
    inner = b.encoder.layers[0]
    kept = b.encoder
    share_layers(a, b, ["encoder", "encoder.layers.0", "encoder.layers.0.norm1.weight"])
    assert b.encoder is a.encoder
    assert kept.layers[0] is inner
    assert b.embed is not a.embed


@pytest.mark.parametrize(("change", "where", "message"), [
    (lambda b: b.__setitem__(3, nn.Linear(5, 6, bias=False)), ["0", "3"],
     "'bias' of '3' is torch.float32 .6,. on cpu in a, but not there in b"),
    (lambda b: b.__setitem__(3, nn.Linear(5, 7)), ["0", "3"],
     r"'weight' of '3' is torch.float32 \(6, 5\) on cpu in a, but torch.float32 \(7, 5\) on"),
    (lambda b: b[3].double(), ["0", "3"], "'weight' of '3' is torch.float32 .* but torch.float64"),
    (lambda b: b.__setitem__(3, nn.ReLU()), ["0", "3"], "'3' is a Linear of a, but a ReLU of b"),
    (lambda b: setattr(b[7], "weight", nn.Parameter(torch.ones(1))), ["0", "7.weight"],
     r"'7.weight' of '7.weight' is torch.float32 \(6, 6\)"),
    (lambda b: setattr(b[9], "bias", b[0].bias), ["0"],
     "'9.bias' of b is tied to a layer to be shared"),
    (lambda b: None, ["0", "10"], "called '10'"),
    (lambda b: None, [""], "a whole model can't be shared"),
])  # fmt: skip
def test_what_cannot_be_shared(change: Any, where: list[str], message: str) -> None:
    a, b = mlp(), mlp()
    change(b)
    before = [*b.named_modules()], [id(p) for p in b.parameters()]
    with pytest.raises(ValueError, match=message):
        share_layers(a, b, where)
    assert ([*b.named_modules()], [id(p) for p in b.parameters()]) == before


def test_a_model_with_itself_and_twice() -> None:
    a, b = mlp(), mlp()
    with pytest.raises(ValueError, match="a and b are one model"):
        share_layers(a, a, ["0"])
    share_layers(a, b, ["0"])
    with pytest.raises(ValueError, match="'0' is shared already"):
        share_layers(a, b, ["0"])
    with pytest.raises(TypeError, match="where has to be a sequence of names or blocks"):
        share_layers(a, b, "0")
    tied, other = Tied(), Tied()
    with pytest.raises(ValueError, match=r"'head.weight' of b is tied to a layer to be shared"):
        share_layers(tied, other, ["words"])
    share_layers(tied, other, ["words", "head"])
    assert other.head.weight is other.words.weight is tied.words.weight
