"""Which weights are decayed, and at which rate each layer learns."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers.layer_scale import LayerScale
from timm.layers.norm import LayerNorm2d as TimmLayerNorm2d
from timm.layers.norm import RmsNorm
from timm.layers.norm_act import BatchNormAct2d
from timm.optim._param_groups import param_groups_layer_decay
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim import AdamW
from torchvision.models import VisionTransformer, resnet18
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import FrozenBatchNorm2d

from lightning_practices import nn as fused
from lightning_practices.optim import decayed_weights, layer_depths, parameter_groups


def vision_transformer() -> nn.Module:
    model: nn.Module = VisionTransformer(
        32, 16, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16
    )
    return model


def timm_transformer(**options: Any) -> nn.Module:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3, **options
    )
    assert isinstance(model, nn.Module)
    return model


def names_in(groups: list[dict[str, Any]], model: nn.Module) -> dict[str, list[str]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {group["name"]: [names[id(p)] for p in group["params"]] for group in groups}


# Which weights.


def test_a_residual_network() -> None:
    model = resnet18()
    expected = {"conv1.weight", "fc.weight"}
    for stage in range(1, 5):
        expected |= {f"layer{stage}.{i}.conv{j}.weight" for i in (0, 1) for j in (1, 2)}
    expected |= {f"layer{stage}.0.downsample.0.weight" for stage in (2, 3, 4)}
    weights = decayed_weights(model)
    assert weights.keys() == expected
    assert all(weights[name] is p for name, p in model.named_parameters() if name in expected)


def test_vision_transformers() -> None:
    layers = [f"encoder.layers.encoder_layer_{i}." for i in (0, 1)]
    inner = ("self_attention.in_proj_weight", "self_attention.out_proj.weight",
             "mlp.0.weight", "mlp.3.weight")  # fmt: skip
    assert decayed_weights(vision_transformer()).keys() == {
        "conv_proj.weight", "heads.head.weight",
        *(layer + name for layer in layers for name in inner),
    }  # fmt: skip
    inner = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    expected = {f"blocks.{i}.{name}" for i in (0, 1) for name in inner}
    expected |= {"patch_embed.proj.weight", "head.weight"}
    model = timm_transformer(init_values=0.1, reg_tokens=2)
    assert decayed_weights(model).keys() == expected
    inside = decayed_weights(nn.ModuleDict({"net": model}))
    assert inside.keys() == {f"net.{name}" for name in expected}


class RootMeanSquareNorm(nn.Module):
    """A norm that torch doesn't know."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))
        self.bias = nn.Parameter(torch.zeros(3))


class Own(nn.Module):
    def __init__(self, **parameters: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in parameters.items():
            setattr(self, name, nn.Parameter(torch.ones(shape)))


NORMS: list[nn.Module] = [
    nn.BatchNorm2d(3), nn.SyncBatchNorm(3), nn.InstanceNorm1d(3, affine=True), nn.GroupNorm(1, 3),
    nn.LayerNorm((2, 3)), nn.RMSNorm((2, 3)), fused.LayerNorm((2, 3)), fused.BatchNorm1d(3),
    LayerNorm2d(3), RootMeanSquareNorm(), TimmLayerNorm2d(3), BatchNormAct2d(3),
    RmsNorm(3),
]  # fmt: skip


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: type(norm).__name__)
def test_norms_of_every_kind(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(2, 2), norm)
    assert [*decayed_weights(model, ["norm"])] == ["0.weight", "0.bias"]
    assert [*decayed_weights(model)] == ["0.weight"]


SCALES: list[nn.Module] = [
    nn.PReLU(), nn.PReLU(3), LayerScale(3), Own(layer_scale=(3, 1, 1)), Own(x=(3,)),
    Own(logit_scale=()),
]  # fmt: skip
BIASES: list[nn.Module] = [Own(relative_position_bias_table=(4, 3)), Own(attention_biases=(4, 3))]
EMBEDDINGS: list[nn.Module] = [
    nn.Embedding(3, 2), nn.EmbeddingBag(3, 2), Own(cls_token=(1, 1, 3), pos_embed=(1, 2, 3)),
    Own(class_token=(1, 1, 3)), Own(pos_embedding=(1, 2, 3)), Own(position_embeddings=(1, 2, 3)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "module"),
    [(kind, module) for kind, modules in
     {"norm": SCALES, "bias": BIASES, "embedding": EMBEDDINGS}.items() for module in modules],
    ids=str,
)  # fmt: skip
def test_each_kind_by_itself(kind: str, module: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(2, 2), module)
    assert [name for name in decayed_weights(model, [kind]) if name.startswith("1.")] == []
    others = [other for other in ("norm", "bias", "embedding") if other != kind]
    names = [name for name, _ in model.named_parameters() if name.startswith("1.")]
    assert [name for name in decayed_weights(model, others) if name.startswith("1.")] == names


class Says(Own):
    def no_weight_decay(self) -> set[str]:
        return {"latent", "inner.*"}


def test_what_a_module_itself_says() -> None:
    module = Says(latent=(4, 3), other=(4, 3))
    module.inner = nn.Linear(2, 2)
    model = nn.Sequential(module, Own(latent=(4, 3)))
    assert [*decayed_weights(model)] == ["0.other", "1.latent"]
    assert "0.latent" in decayed_weights(model, ["norm", "bias"])


def test_biases_are_not_scales() -> None:
    model = nn.Sequential(nn.MultiheadAttention(4, 2, add_bias_kv=True), nn.LSTM(4, 2))
    weights = ["in_proj_weight", "out_proj.weight"]
    expected = [f"0.{name}" for name in weights] + ["1.weight_ih_l0", "1.weight_hh_l0"]
    assert [*decayed_weights(model, ["bias"])] == [*decayed_weights(model)] == expected
    assert len(decayed_weights(model, ["norm"])) == len([*model.parameters()])
    assert len(decayed_weights(model, [])) == len([*model.parameters()])


def test_linear_weights_of_one_row_are_weights() -> None:
    model = nn.Sequential(nn.Linear(3, 1), nn.Conv2d(1, 4, 1), nn.Conv1d(4, 4, 1, groups=4))
    assert [*decayed_weights(model)] == ["0.weight", "1.weight", "2.weight"]


def test_patterns() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert [*decayed_weights(model, ["1.*"])] == ["0.weight", "0.bias"]
    assert [*decayed_weights(model, ["bias", "?.weight"])] == []
    wrapped: Any = torch.compile(model)
    assert [*decayed_weights(wrapped, ["1.*", "bias"])] == ["0.weight"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, 2)
        self.head = nn.Linear(2, 5)
        self.words = nn.Embedding(5, 2)
        self.words.weight = self.head.weight
        self.again = self.hidden


def test_a_shared_parameter_is_one_and_spared_if_somewhere() -> None:
    model = Tied()
    assert [*decayed_weights(model)] == ["hidden.weight"]
    assert [*decayed_weights(model, ["bias"])] == ["hidden.weight", "head.weight"]
    assert [*decayed_weights(model, ["bias", "again.*"])] == ["head.weight"]
    assert names_in(parameter_groups(model), model) == {
        "decay": ["hidden.weight"],
        "no_decay": ["hidden.bias", "head.weight", "head.bias"],
    }


def test_parametrised_weights() -> None:
    embedding, norm = nn.Embedding(3, 2), nn.LayerNorm((2, 3))
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(2, 2)),
        parametrizations.spectral_norm(embedding),
        parametrizations.orthogonal(norm),
        parametrizations.weight_norm(nn.Linear(2, 2), "weight"),
    )
    weights = [f"{i}.parametrizations.weight.original{j}" for i in (0, 3) for j in (0, 1)]
    assert [*decayed_weights(model)] == weights


# In groups.


def test_groups() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    for p in model[0].parameters():
        p.requires_grad_(False)  # to be unfrozen
    decayed, spared = parameter_groups(model, 0.1)
    assert decayed == {"params": [model[0].weight, model[2].weight], "name": "decay",
                       "weight_decay": 0.1}  # fmt: skip
    others = [model[0].bias, *model[1].parameters(), model[2].bias]
    assert spared == {"params": others, "name": "no_decay", "weight_decay": 0.0}
    plain = parameter_groups(model)
    assert "weight_decay" not in plain[0]
    assert plain[1]["weight_decay"] == 0.0
    assert not any("lr" in group for group in plain)
    assert [group["lr"] for group in parameter_groups(model, lr=0.5)] == [0.5, 0.5]
    assert [group["name"] for group in parameter_groups(model, no_decay=[])] == ["decay"]


def test_names_stay_in_the_optimizers_state() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    made = [AdamW(parameter_groups(model, 0.1, layer_decay=0.5, lr=1e-3)) for _ in range(2)]
    for group in made[1].param_groups:
        group["name"] = "lost"
    made[1].load_state_dict(made[0].state_dict())
    names = [group["name"] for group in made[1].param_groups]
    assert names == ["layer_0_decay", "layer_0_no_decay", "layer_1_decay", "layer_1_no_decay"]


def test_a_step_is_that_of_the_formula() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)).double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rates = {"0": 0.1 * 0.5, "1": 0.1 * 0.5, "2": 0.1}
    optimizer = AdamW(parameter_groups(model, 0.3, layer_decay=0.5, lr=0.1))
    x = torch.randn(8, 3, dtype=torch.float64)
    model(x).square().sum().backward()
    optimizer.step()
    for name, p in model.named_parameters():
        assert p.grad is not None
        lr, decay = rates[name[0]], 0.3 if name in ("0.weight", "2.weight") else 0.0
        mean, square = 0.1 * p.grad / (1 - 0.9), 0.001 * p.grad**2 / (1 - 0.999)
        expected = before[name] * (1 - lr * decay) - lr * mean / (square.sqrt() + 1e-8)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-14)


# By layer.


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.stem = nn.Linear(2, 2)
        self.stages = nn.Sequential(
            nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)),
            nn.TransformerEncoderLayer(2, 1, 2),
        )
        self.blocks = nn.ModuleList([nn.Linear(2, 2)])
        self.loss = nn.CrossEntropyLoss()


def depths_by_name(model: nn.Module) -> dict[str, int]:
    names = {p: name for name, p in model.named_parameters()}
    return {names[p]: depth for p, depth in layer_depths(model).items()}


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: nn.ModuleDict({"a": m}), nn.Sequential])
def test_layers_are_children_and_elements(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = Backbone()
    names = {p: name for name, p in model.named_parameters()}
    depths = {names[p]: depth for p, depth in layer_depths(wrap(model)).items()}
    expected = {"scale": 4, "stem": 4, "stages.0.0": 3, "stages.0.2": 2, "stages.1": 1, "blocks": 0}
    assert depths.keys() == set(names.values())
    for name, depth in depths.items():
        (right,) = (d for prefix, d in expected.items() if name.startswith(prefix))
        assert depth == right, name


def test_a_residual_network_by_layer() -> None:
    depths = depths_by_name(resnet18())
    assert depths["conv1.weight"] == depths["bn1.bias"] == 9
    assert depths["layer1.0.conv2.weight"] == 8
    assert depths["layer4.1.conv1.weight"] == 1
    assert depths["fc.weight"] == 0


@pytest.mark.parametrize("inside", [False, True])
def test_timms_layers(inside: bool) -> None:
    model = timm_transformer()
    whole = nn.ModuleDict({"net": model}) if inside else model
    mine = parameter_groups(whole, 0.05, layer_decay=0.75, lr=2.0)
    theirs = param_groups_layer_decay(
        model, 0.05, model.no_weight_decay(), layer_decay=0.75  # type: ignore[operator]
    )  # fmt: skip
    expected = {
        id(p): (2.0 * group["lr_scale"], group["weight_decay"])
        for group in theirs
        for p in group["params"]
    }
    got = {id(p): (group["lr"], group["weight_decay"]) for group in mine for p in group["params"]}
    assert got == expected
    assert len({lr for lr, _ in got.values()}) == 4


def test_a_model_of_timm_beside_a_head() -> None:
    model = nn.ModuleDict({"net": timm_transformer(), "head": nn.Linear(2, 2)})
    depths = depths_by_name(model)
    assert depths["head.weight"] == 0
    assert depths["net.head.weight"] == 1
    assert depths["net.norm.weight"] == depths["net.blocks.1.mlp.fc1.weight"] == 2
    assert depths["net.blocks.0.mlp.fc1.weight"] == 3
    assert depths["net.pos_embed"] == 4


def test_shared_ones_are_nearest_to_the_output() -> None:
    depths = depths_by_name(Tied())
    assert depths == {"hidden.weight": 2, "hidden.bias": 2, "head.weight": 0, "head.bias": 1}
    groups = parameter_groups(Tied(), layer_decay=0.5, lr=1.0)
    assert [(group["name"], group["lr"]) for group in groups] == [
        ("layer_0_decay", 0.25), ("layer_0_no_decay", 0.25), ("layer_1_no_decay", 0.5),
        ("layer_2_no_decay", 1.0),
    ]  # fmt: skip


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"no_decay": ["norm", "haed.*"]}, r"'haed.\*' is none of 'norm', 'bias', .* are: '0.weig"),
        (
            {"no_decay": "norm"},
            r"no_decay has to be a list of names, as in \['norm'\], but got 'norm'",
        ),
        ({"no_decay": [nn.Linear]}, "no_decay has to be a list of names"),
        (
            {"weight_decay": -0.1},
            "weight_decay has to be a finite number, at least 0, but got -0.1",
        ),
        ({"weight_decay": float("nan")}, "weight_decay has to be a finite number"),
        ({"lr": float("inf")}, "lr has to be a finite number, at least 0, but got inf"),
        (
            {"layer_decay": 0.0, "lr": 1.0},
            "layer_decay has to be a finite number, above 0 and at most 1, but got 0.0",
        ),
        ({"layer_decay": 1.5, "lr": 1.0}, "layer_decay has to be a finite number, above 0 and"),
        ({"layer_decay": 0.5}, "layer_decay multiplies the rate of the last layer: give lr"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        parameter_groups(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), **arguments)


def test_models_without_parameters_or_shapes_or_layers() -> None:
    for empty in (nn.ReLU(), nn.Sequential(nn.ReLU()), FrozenBatchNorm2d(3)):
        with pytest.raises(ValueError, match=f"{type(empty).__name__} has no parameters"):
            parameter_groups(empty)
    with pytest.raises(ValueError, match=r"0.weight of Sequential has no shape yet \(Uninitial"):
        parameter_groups(nn.Sequential(nn.LazyLinear(2)))
    with pytest.raises(ValueError, match="from layer to layer, but Sequential is one layer"):
        parameter_groups(nn.Sequential(nn.Linear(2, 2)), layer_decay=0.5, lr=1.0)
    (decayed, _) = parameter_groups(nn.Sequential(nn.Linear(2, 2)), layer_decay=1.0, lr=1.0)
    assert decayed["name"] == "layer_0_decay"


def test_nothing_changes() -> None:
    model = timm_transformer()
    before: dict[str, Tensor] = {name: p.clone() for name, p in model.named_parameters()}
    parameter_groups(model, 0.1, layer_decay=0.5, lr=1.0)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_what_zero_3_has_partitioned() -> None:
    """DeepSpeed isn't needed: parameters get its attributes, and lose their elements."""

    def mark(model: nn.Module) -> nn.Module:
        for p in model.parameters():
            p.ds_id, p.ds_tensor, p.ds_shape = 0, p.detach().flatten(), p.shape  # type: ignore[attr-defined]
        return model

    plain = nn.Linear(3, 2)
    whole = mark(nn.Linear(3, 2))  # gathered, or small enough to stay whole
    assert names_in(parameter_groups(whole), whole) == names_in(parameter_groups(plain), plain)
    for p in whole.parameters():
        p.data = torch.empty(0)
    for function in (decayed_weights, parameter_groups):
        with pytest.raises(ValueError, match=r"weight of Linear is partitioned .*zero.Gathered"):
            function(whole)
