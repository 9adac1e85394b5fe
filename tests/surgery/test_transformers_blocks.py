"""Surgery on the transformer blocks that transformers defines in each model's file."""

import copy
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._pytree import tree_map_only

import lightning_kernels
from lightning_practices.surgery import fuse, unfuse
from tests.surgery.clients import needs
from tests.surgery.models import assert_equal
from tests.surgery.transformers_models import (
    KERNELS,
    MODELS,
    Calls,
    batch,
    build,
    classes,
    count_ends,
    fused,
    near,
    run,
)

pytestmark = [
    needs("transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
kernel, plain = pytest.mark.kernel, pytest.mark.plain
FOLDING = [kind for kind, (*_, folds) in MODELS.items() if folds]
# Without models with the same code. Linear attention magnifies the rounding of all norms.
COMPUTED = sorted({*FOLDING} - {"roberta", "xlm-roberta", "electra", "camembert", "layoutlm",
                                "mistral", "qwen2", "qwen3", "pegasus", "hubert", "deit",
                                "qwen3_next"})  # fmt: skip


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return count_ends(monkeypatch)


@plain
@pytest.mark.parametrize("kind", MODELS)
def test_a_model_is_folded_and_restored(kind: str) -> None:
    model = build(kind)
    kinds, keys, text = classes(model), list(model.state_dict()), repr(model)
    report = fuse(model)
    assert len(report.folded) == MODELS[kind][2]
    for fold in report.folded:
        norm = model.get_submodule(fold.names[0])
        assert fold.chain.endswith(f"add + {type(norm).__name__}")
    assert not report.skipped
    assert (list(model.state_dict()), repr(model)) == (keys, text)
    again = fuse(model)
    assert not again.replaced
    assert not again.folded
    assert unfuse(model).folded == report.folded
    assert classes(model) == kinds


def test_what_the_report_says() -> None:
    chains = {
        "bert": "Dropout + add + LayerNorm",
        "bart": "Dropout + add + LayerNorm",
        "distilbert": "add + LayerNorm",
        "llama": "add + LlamaRMSNorm",
        "dinov2": "Dinov2LayerScale + Dinov2DropPath + add + LayerNorm",
        "segformer": "Dropout + SegformerDropPath + add + LayerNorm",
    }
    for kind, chain in chains.items():
        assert fuse(build(kind)).folded[-1].chain == chain
    (fold, *_) = fuse(build("bert")).folded
    assert fold.names == ("encoder.layer.0.attention.output.LayerNorm",)
    assert fold.norm == "torch.nn.LayerNorm"
    assert fold.block == "transformers.models.bert.modeling_bert.BertSelfOutput"


@plain
@pytest.mark.parametrize("kind", FOLDING)
def test_without_kernels_it_is_the_original(kind: str) -> None:
    model = build(kind, 0.2)
    other = fused(model)
    for training in (True, False):
        assert_equal(run(other.train(training)), run(model.train(training)))


# Granite's random weights amplify rounding, so that the errors of one draw compare by chance.
@kernel
@pytest.mark.parametrize("kind", [kind for kind in COMPUTED if kind != "granite"])
def test_results_and_gradients_are_as_right_as_before(kind: str, device: str, ends: Calls) -> None:
    model = build(kind, device=device)
    other = fused(model)
    ours = run(other.train())
    assert len(ends) == (6 if kind == "albert" else MODELS[kind][2])  # ALBERT shares layers
    wide = copy.deepcopy(model.train()).double()
    near(ours, run(model), run(wide))
    with torch.no_grad():
        near(*([each.eval()(**batch(each))[0]] for each in (other, model, wide)))


@kernel
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, torch.bfloat16) for kind in ("bert", "deberta", "llama", "gemma2", "olmo")),
        *((kind, torch.float16) for kind in ("gpt2", "dinov2", "whisper", "bart")),
    ],
)
def test_half_precision_is_as_right_as_before(
    kind: str, dtype: torch.dtype, device: str, ends: Calls
) -> None:
    model = build(kind, device=device).to(dtype)
    ours = run(fused(model))
    assert len(ends) == MODELS[kind][2]
    near(ours, run(model), run(copy.deepcopy(model).double()))
    assert ours[0].dtype == dtype


_ANGLES = torch.linspace(0, 3, 48).view(12, 4)
_ROWS = {"cu_seqlens": torch.tensor([0, 5, 12]).int(),
         "position_embeddings": (_ANGLES.cos(), _ANGLES.sin())}  # fmt: skip
_TURNS = {
    "position_embeddings": tuple(t[:5].expand(2, 5, 4) for t in (_ANGLES.cos(), _ANGLES.sin()))
}
_WIDTHS = {"hidden_size": 8, "num_heads": 2, "num_attention_heads": 2, "intermediate_size": 16}
_DETR = {"encoder_hidden_dim": 8, "encoder_attention_heads": 2, "encoder_ffn_dim": 16,
         "dropout": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0}  # fmt: skip
# Blocks of models that need more than tokens or images: the file, the block, its configuration, its
# options, the shape of its input and its other arguments.
BLOCKS: tuple[tuple[str, str, str, dict[str, Any], tuple[int, ...], Any], ...] = (
    ("rt_detr", "RTDetrEncoderLayer", "RTDetrConfig", _DETR, (2, 5, 8), {"attention_mask": None}),
    ("qwen2_vl", "Qwen2VLVisionBlock", "Qwen2VLVisionConfig",
     {"embed_dim": 8, "num_heads": 2, "mlp_ratio": 2}, (12, 8), _ROWS),
    ("qwen2_5_vl", "Qwen2_5_VLVisionBlock", "Qwen2_5_VLVisionConfig", _WIDTHS, (12, 8), _ROWS),
    ("glm4v", "Glm4vTextDecoderLayer", "Glm4vTextConfig",
     {**_WIDTHS, "num_key_value_heads": 1, "head_dim": 4}, (2, 5, 8), _TURNS),
    ("blip", "BlipEncoderLayer", "BlipVisionConfig", _WIDTHS, (2, 5, 8), {}),
    ("pp_ocrv5_mobile_rec", "PPOCRV5MobileRecBlock", "PPOCRV5MobileRecConfig", {}, (2, 5, 120), {}),
)  # fmt: skip


@kernel
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: str(block[1]))
def test_a_block_is_as_right_as_before(block: Any, device: str, ends: Calls) -> None:
    file, name, configuration, options, shape, given = block
    package = f"transformers.models.{file}"
    config = getattr(import_module(f"{package}.configuration_{file}"), configuration)(**options)
    config._attn_implementation = "eager"
    cls = getattr(import_module(f"{package}.modeling_{file}"), name)
    layer = (cls(config, 0) if "Decoder" in name else cls(config)).to(device)
    given = tree_map_only(Tensor, lambda tensor: tensor.to(device), given)
    x, results = torch.randn(shape, device=device), []
    for each in (fused(layer), layer, copy.deepcopy(layer).double()):
        leaf = x.to(next(each.parameters()).dtype).requires_grad_()
        y = each(leaf, **given)
        gradients = torch.autograd.grad(y.square().sum(), [leaf, *each.parameters()])
        results.append([y.detach(), *gradients])
    assert len(ends) == (2 if file == "rt_detr" else 1)
    near(*results)


@kernel
@pytest.mark.parametrize("kind", ["llama", "olmo", "gpt2", "dinov2", "whisper", "bert", "mixtral"])
def test_autocast(kind: str, device: str, ends: Calls) -> None:
    model = build(kind, device=device)
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        ours, theirs = run(fused(model)), run(model)
    # The experts of Mixtral don't cast what they get, so its norms keep float32.
    assert len(ends) == (0 if kind == "mixtral" else MODELS[kind][2])
    exact = run(copy.deepcopy(model).double())
    mine, plain, truth = (
        torch.cat([tensor.double().flatten() for tensor in tensors])
        for tensors in (ours, theirs, exact)
    )
    assert (mine - truth).norm() <= 1.5 * (plain - truth).norm()
    assert ours[0].dtype == theirs[0].dtype


@kernel
@pytest.mark.parametrize(
    "kind", ["bert", "vit", "phi3", "dinov2", "segformer", "wav2vec2", "swin", "qwen3_next"]
)
@pytest.mark.parametrize("training", [True, False])
def test_what_is_dropped(
    kind: str, training: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layers one by one draw other words, so they stand in for the kernel here."""
    _one_by_one(monkeypatch, lightning_kernels.dropout)
    other = fused(build(kind, 0.3, device)).train(training)
    ours = run(other)
    _without_blocks(monkeypatch, other)
    for mine, right in zip(ours, run(other), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)


@kernel
@pytest.mark.parametrize("kind", ["bart", "mbart", "whisper", "opt", "opt-350m", "biogpt"])
@pytest.mark.parametrize("training", [True, False])
def test_what_is_dropped_by_a_function(
    kind: str, training: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _one_by_one(monkeypatch, lambda x, p: F.dropout(x, p))
    other = fused(build(kind, 0.3, device)).train(training)
    ours = run(other)
    _without_blocks(monkeypatch, other)
    for mine, right in zip(ours, run(other), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)


def _one_by_one(monkeypatch: pytest.MonkeyPatch, dropout: Callable[[Tensor, Any], Tensor]) -> None:
    """Let dropout, layer scale, stochastic depth, addition and norm run one after another."""

    def add(
        norm: Any, x: Tensor, residual: Tensor, shape: Any, *parameters: Any, eps: float,
        p: float = 0.0, drop_path: float = 0.0, layer_scale: Any = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        x = dropout(x, p) if p else x
        x = x if layer_scale is None else x * layer_scale
        z = residual + lightning_kernels.stochastic_depth(x, drop_path, "row")
        return norm(z, shape, *parameters, eps), z

    for name, norm in zip(KERNELS, ("layer_norm", "rms_norm"), strict=True):
        function = getattr(lightning_kernels, norm)
        monkeypatch.setattr(lightning_kernels, name, lambda *a, f=function, **k: add(f, *a, **k))


def _without_blocks(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
    """Let the original forwards of blocks run, with fused layers."""
    for cls in {cls for cls in classes(model) if hasattr(cls, "ends")}:
        monkeypatch.setattr(cls, "folds", lambda self, x: False)


@kernel
def test_rates_reach_the_kernel(device: str, ends: Calls) -> None:
    for kind, names in {
        "bert": {"p"},
        "bart": {"p"},
        "dinov2": {"drop_path", "layer_scale"},
    }.items():
        model = fused(build(kind, 0.25, device))
        ends.clear()
        run(model.train())
        given = [call.get("p") or call.get("drop_path") for call in ends]
        assert given == [0.25] * MODELS[kind][2]
        assert all(names <= call.keys() for call in ends)
        ends.clear()
        run(model.eval())
        assert not any(call.get("p") or call.get("drop_path") for call in ends)


@kernel
def test_attention_to_an_encoder_in_gpt2(device: str, ends: Calls) -> None:
    MODELS["gpt2-cross"] = ("gpt2", {**MODELS["gpt2"][1], "add_cross_attention": True}, 6)
    try:
        model = build("gpt2-cross", device=device)
    finally:
        del MODELS["gpt2-cross"]
    other = fused(model)
    memory = torch.randn(2, 5, 8, device=device)
    ours, theirs = (run(each, encoder_hidden_states=memory) for each in (other, model))
    assert len(ends) == 6
    exact = run(copy.deepcopy(model).double(), encoder_hidden_states=memory.double())
    near(ours, theirs, exact)


@kernel
@pytest.mark.parametrize("child", ["LayerNorm", "dropout"])
def test_hooks_run(child: str, device: str, ends: Calls) -> None:
    model = fused(build("bert", device=device))
    expected = run(model)
    seen: list[Any] = []
    block = model.encoder.layer[1].output
    handle = getattr(block, child).register_forward_hook(lambda *args: seen.append(args[0]))
    ends.clear()
    for mine, right in zip(run(model), expected, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)
    assert seen == [getattr(block, child)]
    assert len(ends) == (5 if child == "LayerNorm" else 6)
    assert sum("p" in options for options in ends) == 5
    handle.remove()
    ends.clear()
    assert_equal(run(model), expected)
    assert len(ends) == 6


@kernel
def test_hooks_of_all_modules_run(device: str, ends: Calls) -> None:
    model = fused(build("llama", device=device))
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda *args: seen.append(args[0]))
    try:
        run(model)
    finally:
        handle.remove()
    assert not ends
    assert {layer.post_attention_layernorm for layer in model.layers} <= set(seen)


class Doubled(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@kernel
def test_another_norm_or_activation(device: str, ends: Calls) -> None:
    model = build("bert", device=device)
    model.encoder.layer[0].output.LayerNorm = Doubled(8).to(device)
    model.encoder.layer[1].intermediate.intermediate_act_fn = nn.Tanh()
    other = copy.deepcopy(model)
    report = fuse(other)
    assert len(report.folded) == 5
    assert [left.cls.rpartition(".")[2] for left in report.skipped] == ["Doubled"]
    near(run(other), run(model), run(copy.deepcopy(model).double()))
    assert len(ends) == 5
    other.encoder.layer[2].output.LayerNorm = Doubled(8).to(device)  # after fusion
    model.encoder.layer[2].output.LayerNorm = copy.deepcopy(other.encoder.layer[2].output.LayerNorm)
    ends.clear()
    near(run(other), run(model), run(copy.deepcopy(model).double()))
    assert len(ends) == 4


@kernel
def test_a_changed_forward_runs(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fused(build("llama", device=device))
    cls = type(model.layers[0]).original
    monkeypatch.setattr(cls, "forward", lambda self, hidden_states, *args, **kwargs: hidden_states)
    embedded = model.norm(model.embed_tokens(batch(model)["input_ids"]))
    torch.testing.assert_close(model(**batch(model))[0], embedded)


def test_a_subclass_is_folded_and_stays_its_own(device: str) -> None:
    model = build("llama", device=device)
    expected = run(model)
    base = type(model.layers[0])
    own = type("Own", (base,), {"extra": 3, "__module__": base.__module__})
    other = type("Other", (base,), {"forward": lambda self, x, *a, **k: x, "__module__": __name__})
    model.layers[0].__class__, model.layers[1].__class__ = own, other
    report = fuse(model)
    assert len(report.folded) == 2
    assert [left.reason for left in report.skipped] == ["not folded: Other overrides forward"]
    assert isinstance(model.layers[0], own)
    assert type(model.layers[1]) is other
    unfuse(model)
    assert type(model.layers[0]) is own
    model.layers[1].__class__ = base
    assert_equal(run(model), expected)


CHANGED = """
from torch import nn
class BertOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense, self.dropout, self.LayerNorm = nn.Linear(8, 8), nn.Dropout(), nn.LayerNorm(8)
    def forward(self, hidden_states, input_tensor):
        return self.LayerNorm(self.dropout(self.dense(hidden_states)) * 2 + input_tensor)
"""


def test_a_block_with_other_code_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "modeling_bert.py"
    file.write_text(CHANGED)
    spec: Any = spec_from_file_location("transformers.models.bert.modeling_bert", file)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    model = nn.Sequential(module.BertOutput())
    report = fuse(model)
    assert (len(report.replaced), report.folded, report.skipped) == (2, [], [])
    assert type(model[0]) is module.BertOutput
