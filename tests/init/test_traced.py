"""What a call of the model, or its structure alone, tells of each layer."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import VisionTransformer, resnet18, resnet50
from torchvision.models.swin_transformer import SwinTransformer

from lightning_practices.init import InitReport, initialize

pytestmark = pytest.mark.plain


class Calls(nn.Module):
    """Two layers with a function of the user's between them."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))  # type: ignore[no-any-return]


def activations(report: InitReport) -> dict[str, str]:
    return {one.names[0]: one.activation for one in report.initialized}


def glu(x: Tensor) -> Tensor:
    a, b = torch.cat([x, x], -1).chunk(2, -1)
    return a * b.sigmoid()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (functional.relu, "relu"),
        (torch.relu_, "relu"),
        (lambda x: x.clamp(min=0), "relu"),
        (lambda x: functional.leaky_relu(x, 0.3), "leaky_relu(0.3)"),
        (lambda x: functional.leaky_relu(x, negative_slope=0.3), "leaky_relu(0.3)"),
        (lambda x: functional.elu(x, 0.7), "elu(0.7)"),
        (functional.relu6, "relu6"),
        (lambda x: functional.hardtanh(x, 0, 6), "relu6"),
        (functional.hardtanh, "hardtanh"),
        (torch.tanh, "tanh"),
        (lambda x: x.sigmoid(), "sigmoid"),
        (lambda x: x * torch.sigmoid(x), "silu"),
        (lambda x: x * torch.sigmoid(1.702 * x), "silu"),
        (lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))), "gelu"),
        (lambda x: x * 0.5 * (1.0 + torch.tanh(0.8 * (x + 0.0447 * x**3))), "gelu"),
        (lambda x: x * torch.tanh(functional.softplus(x)), "mish"),
        (lambda x: x * functional.relu6(x + 3) / 6, "hardswish"),
        (lambda x: functional.celu(
            functional.dropout(functional.layer_norm(x, (4,)), 0.1).view(-1, 4)), "elu(1)"),
        (lambda x: x + torch.relu(x), "relu"),
        (lambda x: x.unsqueeze(0).squeeze(0), "linear"),
        (lambda x: x.softmax(-1), "linear"),
        (glu, "sigmoid"),
    ],
)  # fmt: skip
def test_functional_calls(function: Any, expected: str) -> None:
    report = initialize(Calls(function), batch=torch.randn(3, 4))
    assert activations(report) == {"first.weight": expected, "last.weight": "linear"}
    assert all(one.why == "traced" for one in report.initialized)


def test_without_a_sign_a_hidden_layer_is_taken_for_relu() -> None:
    hidden, last = initialize(Calls(torch.tanh)).initialized
    assert (hidden.scheme, hidden.activation) == ("kaiming_normal", "relu")
    assert "no activation found" in hidden.why
    assert (last.scheme, last.activation) == ("xavier_normal", "linear")


def test_a_matrix_product_is_a_layer_too() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.weight = nn.Linear(4, 4), nn.Parameter(torch.ones(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.first(x) @ self.weight)

    report = initialize(Product(), batch=torch.randn(3, 4))
    assert activations(report) == {"first.weight": "linear"}
    assert report.kept[0].names == ("weight",)


@pytest.mark.parametrize("batch", ["tensor", "list", "mapping"])
def test_kinds_of_batches(batch: str) -> None:
    x = torch.randn(3, 4)
    given: Any = {"tensor": x, "list": [x, torch.zeros(3)], "mapping": {"x": x}}[batch]
    assert activations(initialize(Calls(torch.tanh), batch=given))["first.weight"] == "tanh"
    model: Any = Calls(torch.tanh)
    before = model.first.weight.clone()
    with pytest.raises(TypeError, match="batch has to be a tensor, a list that begins with one"):
        initialize(model, batch="x")
    assert torch.equal(model.first.weight, before)


@pytest.mark.parametrize(("make", "last"), [(resnet18, "bn2"), (resnet50, "bn3")])
@pytest.mark.parametrize("traced", [False, True])
def test_last_norms_of_residual_networks(make: Any, last: str, traced: bool) -> None:
    model: Any = make()
    report = initialize(model, batch=torch.randn(1, 3, 32, 32) if traced else None)
    scales = {
        name: bool(module.weight.eq(0).all())
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    assert any("downsample" in name for name in scales)
    expected = {name: name.endswith(last) and name.startswith("layer") for name in scales}
    assert scales == expected
    assert {f"{name}.weight" for name, is_last in expected.items() if is_last} == {*report.zeroed}
    kinds = {one.activation for one in report.initialized if one.names != ("fc.weight",)}
    assert kinds == {"relu"}
    # A block without a downsample is the identity.
    block = model.layer1[1].eval()
    x = torch.randn(2, block.conv1.in_channels, 8, 8).relu()
    assert torch.equal(block(x), x)


def test_a_named_scheme_leaves_scales_at_one() -> None:
    model: Any = resnet18()
    assert initialize(model, "kaiming_normal").zeroed == []
    assert model.layer1[0].bn2.weight.eq(1).all()


class Bottle(nn.Module):
    """A residual block; ``place`` says where the norm stands."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.LayerNorm(6)
        self.short = nn.Linear(6, 6)
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        if self.place == "before the addition":
            return torch.relu(x + functional.dropout(self.norm(self.b(self.a(x).relu())), 0.1))
        if self.place == "after the addition":
            return self.norm(x + self.b(self.a(x).relu()))  # type: ignore[no-any-return]
        if self.place == "two branches alike":
            return self.norm(self.a(x)) + self.b(x)  # type: ignore[no-any-return]
        if self.place == "a short branch with an activation":
            return self.norm(self.b(self.a(x).relu())) + self.short(x).relu()  # type: ignore[no-any-return]
        if self.place == "a projected shortcut":
            return self.norm(self.b(self.a(x).relu())) + self.short(x)  # type: ignore[no-any-return]
        return x + self.b(self.a(self.norm(x)).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("place", "zeroed"),
    [
        ("before the addition", ["0.norm.weight", "1.norm.weight"]),
        ("after the addition", []),
        ("at the start of the branch", []),
        ("two branches alike", []),
        ("a short branch with an activation", []),
        ("a projected shortcut", ["0.norm.weight", "1.norm.weight"]),
    ],
)
def test_only_norms_before_the_addition_become_zero(place: str, zeroed: list[str]) -> None:
    model: Any = nn.Sequential(Bottle(place), Bottle(place))
    assert initialize(model, batch=torch.randn(3, 6)).zeroed == zeroed


def transformer(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("traced", [False, True])
def test_transformers(norm_first: bool, traced: bool) -> None:
    model = transformer(norm_first)
    batch = torch.randn(2, 5, 16) if traced else None
    report = initialize(model, batch=batch, generator=torch.Generator().manual_seed(0))
    assert report.zeroed == []
    cut = 0.8796  # the standard deviation of a normal cut at two of its deviations
    for name, p in model.named_parameters():
        if p.dim() == 2:
            is_end = "out_proj" in name or "linear2" in name
            std = 0.02 / math.sqrt(6) if is_end else 0.02
            assert p.abs().max() <= 2 * std
            error = 5 / math.sqrt(2 * p.numel())
            assert p.double().std().item() == pytest.approx(cut * std, rel=error)
        elif "bias" in name:
            assert not p.any()


def test_vision_transformers() -> None:
    tiny: dict[str, Any] = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2,
                            "hidden_dim": 16, "mlp_dim": 32}  # fmt: skip
    x = torch.randn(1, 3, 32, 32)
    for model in (
        VisionTransformer(**tiny),
        SwinTransformer([4, 4], 8, [1, 1], [2, 2], [2, 2]),
    ):
        read, traced = initialize(model), initialize(model, batch=x)
        ends = [
            {one.names for one in report.initialized if "sqrt(4)" in one.why}
            for report in (read, traced)
        ]
        assert len(ends[0]) == 4
        assert ends[0] == ends[1]
        tokens = [one for one in traced.initialized if one.why == "a token or position"]
        assert len(tokens) == 2
        assert traced.kept == []


def test_models_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 2, "intermediate_size": 64}  # fmt: skip
    gpt2 = transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=16, bos_token_id=1,
        eos_token_id=1,
    )  # fmt: skip
    models = [
        transformers.GPT2LMHeadModel(gpt2),
        transformers.BertModel(transformers.BertConfig(**small)),
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**small)),
    ]
    ids = {"input_ids": torch.randint(0, 50, (2, 7))}
    for model in models:
        for batch in (None, ids):
            report = initialize(model, batch=batch)
            ends = [one.names[0] for one in report.initialized if "sqrt(4)" in one.why]
            assert len(ends) == 4, (type(model), batch, ends)
            assert {one.scheme for one in report.initialized} == {"trunc_normal"}


def test_models_of_timm() -> None:
    timm = pytest.importorskip("timm")
    x = torch.randn(1, 3, 64, 64)
    for name in ("resnet18", "mobilenetv3_small_050", "convnext_atto"):
        report = initialize(timm.create_model(name), batch=x)
        assert {one.why for one in report.initialized} == {"traced"}
        assert report.initialized[-1].activation == "linear"
        assert bool(report.zeroed) == (name != "convnext_atto")


def test_the_trace_leaves_the_model_as_it_was() -> None:
    class Counting(nn.Module):
        seen: Tensor
        last: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))
            self.register_buffer("last", torch.zeros(2))
            self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            self.last = x[0]
            return self.drop(self.norm(x) + torch.rand(4))  # type: ignore[no-any-return]

    model: Any = nn.Sequential(nn.Linear(4, 4), Counting())
    model[1].eval()
    kept, before = model[1].last, {n: v.clone() for n, v in model[1].state_dict().items()}
    state = torch.get_rng_state()
    initialize(model, modules=["0"], batch=torch.randn(3, 4, generator=torch.Generator()),
               generator=torch.Generator())  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state)
    assert model[1].last is kept
    assert all(torch.equal(v, before[n]) for n, v in model[1].state_dict().items())
    assert model[0].training
    assert not model[1].training
    assert not model[1].drop.training
