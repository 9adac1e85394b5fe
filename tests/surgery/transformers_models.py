"""Small models of transformers with random weights, whose blocks surgery folds."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_kernels
from lightning_practices.surgery import fuse
from tests.surgery.clients import (
    _BART,
    _BERT,
    _IDS,
    _LLAMA,
    _SPEECH,
    _SWIN,
    _VIT,
    _WHISPER,
    TRANSFORMERS,
)

Calls = list[dict[str, Any]]
KERNELS = ("add_dropout_layer_norm", "add_dropout_rms_norm")
_TEXT = {**_LLAMA, **_IDS}
_QUIET = {**_SPEECH, "apply_spec_augment": False, "layerdrop": 0.0}
_EXPERTS = {**_TEXT, "num_local_experts": 4, "experts_implementation": "eager"}
_SAM = {**_VIT, "output_channels": 8, "mlp_dim": 16, "global_attn_indexes": [1], "window_size": 3}
_NEXT = {
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "experts_implementation": "eager",
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}

# The model type, its options, and how many norms it folds. Encoders and decoders of text have three
# layers, an encoder beside a decoder has two.
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "bert": ("bert", _BERT, 6),
    "roberta": ("roberta", _BERT, 6),
    "xlm-roberta": ("xlm-roberta", _BERT, 6),
    "electra": ("electra", {**_BERT, "embedding_size": 4}, 6),
    "camembert": ("camembert", _BERT, 6),
    "layoutlm": ("layoutlm", _BERT, 6),
    "mpnet": ("mpnet", _BERT, 6),
    "deberta": ("deberta", {**_BERT, "relative_attention": True, "pos_att_type": ["p2c"]}, 6),
    "deberta-v2": ("deberta-v2", TRANSFORMERS["deberta-v3"][2], 6),
    "distilbert": ("distilbert", TRANSFORMERS["distilbert"][2], 6),
    "albert": ("albert", {**_BERT, "embedding_size": 4}, 2),
    "nomic_bert": ("nomic_bert", _BERT, 6),
    "modernbert": ("modernbert", _TEXT, 3),
    "bart": ("bart", _BART, 13),
    "marian": ("marian", {**_BART, **_IDS}, 13),
    "mbart": ("mbart", _BART, 8),
    "pegasus": ("pegasus", _BART, 8),
    "m2m_100": ("m2m_100", _BART, 8),
    "whisper": ("whisper", _WHISPER, 8),
    "biogpt": ("biogpt", _TEXT, 3),
    "gpt2": ("gpt2", TRANSFORMERS["gpt2"][2], 3),
    "gpt_neox": ("gpt_neox", {**_BERT, "use_parallel_residual": False}, 3),
    "gpt_neox-parallel": ("gpt_neox", _BERT, 0),
    "opt": ("opt", TRANSFORMERS["opt"][2], 3),
    "opt-350m": ("opt", {**TRANSFORMERS["opt"][2], "do_layer_norm_before": False}, 6),
    "llama": ("llama", _TEXT, 3),
    "mistral": ("mistral", _TEXT, 3),
    "qwen2": ("qwen2", _TEXT, 3),
    "qwen3": ("qwen3", _TEXT, 3),
    "qwen3_next": ("qwen3_next", {**_TEXT, **_NEXT}, 3),
    "phi3": ("phi3", _TEXT, 3),
    "mixtral": ("mixtral", _EXPERTS, 3),
    "gemma": ("gemma", _TEXT, 3),
    "gemma2": ("gemma2", _TEXT, 3),
    "gemma3": ("gemma3_text", _TEXT, 3),
    "granite": ("granite", {**_TEXT, "residual_multiplier": 0.7}, 3),
    "glm4": ("glm4", _TEXT, 3),
    "olmo": ("olmo", _TEXT, 3),
    "starcoder2": ("starcoder2", _TEXT, 3),
    "olmo2": ("olmo2", _TEXT, 0),  # it normalises branches, not sums
    "cohere": ("cohere", _TEXT, 0),  # both branches begin with one norm
    "t5": ("t5", TRANSFORMERS["t5"][2], 0),  # each branch is a block of its own
    "vit": ("vit", _VIT, 3),
    "deit": ("deit", _VIT, 3),
    "dinov2": ("dinov2", {**_VIT, "drop_path_rate": 0.3}, 3),
    "dinov3": ("dinov3_vit", _VIT, 3),
    "clip": ("clip_vision_model", _VIT, 3),
    "siglip": ("siglip_vision_model", _VIT, 3),
    "yolos": ("yolos", TRANSFORMERS["yolos"][2], 3),
    "swin": ("swin", _SWIN, 3),
    "segformer": ("segformer", {**TRANSFORMERS["segformer"][2], "depths": [1, 1, 1, 1]}, 4),
    "sam": ("sam_vision_model", _SAM, 3),
    "wav2vec2": ("wav2vec2", _QUIET, 6),
    "wav2vec2-stable": (
        "wav2vec2", {**_QUIET, "do_stable_layer_norm": True, "feat_extract_norm": "layer"}, 3
    ),
    "hubert": ("hubert", _QUIET, 6),
}  # fmt: skip
_RATES = ("p", "drop_prob", "dropout", "activation_dropout", "attention_dropout", "layerdrop")


def build(kind: str, p: float = 0.0, device: str = "cpu", *, causal: bool = False) -> Any:
    """Return a model with random parameters, norms too, that drops at rate ``p`` everywhere."""
    import transformers

    model_type, options, _ = MODELS[kind]
    config = transformers.AutoConfig.for_model(model_type, **options)
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    model: Any = auto.from_config(config)
    for module in model.modules():
        for name in _RATES:
            if isinstance(module.__dict__.get(name), float):
                setattr(module, name, 0.0 if name == "layerdrop" else p)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, 1.0 if "norm" in name.lower() else 0.0, 0.3)
    return model.to(device)


def batch(model: Any) -> dict[str, Tensor]:
    """Return inputs of a model: tokens, images or sounds, the same at each call."""
    generator = torch.Generator().manual_seed(1)
    kind, decodes = model.main_input_name, model.config.is_encoder_decoder
    tokens = torch.randint(5, 400, (2, 7), generator=generator)
    shape = {"pixel_values": (2, 3, 32, 32), "input_values": (2, 400), "input_features": (2, 8, 40)}
    x = tokens if kind == "input_ids" else torch.randn(shape[kind], generator=generator)
    given = {kind: x.to(model.dtype) if x.is_floating_point() else x}
    if decodes:
        given["decoder_input_ids"] = tokens.flip(1)
    return {name: tensor.to(model.device) for name, tensor in given.items()}


def run(model: Any, call: Any = None, **options: Any) -> list[Tensor]:
    """Return the first output under one seed, and the gradients of the parameters.

    Args:
        model: The model.
        call: What to call instead of the model, such as the compiled model.
        options: More arguments of the model.
    """
    torch.manual_seed(3)
    y = (model if call is None else call)(**batch(model), **options)[0]
    factors = torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(
        (y.float() * factors).sum(), learned, allow_unused=True, materialize_grads=True
    )
    return [y.detach(), *gradients]


def count_ends(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Return the list in which the options of every fused end of a branch will be."""
    calls: Calls = []

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls.append(options)
            return function(*args, **options)

        return call

    for name in KERNELS:
        monkeypatch.setattr(lightning_kernels, name, counted(getattr(lightning_kernels, name)))
    return calls


def fused(model: Any) -> Any:
    """Return a fused copy."""
    model = copy.deepcopy(model)
    fuse(model)
    return model


def near(ours: list[Tensor], theirs: list[Tensor], exact: list[Tensor]) -> None:
    """Check that results and gradients are as right as those of the plain model, by float64."""
    mine, plain, truth = (
        torch.cat([tensor.double().flatten() for tensor in tensors])
        for tensors in (ours, theirs, exact)
    )
    rounding = torch.finfo(ours[0].dtype).eps * truth.norm()
    assert (mine - truth).norm() <= 1.5 * (plain - truth).norm() + rounding


def classes(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]
