"""Fused forwards of the pre-norm encoder blocks of transformers: see ``branch_ends``.

The blocks are of models for images, speech and text.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_practices.surgery._fuse.branch_ends import (
    Drop,
    Ends,
    block_form,
    clamped,
    end_branch,
    feed_forward,
    file_of,
    fused,
)


@fused
def _clip(self: Any, hidden_states: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    """CLIP, SigLIP, Idefics, OWL-ViT."""
    return _run_clip(self, hidden_states, attention_mask=attention_mask, **kwargs)


@fused
def _pp_ocr(self: Any, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
    """PP-OCR: as CLIP."""
    return _run_clip(self, hidden_states, attention_mask=attention_mask, **kwargs)


@fused
def _blip(self: Any, hidden_states: Tensor, **kwargs: Any) -> Any:
    """BLIP: as CLIP, without a mask."""
    return _run_clip(self, hidden_states, **kwargs)


def _run_clip(self: Any, hidden_states: Tensor, **kwargs: Any) -> Any:
    branch, _ = self.self_attn(hidden_states=self.layer_norm1(hidden_states), **kwargs)
    x, stream = end_branch(branch, hidden_states, self.layer_norm2, into=self.mlp)
    return stream + self.mlp(x)


@fused
def _qwen_vision(
    self: Any, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: Any = None,
    **kwargs: Any,
) -> Any:  # fmt: skip
    """The vision blocks of Qwen-VL, GLM-V, ERNIE and Kimi."""
    branch = self.attn(
        self.norm1(hidden_states), cu_seqlens=cu_seqlens, position_embeddings=position_embeddings,
        **kwargs,
    )  # fmt: skip
    x, stream = end_branch(branch, hidden_states, self.norm2, into=self.mlp)
    return stream + self.mlp(x)


@fused
def _vit(self: Any, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
    """ViT, DeiT, MAE, I-JEPA, AST, ViViT."""
    branch, _ = self.attention(self.layernorm_before(hidden_states), attention_mask, **kwargs)
    x, stream = end_branch(branch, hidden_states, self.layernorm_after, self.dropout, into=self.mlp)
    return self.dropout(self.mlp(x)) + stream


@fused
def _dinov2(self: Any, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
    """DINOv2, EoMT, RADIO."""
    branch, _ = self.attention(
        hidden_states=self.norm1(hidden_states), attention_mask=attention_mask, **kwargs
    )
    return _end_dinov2(self, branch, hidden_states)


@fused
def _dinov3(
    self: Any, hidden_states: Tensor, attention_mask: Any = None, position_embeddings: Any = None,
    **kwargs: Any,
) -> Any:  # fmt: skip
    """DINOv3."""
    branch, _ = self.attention(
        self.norm1(hidden_states), attention_mask=attention_mask,
        position_embeddings=position_embeddings, **kwargs,
    )  # fmt: skip
    return _end_dinov2(self, branch, hidden_states)


def _end_dinov2(self: Any, branch: Tensor, stream: Tensor) -> Any:
    x, stream = end_branch(
        branch, stream, self.norm2, self.layer_scale1, self.drop_path, into=self.mlp
    )
    return self.drop_path(self.layer_scale2(self.mlp(x))) + stream


@fused
def _yolos(self: Any, hidden_states: Tensor, **kwargs: Any) -> Any:
    """YOLOS, VideoMAE, DPT."""
    branch = self.attention(self.layernorm_before(hidden_states), **kwargs)
    x, stream = end_branch(branch, hidden_states, self.layernorm_after, into=self.intermediate)
    return self.output(self.intermediate(x), stream)


@fused
def _segformer(self: Any, hidden_states: Tensor, height: int, width: int, **kwargs: Any) -> Any:
    """SegFormer."""
    branch, _ = self.attention(self.layernorm_before(hidden_states), height, width, **kwargs)
    x, stream = end_branch(
        branch, hidden_states, self.layernorm_after, self.hidden_dropout, self.drop_path,
        into=self.mlp,
    )  # fmt: skip
    return self.drop_path(self.mlp(x, height, width)) + stream


@fused
def _swin(
    self: Any, hidden_states: Tensor, input_dimensions: tuple[int, int],
    always_partition: bool = False, **kwargs: Any,
) -> Any:  # fmt: skip
    """Swin: attention in windows, which are shifted in every other block."""
    if not always_partition:
        self.set_shift_and_window_size(input_dimensions)
    height, width = input_dimensions
    size, _, channels = hidden_states.size()
    x = self.layernorm_before(hidden_states).view(size, height, width, channels)
    x, pads = self.maybe_pad(x, height, width)
    _, full_height, full_width, _ = x.shape
    windows = file_of(self).window_partition(self.cyclic_shift(x), self.window_size)
    windows = windows.view(-1, self.window_size * self.window_size, channels)
    mask = self.get_attn_mask(full_height, full_width, dtype=x.dtype, device=windows.device)
    windows, weights = self.attention(windows, mask, **kwargs)
    windows = self.dropout(windows).view(-1, self.window_size, self.window_size, channels)
    x = file_of(self).window_reverse(windows, self.window_size, full_height, full_width)
    x = self.cyclic_shift(x, reverse=True)
    if pads[3] > 0 or pads[5] > 0:
        x = x[:, :height, :width, :].contiguous()
    x, stream = end_branch(
        x.view(size, height * width, channels), hidden_states, self.layernorm_after,
        self.drop_path, into=self.mlp,
    )  # fmt: skip
    return self.dropout(self.mlp(x)) + stream, weights


@fused
def _sam(self: Any, hidden_states: Tensor) -> Any:
    """SAM: attention in windows, or to the whole image."""
    x = self.layer_norm1(hidden_states)
    if self.window_size > 0:
        height, width = x.shape[1], x.shape[2]
        x, padding = self.window_partition(x, self.window_size)
    x, _ = self.attn(hidden_states=x)
    if self.window_size > 0:
        x = self.window_unpartition(x, self.window_size, padding, (height, width))
    x, stream = end_branch(x, hidden_states, self.layer_norm2, into=self.mlp)
    return stream + self.mlp(x)


@fused
def _modernbert(
    self: Any, hidden_states: Tensor, attention_mask: Any = None, position_embeddings: Any = None,
    **kwargs: Any,
) -> Any:  # fmt: skip
    """ModernBERT."""
    branch, _ = self.attn(
        self.attn_norm(hidden_states), position_embeddings=position_embeddings,
        attention_mask=attention_mask, **kwargs,
    )  # fmt: skip
    x, stream = end_branch(branch, hidden_states, self.mlp_norm, into=self.mlp)
    return stream + self.mlp(x)


@fused
def _whisper_encoder(self: Any, hidden_states: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    """Whisper, mBART, Pegasus, BlenderBot, M2M-100: encoder."""
    drop = Drop(self.dropout, self.training)
    branch, _ = self.self_attn(
        hidden_states=self.self_attn_layer_norm(hidden_states), attention_mask=attention_mask,
        **kwargs,
    )  # fmt: skip
    x, stream = end_branch(branch, hidden_states, self.final_layer_norm, drop, into=self.fc1)
    x = stream + drop(feed_forward(self, x))
    return clamped(x) if x.dtype == torch.float16 else x


@fused
def _wav2vec2_stable(
    self: Any, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any
) -> Any:
    """wav2vec 2.0, HuBERT and UniSpeech, large: pre-norm."""
    branch, _ = self.attention(
        self.layer_norm(hidden_states), attention_mask=attention_mask, **kwargs
    )
    x, stream = end_branch(
        branch, hidden_states, self.final_layer_norm, self.dropout, into=self.feed_forward
    )
    x = stream + self.feed_forward(x)
    return x if self.adapter_layer is None else x + self.adapter_layer(x)


_NORM2: Ends = {"norm2": ()}
_LAYER_NORM2: Ends = {"layer_norm2": ()}
_DINOV2: Ends = {"norm2": ("layer_scale1", "drop_path")}

FORMS = (
    block_form(_clip, ("62e60adf8f71", "590c00aacbf0"), _LAYER_NORM2),
    block_form(_pp_ocr, "ee03947d1fb5", _LAYER_NORM2),
    block_form(_blip, "c079b1f91561", _LAYER_NORM2),
    block_form(_qwen_vision, ("f834ed185d3d", "11054714dc22"), _NORM2),
    block_form(_vit, "a462ca28ad99", {"layernorm_after": ("dropout",)}),
    block_form(_dinov2, "d64ba88ee33d", _DINOV2),
    block_form(_dinov3, "74086cf9321b", _DINOV2),
    block_form(_yolos, "09430d59a69a", {"layernorm_after": ()}),
    block_form(_segformer, "ebe4a5b1547b", {"layernorm_after": ("hidden_dropout", "drop_path")}),
    block_form(_swin, "2aff3d5f7bb3", {"layernorm_after": ("drop_path",)}),
    block_form(_sam, "08b0893cc293", _LAYER_NORM2),
    block_form(_modernbert, "739e659ccdd5", {"mlp_norm": ()}),
    block_form(_whisper_encoder, "640e9e5a1ecf", {"final_layer_norm": ("dropout",)}),
    block_form(_wav2vec2_stable, "e2ae157f496e", {"final_layer_norm": ("dropout",)}),
)
