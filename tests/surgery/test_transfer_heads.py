"""New heads, and features under them."""

import copy
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim import SGD
from torchvision.models import GoogLeNet, Inception3

from lightning_practices.surgery import (
    blocks,
    feature_extractor,
    freeze,
    replace_head,
    unfreeze,
)
from tests.surgery.test_blocks import Lit, Tied, network
from tests.surgery.test_transfer_freeze import changed, modes, state

pytestmark = pytest.mark.plain

HEADS = {
    "resnet18": "fc", "vit_b_16": "heads.head", "convnext_tiny": "classifier.2",
    "efficientnet_b0": "classifier.1", "mobilenet_v3_small": "classifier.3",
    "densenet121": "classifier", "swin_t": "head", "vgg11": "classifier.6",
    "squeezenet1_1": "classifier.1", "timm/resnet18": "fc", "timm/vit_tiny_patch16_224": "head",
    "timm/convnext_atto": "head.fc", "timm/efficientnet_b0": "classifier",
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_the_classes_change_and_nothing_else(name: str) -> None:
    model = network(name)
    before = dict(model.named_parameters())
    keys = set(model.state_dict())
    assert replace_head(model, 7) == (HEADS[name],)
    assert set(model.state_dict()) == keys
    new = {key for key, p in model.named_parameters() if before[key] is not p}
    assert new == {f"{HEADS[name]}.weight", f"{HEADS[name]}.bias"}
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 7)
    if hasattr(model, "num_classes"):
        assert model.num_classes == 7


@pytest.mark.parametrize(("network", "others"), [
    (GoogLeNet, ("aux1.fc2", "aux2.fc2")), (Inception3, ("AuxLogits.fc",)),
])  # fmt: skip
def test_auxiliary_heads_too(network: Any, others: tuple[str, ...]) -> None:
    with torch.device("meta"):
        model = network(init_weights=False)
    assert replace_head(model, 7) == (*others, "fc")
    outputs = model.train()(torch.empty(2, 3, 299, 299, device="meta"))
    assert len(outputs) == len(others) + 1
    assert all(output.shape == (2, 7) for output in outputs)


def classifier() -> Any:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def test_the_new_layer_is_torchs() -> None:
    net = classifier()
    net[3] = nn.Linear(4, 2, bias=False)
    model = nn.ModuleDict({"net": net}).double()
    freeze(model, ["net"])
    torch.manual_seed(5)
    assert replace_head(model, 3) == ("net.3",)
    torch.manual_seed(5)
    expected = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    new = net[3]
    assert torch.equal(new.weight, expected.weight)
    assert new.bias is None
    assert new.training
    assert new.weight.requires_grad


def test_a_model_of_timm_keeps_its_type_and_place() -> None:
    model = Lit(nn.Linear(4, 4), timm.create_model("vit_tiny_patch16_224", depth=1).double())
    assert replace_head(model, 5) == ("head.head",)
    head: Any = model.head
    assert head.head.weight.dtype is torch.float64
    assert head.num_classes == 5


def test_all_that_a_model_of_timm_replaces() -> None:
    model: Any = timm.create_model("deit_tiny_distilled_patch16_224", depth=1)
    assert replace_head(model, 5) == ("head", "head_dist")
    outputs = model.set_distilled_training() or model.train()(torch.randn(1, 3, 224, 224))
    assert [tuple(output.shape) for output in outputs] == [(1, 5)] * 2


# A fixed extractor of features.


def test_only_the_new_head_trains() -> None:
    model = classifier()
    assert feature_extractor(model, 3) == ("3.weight", "3.bias")
    assert model(torch.randn(8, 4)).shape == (8, 3)
    before = state(model)
    optimizer = SGD(model.parameters(), 0.1, weight_decay=0.1)
    for _ in range(2):
        model.train()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    assert changed(model, before) == {"3.weight", "3.bias"}
    assert modes(model) == {"": True, "0": False, "1": False, "2": True, "3": True}
    assert len(unfreeze(model, blocks(model))) == 4


@pytest.mark.parametrize("name", ["resnet18", "timm/vit_tiny_patch16_224"])
def test_features_of_networks(name: str) -> None:
    model = network(name).train()
    trained = feature_extractor(model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(trained)
    assert trained == blocks(model)[0].parameters
    model.train()
    assert not any(m.training for b in blocks(model)[1:] for n in b.modules
                   for m in model.get_submodule(n).modules())  # fmt: skip


def test_features_with_dropout() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    feature_extractor(model, dropout=True)
    assert modes(model) == {"": True, "0": True, "1": True, "2": False, "3": True}


# What is refused.


class Ends(nn.Module):
    def __init__(self, **last: nn.Module) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        for name, module in last.items():
            setattr(self, name, module)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Ends(head=nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))),
         r"the head ends in 'head.1', a BatchNorm1d, but expected nn.Linear"),
        (Ends(head=nn.GRU(4, 2)), "the head ends in 'head', a GRU, but expected nn.Linear"),
        (Ends(head=nn.Conv2d(4, 4, 3, groups=4)), "the head is a Conv2d of 4 groups, .* of 4, but"),
        (Ends(head=parametrizations.weight_norm(nn.Linear(4, 2))), "parametrized: remove the"),
        (Ends(heads=nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 3)})),
         "the head has several outputs, 'a', 'b' of 'heads': replace them"),
        (Tied(), "the head ends in 'head', whose weight is shared with Embedding"),
        (nn.Linear(4, 2), "the model is itself a Linear: make a new one"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_heads_that_are_something_else(model: nn.Module, message: str) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        replace_head(model, 3)
    assert changed(model, before) == set()


@pytest.mark.parametrize("classes", [0, -1, 2.0, True, "2"])
def test_no_number_of_classes(classes: Any) -> None:
    refused = pytest.raises((ValueError, TypeError), match="num_classes has to be a whole number")
    with refused:
        replace_head(classifier(), classes)


def test_nothing_below_the_head() -> None:
    with pytest.raises(ValueError, match="Linear is one block, 'model', with nothing below the"):
        feature_extractor(nn.Linear(2, 2), 3)


def example(model: Any) -> Tensor:
    y: Tensor = model(torch.randn(2, 3, 64, 64))
    return y


def test_a_real_network_learns_new_classes() -> None:
    model: Any = torchvision.models.resnet18(weights=None)
    feature_extractor(model, 3)
    before = state(model)
    optimizer = SGD(model.parameters(), 0.1)
    nn.functional.cross_entropy(example(model.train()), torch.tensor([0, 2])).backward()
    optimizer.step()
    assert changed(model, before) == {"fc.weight", "fc.bias"}
