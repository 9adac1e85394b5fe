"""Small models of other libraries, with random weights or none, for surgery to divide."""

import warnings
from importlib.util import find_spec
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

TOKENS = 500  # of a vocabulary that outweighs all layers of the small configurations

_BERT = {"vocab_size": TOKENS, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2,
         "intermediate_size": 16, "max_position_embeddings": 40}  # fmt: skip
_BART = {"vocab_size": TOKENS, "d_model": 8, "encoder_layers": 2, "decoder_layers": 3,
         "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16,
         "decoder_ffn_dim": 16, "max_position_embeddings": 40}  # fmt: skip
_XLM = {"vocab_size": TOKENS, "emb_dim": 8, "n_layers": 3, "n_heads": 2}
_T5 = {"vocab_size": TOKENS, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2,
       "num_decoder_layers": 3, "decoder_start_token_id": 0}  # fmt: skip
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
        "sep_token_id": 2, "decoder_start_token_id": 2}  # fmt: skip
_LLAMA = {**_BERT, "num_key_value_heads": 1, "head_dim": 4, "pad_token_id": 0}
_VIT = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16,
        "image_size": 32, "patch_size": 8}  # fmt: skip
_SPEECH = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2,
           "intermediate_size": 16, "conv_dim": [8, 8], "conv_stride": [5, 2],
           "conv_kernel": [10, 3], "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4,
           "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}  # fmt: skip
_WHISPER = {**_BART, "num_mel_bins": 8, "max_source_positions": 20,
            "max_target_positions": 20, **_IDS}  # fmt: skip
_SWIN = {"embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 2, "image_size": 32,
         "patch_size": 4}  # fmt: skip

# Model type, task and options of configurations of transformers.
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("bert", "SequenceClassification", _BERT),
    "minilm": ("bert", "SequenceClassification", {**_BERT, "hidden_size": 12}),
    "e5": ("xlm-roberta", "", _BERT),
    "roberta": ("roberta", "SequenceClassification", _BERT),
    "xlm-roberta": ("xlm-roberta", "SequenceClassification", _BERT),
    "xlm-roberta-tokens": ("xlm-roberta", "TokenClassification", _BERT),
    "camembert": ("camembert", "SequenceClassification", _BERT),
    "deberta-v3": ("deberta-v2", "SequenceClassification", {
        **_BERT, "relative_attention": True, "position_biased_input": False,
        "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm", "share_att_key": True,
    }),
    "distilbert": ("distilbert", "SequenceClassification", {
        "vocab_size": TOKENS, "dim": 8, "n_layers": 3, "n_heads": 2, "hidden_dim": 16,
    }),
    "electra": ("electra", "SequenceClassification", {**_BERT, "embedding_size": 4}),
    "mpnet": ("mpnet", "SequenceClassification", _BERT),
    "albert": ("albert", "SequenceClassification", {**_BERT, "embedding_size": 4}),
    "modernbert": ("modernbert", "SequenceClassification", {**_BERT, **_IDS}),
    "xlm": ("xlm", "SequenceClassification", _XLM),
    "xlnet": ("xlnet", "SequenceClassification", {
        "vocab_size": TOKENS, "d_model": 8, "n_layer": 3, "n_head": 2, "d_inner": 16,
    }),
    "bart": ("bart", "SequenceClassification", _BART),
    "mbart": ("mbart", "SequenceClassification", _BART),
    "t5": ("t5", "SequenceClassification", _T5),
    "mt5-encoder": ("mt5", "TokenClassification", _T5),
    "gpt2": ("gpt2", "SequenceClassification", {
        "vocab_size": TOKENS, "n_embd": 8, "n_layer": 3, "n_head": 2, "n_positions": 40,
        **_IDS,
    }),
    "opt": ("opt", "SequenceClassification", {**_BERT, "ffn_dim": 16, "word_embed_proj_dim": 8}),
    "gemma": ("gemma", "SequenceClassification", _LLAMA),
    "llama": ("llama", "SequenceClassification", _LLAMA),
    "qwen2": ("qwen2", "SequenceClassification", _LLAMA),
    "vit": ("vit", "ImageClassification", _VIT),
    "deit-distilled": ("deit", "ImageClassificationWithTeacher", _VIT),
    "dinov2": ("dinov2", "ImageClassification", _VIT),
    "swin": ("swin", "ImageClassification", _SWIN),
    "convnext": ("convnext", "ImageClassification", {
        "hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2,
    }),
    "resnet": ("resnet", "ImageClassification", {
        "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2], "layer_type": "basic",
    }),
    "mobilevit": ("mobilevit", "ImageClassification", {
        "hidden_sizes": [8, 8, 8], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 8], "image_size": 64,
        "num_attention_heads": 2,
    }),
    "segformer": ("segformer", "SemanticSegmentation", {
        "depths": [2, 2, 2, 2], "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 8,
    }),
    "yolos": ("yolos", "ObjectDetection", {**_VIT, "image_size": [32, 32],
                                           "num_detection_tokens": 4}),
    "upernet": ("upernet", "SemanticSegmentation", {
        "hidden_size": 8, "auxiliary_channels": 8, "auxiliary_in_channels": 16,
        "backbone_config": {"model_type": "resnet", "embedding_size": 8, "depths": [1, 1, 1, 1],
                            "hidden_sizes": [8, 8, 16, 16], "layer_type": "basic",
                            "out_features": ["stage1", "stage2", "stage3", "stage4"]},
    }),
    "timm": ("timm_wrapper", "ImageClassification", {"architecture": "resnet18"}),
    "clip": ("clip", "ZeroShotImageClassification", {
        "text_config": {**_BERT, **_IDS}, "vision_config": _VIT, "projection_dim": 8,
    }),
    "wav2vec2": ("wav2vec2", "AudioClassification", _SPEECH),
    "wav2vec2-conformer": ("wav2vec2-conformer", "AudioClassification", _SPEECH),
    "hubert": ("hubert", "AudioClassification", _SPEECH),
    "whisper": ("whisper", "AudioClassification", _WHISPER),
    "ast": ("audio-spectrogram-transformer", "AudioClassification", {
        **_VIT, "num_mel_bins": 16, "max_length": 32,
    }),
}  # fmt: skip

MONAI: dict[str, tuple[str, dict[str, Any]]] = {
    "UNet": ("UNet", {"channels": (4, 8, 16), "strides": (2, 2), "spatial_dims": 3}),
    "BasicUNet": ("BasicUNet", {"features": (4, 4, 8, 8, 8, 4), "spatial_dims": 3}),
    "SegResNet": ("SegResNet", {"init_filters": 8, "spatial_dims": 3}),
    "UNETR": ("UNETR", {"img_size": (16, 16, 16), "feature_size": 4, "hidden_size": 96,
                        "mlp_dim": 192, "num_heads": 2}),
    "SwinUNETR": ("SwinUNETR", {"feature_size": 12, "depths": (2, 2, 2, 2),
                                "num_heads": (2, 2, 2, 2)}),
}  # fmt: skip


_READS_TENSORS = ("monai/SwinUNETR", "smp/Unet-mit_b0")  # when they are made


def needs(package: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test where a package is absent."""
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


def package_of(name: str) -> str:
    """Return the package of a client, by its name ``"library/model"``."""
    library = name.partition("/")[0]
    return {"smp": "segmentation_models_pytorch"}.get(library, library)


def client(name: str, num_classes: int = 5, *, device: str = "meta") -> Any:
    """Return a model of another library.

    Args:
        name: The library and the model, as in ``"timm/resnet18"``.
        num_classes: The number of classes.
        device: ``"meta"``, for no weights at all, or ``"cpu"``.
    """
    device = "cpu" if name in _READS_TENSORS else device
    library, _, kind = name.partition("/")
    make = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers,
            "smp": _smp, "monai": _monai}[library]  # fmt: skip
    with torch.device(device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries say of themselves
        model: nn.Module = make(kind, num_classes)
    return model.eval()


def _timm(kind: str, num_classes: int) -> Any:
    return timm.create_model(kind, num_classes=num_classes)


def _torchvision(kind: str, num_classes: int) -> Any:
    models = torchvision.models
    for package in (models.detection, models.segmentation):
        if hasattr(package, kind):
            return getattr(package, kind)(
                weights=None, weights_backbone=None, num_classes=num_classes
            )
    package = models if hasattr(models, kind) else models.video
    return getattr(package, kind)(weights=None, num_classes=num_classes)


def _transformers(kind: str, num_classes: int) -> Any:
    import transformers

    model_type, task, options = TRANSFORMERS[kind]
    config = transformers.AutoConfig.for_model(model_type, **options, num_labels=num_classes)
    if task == "ImageClassificationWithTeacher":
        return transformers.DeiTForImageClassificationWithTeacher(config)
    if kind == "clip":
        return transformers.CLIPModel(config)
    auto = getattr(transformers, f"AutoModelFor{task}" if task else "AutoModel")
    return auto.from_config(config)


def _smp(kind: str, num_classes: int) -> Any:
    import segmentation_models_pytorch as smp

    kind, _, encoder = kind.partition("-")
    return getattr(smp, kind)(encoder or "resnet18", encoder_weights=None, classes=num_classes)


def _monai(kind: str, num_classes: int) -> Any:
    from monai.networks import nets

    cls, options = MONAI[kind]
    return getattr(nets, cls)(in_channels=1, out_channels=num_classes, **options)
