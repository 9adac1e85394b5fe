"""Blocks by depth, against the order in which networks run and gradients arrive."""

import copy
from collections import Counter
from typing import Any

import pytest
import timm
import torch
import torchvision
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchmetrics import MeanMetric
from torchvision.models._utils import IntermediateLayerGetter
from typing_extensions import override

from lightning_practices.surgery import Block, Blocks, blocks, freeze, fuse

pytestmark = pytest.mark.plain

# Number of blocks, of which the order below says the rest, and the module that outputs the classes.
NETWORKS = {
    "resnet18": (10, "fc"), "resnet50": (18, "fc"), "vit_b_16": (14, "heads"),
    "convnext_tiny": (23, "classifier"), "efficientnet_b0": (19, "classifier"),
    "mobilenet_v3_small": (15, "classifier.3"), "densenet121": (63, "classifier"),
    "swin_t": (17, "head"), "vgg11": (11, "classifier.6"), "alexnet": (8, "classifier.6"),
    "timm/resnet18": (10, "fc"), "timm/vit_tiny_patch16_224": (14, "head"),
    "timm/convnext_atto": (14, "head"), "timm/efficientnet_b0": (18, "classifier"),
}  # fmt: skip


def network(name: str, **options: Any) -> Any:
    """Return a network without weights: where they are has no say here."""
    with torch.device("meta"):
        if name.startswith("timm/"):
            return timm.create_model(name.removeprefix("timm/"), **options).eval()
        return getattr(torchvision.models, name)(weights=None, **options).eval()


def depths(found: Blocks) -> dict[str, int]:
    return {name: block.depth for block in found for name in block.parameters}


def assert_partition(model: nn.Module, found: Blocks) -> None:
    """Each parameter is in one block, and so are the outermost modules that can be."""
    assert [block.depth for block in found] == list(range(len(found)))
    names = Counter(name for block in found for name in block.parameters)
    assert names == Counter(dict.fromkeys((name for name, _ in model.named_parameters()), 1))
    owner = {id(p): depths(found)[name] for name, p in model.named_parameters()}
    inside = {name: {owner[id(p)] for p in m.parameters()} for name, m in model.named_modules()}
    for block in found:
        listed = [name for name in block.modules if inside[name]]
        whole = {name for name in inside if inside[name] == {block.depth}}
        assert set(listed) == {n for n in whole if n.rpartition(".")[0] not in whole or not n}
    bare = [name for block in found for name in block.modules if not inside[name]]
    assert Counter(bare) == Counter({
        name for name, within in inside.items()
        if not within and len(inside[name.rpartition(".")[0]]) > 1
    })  # fmt: skip


def order_of_gradients(model: Any, x: Tensor) -> list[str]:
    """Return the names of all parameters in the order in which their gradients are ready."""
    arrived: list[str] = []
    for name, p in model.named_parameters():
        p.register_post_accumulate_grad_hook(lambda _, name=name: arrived.append(name))
    model(x).sum().backward()
    return arrived


def order_of_calls(model: Any, x: Tensor) -> list[str]:
    """Return the names of all modules in the order in which they are called first."""
    called: dict[str, None] = {}
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: called.setdefault(name))
    model(x)
    return list(called)


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_are_in_the_order_of_the_network(name: str) -> None:
    model = network(name)
    found = blocks(model)
    assert (len(found), found[0].name) == NETWORKS[name]
    assert_partition(model, found)
    depth = depths(found)
    x = torch.empty(1, 3, 224, 224, device="meta")
    arrived = [depth[name] for name in order_of_gradients(copy.deepcopy(model), x)]
    assert arrived == sorted(arrived)
    assert Counter(arrived) == Counter(depth.values())
    owners = {name: [f"{name}.{p}".removeprefix(".") for p, _ in m.named_parameters(recurse=False)]
              for name, m in model.named_modules()}  # fmt: skip
    called = [depth[own] for name in order_of_calls(model, x) for own in owners[name]]
    assert called == sorted(called, reverse=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_head_is_what_outputs_the_classes(name: str) -> None:
    model = network(name, num_classes=7)
    head = blocks(model)[0]
    outputs = []
    for module in model.modules():
        module.register_forward_hook(lambda module, _, y: outputs.append((module, y)))
    y = model(torch.empty(2, 3, 224, 224, device="meta"))
    assert y.shape == (2, 7)
    giving = [module for module, output in outputs if output is y and module is not model]
    (layer,) = (module for module in giving if module._parameters)
    assert layer.out_features == 7
    inside = [model.get_submodule(name) for name in head.modules]
    assert any(layer in module.modules() for module in inside)


def test_names_of_blocks() -> None:
    expected = [f"layer{stage}.{i}" for stage in (4, 3, 2, 1) for i in (1, 0)]
    for name in ("resnet18", "timm/resnet18"):
        found = blocks(network(name))
        assert [block.name for block in found] == ["fc", *expected, "conv1"]
        assert found[-1].parameters == ("conv1.weight", "bn1.weight", "bn1.bias")
        assert found[-1].modules == ("conv1", "bn1")
    found = blocks(network("vit_b_16"))
    assert found[1].modules == ("encoder.layers.encoder_layer_11", "encoder.ln")
    assert found[-1].parameters == ("class_token", "conv_proj.weight", "conv_proj.bias")
    found = blocks(network("densenet121"))
    assert found[1].name == "features.denseblock4.denselayer16"
    assert "features.norm5" in found[1].modules


@pytest.mark.parametrize(("name", "others"), [
    ("googlenet", {"aux1", "aux2"}), ("inception_v3", {"AuxLogits"}),
])  # fmt: skip
def test_auxiliary_classifiers_are_of_the_head(name: str, others: set[str]) -> None:
    found = blocks(network(name, init_weights=False))
    assert found[0].name == "fc"
    assert {*others, "fc"} <= {*found[0].modules}
    assert found[1].name in ("inception5b", "Mixed_7c")  # and not one of its branches


# Other networks.


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(4), nn.Linear(4, 4), nn.PReLU(), nn.Dropout(), nn.Linear(4, 4),
        nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False), nn.ReLU(), nn.Linear(4, 2),
        nn.Softmax(1),
    )  # fmt: skip


def test_elements_of_a_sequence() -> None:
    model = mlp()
    found = blocks(model)
    assert_partition(model, found)
    assert [block.modules for block in found] == [
        ("7", "8", "9"), ("3", "4", "5", "6"), ("0", "1", "2")
    ]  # fmt: skip
    assert [block.name for block in found] == ["8", "4", "1"]


class Lit(LightningModule):
    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.seen = MeanMetric()
        self.backbone = backbone
        self.neck = nn.Sequential(nn.ReLU(), nn.Linear(4, 4))
        self.head = head
        self.loss = nn.CrossEntropyLoss()


class Trunk(nn.Module):
    """An encoder as people write them: other things before and after a list of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 4, 4))
        self.embed = nn.Embedding(50, 4)
        layer = nn.TransformerEncoderLayer(4, 1, 8)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(4), enable_nested_tensor=False)


class Inception(nn.Module):
    """Branches side by side: one block."""

    def __init__(self) -> None:
        super().__init__()
        self.branch1 = nn.Linear(4, 4)
        self.branch2 = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


def test_what_is_looked_into() -> None:
    model = Lit(network("resnet18"), nn.Linear(4, 2))
    found = blocks(model)
    assert_partition(model, found)
    assert [block.name for block in found][:4] == ["head", "neck", "backbone.fc",
                                                   "backbone.layer4.1"]  # fmt: skip
    assert len(found) == 12
    model = Lit(network("timm/vit_tiny_patch16_224"), nn.Linear(4, 2))
    assert [block.name for block in blocks(model)][2:5] == ["backbone.head", "backbone.blocks.11",
                                                            "backbone.blocks.10"]  # fmt: skip
    model = Lit(Trunk(), nn.Linear(4, 2))
    found = blocks(model)
    assert_partition(model, found)
    assert [block.name for block in found] == [
        "head", "neck", "backbone.encoder.layers.1", "backbone.encoder.layers.0", "backbone.embed"
    ]  # fmt: skip
    assert "backbone.encoder.norm" in found[2].modules
    assert found[4].parameters == ("backbone.position", "backbone.embed.weight")
    mixed, little = Inception(), Inception()
    mixed.branch2 = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 3))  # not of one class
    little.branch1 = nn.Linear(40, 40)  # of which the list is the smaller part
    both = nn.ModuleDict({"mixed": mixed, "little": little, "head": nn.Linear(4, 2)})
    assert [block.name for block in blocks(both)] == ["head", "little", "mixed"]
    small = nn.Sequential(nn.Linear(4, 4), Inception(), Inception(), nn.Linear(4, 2))
    assert [block.name for block in blocks(small)] == ["3", "2", "1", "0"]


def test_a_wrapped_model_is_the_model() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    compiled: Any = torch.compile(model, backend="eager")
    for whole in (compiled, nn.ModuleDict({"net": compiled}), torch.nn.DataParallel(model)):
        found = blocks(whole)
        assert_partition(whole, found)
        assert len(found) == 2
    assert blocks(compiled).of("2.weight") == blocks(compiled).of("_orig_mod.2.weight")
    assert blocks(compiled).of("2").modules == ("_orig_mod.1", "_orig_mod.2")
    residual: Any = torch.compile(network("timm/resnet18"))
    inside = nn.ModuleDict({"net": residual, "out": nn.Linear(2, 2)})
    assert [block.name for block in blocks(inside)][:3] == ["out", "net.fc", "net.layer4.1"]


def test_accelerated_and_parametrised_and_frozen_models_have_the_same_blocks() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(),
        nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()), nn.Flatten(), nn.Linear(12, 2),
    )  # fmt: skip
    before = list(blocks(model))
    assert len(before) == 4
    assert fuse(model).folded
    assert list(blocks(model)) == before
    freeze(model, before[1:])
    assert list(blocks(model)) == before
    parametrizations.weight_norm(model[0])
    assert [block.modules for block in blocks(model)] == [block.modules for block in before]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.words.weight

    @override
    def forward(self, x: Tensor) -> Any:
        return self.head(self.hidden(self.words(x)))


def test_a_shared_parameter_is_nearest_to_the_head() -> None:
    model = Tied()
    found = blocks(model)
    assert list(found) == [
        Block(0, "head", ("words", "head"), ("words.weight",)),
        Block(1, "hidden", ("hidden",), ("hidden.weight", "hidden.bias")),
    ]
    freeze(model, found[1:])
    assert model.head.weight.requires_grad


def test_one_block() -> None:
    layer = nn.Linear(2, 2)
    assert list(blocks(layer)) == [Block(0, "model", ("",), ("weight", "bias"))]


def test_further_sequences_of_torchvision() -> None:
    found = blocks(network("maxvit_t"))
    assert [block.name for block in found][1:5] == [
        "classifier.3", "blocks.3.layers.1", "blocks.3.layers.0", "blocks.2.layers.4"
    ]  # fmt: skip
    backbone = IntermediateLayerGetter(network("resnet18"), {"layer4": "out"})
    found = blocks(nn.ModuleDict({"backbone": backbone, "head": nn.Linear(2, 2)}))
    assert [block.name for block in found][:3] == ["head", "backbone.layer4.1", "backbone.layer4.0"]
