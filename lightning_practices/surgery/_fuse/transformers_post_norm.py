"""Fused forwards of the post-norm blocks of transformers: see ``branch_ends``."""

from typing import Any

import torch
from torch import Tensor

from lightning_practices.surgery._fuse.branch_ends import (
    Drop,
    Ends,
    block_form,
    clamped,
    feed_forward,
    file_of,
    fused,
    post_norm,
)
from lightning_practices.surgery._fuse.transformers_forms import MODULE


@fused
def _bert_output(self: Any, hidden_states: Tensor, input_tensor: Tensor) -> Any:
    """BERT, RoBERTa, ELECTRA, DeBERTa, LayoutLM, MPNet: the ends of attention and feed forward."""
    branch = self.dense(hidden_states)
    return post_norm(branch, input_tensor, self.LayerNorm, self.dropout)


@fused
def _mpnet_attention(
    self: Any, hidden_states: Tensor, attention_mask: Any = None, position_bias: Any = None,
    output_attentions: bool = False, **kwargs: Any,
) -> Any:  # fmt: skip
    """MPNet."""
    attended = self.attn(
        hidden_states, attention_mask, position_bias, output_attentions=output_attentions
    )
    return post_norm(attended[0], hidden_states, self.LayerNorm, self.dropout), *attended[1:]


@fused
def _albert_attention(
    self: Any, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any
) -> Any:
    """ALBERT: attention, with its end."""
    shape = hidden_states.shape[:-1]
    heads = (*shape, -1, self.attention_head_size)
    projected = (
        project(hidden_states).view(*heads).transpose(1, 2)
        for project in (self.query, self.key, self.value)
    )
    attend = file_of(self).ALL_ATTENTION_FUNCTIONS.get_interface(
        self.config._attn_implementation, file_of(self).eager_attention_forward
    )
    branch, weights = attend(
        self, *projected, attention_mask,
        dropout=self.attention_dropout.p if self.training else 0.0, scaling=self.scaling, **kwargs,
    )  # fmt: skip
    branch = self.dense(branch.reshape(*shape, -1).contiguous())
    return post_norm(branch, hidden_states, self.LayerNorm, self.output_dropout), weights


@fused
def _albert(self: Any, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
    """ALBERT: attention and feed forward."""
    if self.chunk_size_feed_forward:
        return self.original.forward(self, hidden_states, attention_mask, **kwargs)
    x, _ = self.attention(hidden_states, attention_mask, **kwargs)
    return post_norm(self.ff_chunk(x), x, self.full_layer_layer_norm)


@fused
def _distilbert(self: Any, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
    """DistilBERT."""
    branch, _ = self.attention(hidden_states, attention_mask=attention_mask, **kwargs)
    x = post_norm(branch, hidden_states, self.sa_layer_norm)
    return post_norm(self.ffn(x), x, self.output_layer_norm)


@fused
def _wav2vec2(self: Any, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
    """wav2vec 2.0, HuBERT, SEW, UniSpeech."""
    branch, _ = self.attention(hidden_states, attention_mask=attention_mask, **kwargs)
    x = post_norm(branch, hidden_states, self.layer_norm, self.dropout)
    return post_norm(self.feed_forward(x), x, self.final_layer_norm)


@fused
def _bart_encoder(self: Any, hidden_states: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    """BART, Marian, PLBart, Informer: encoder."""
    drop = Drop(self.dropout, self.training)
    branch, _ = self.self_attn(hidden_states, attention_mask=attention_mask, **kwargs)
    x = post_norm(branch, hidden_states, self.self_attn_layer_norm, drop)
    x = post_norm(feed_forward(self, x), x, self.final_layer_norm, drop)
    if x.dtype == torch.float16 and not torch.isfinite(x).all():
        x = clamped(x)
    return x


@fused
def _bart_decoder(
    self: Any, hidden_states: Tensor, attention_mask: Any = None, encoder_hidden_states: Any = None,
    encoder_attention_mask: Any = None, cache: Any = None, use_cache: bool | None = True,
    **kwargs: Any,
) -> Any:  # fmt: skip
    """BART, Marian, PLBart, Informer: decoder."""
    drop = Drop(self.dropout, self.training)
    branch, _ = self.self_attn(hidden_states, cache=cache, attention_mask=attention_mask, **kwargs)
    x = post_norm(branch, hidden_states, self.self_attn_layer_norm, drop)
    if encoder_hidden_states is not None:
        branch, _ = self.encoder_attn(
            x, key_value_states=encoder_hidden_states, attention_mask=encoder_attention_mask,
            cache=cache, **kwargs,
        )  # fmt: skip
        x = post_norm(branch, x, self.encoder_attn_layer_norm, drop)
    return post_norm(feed_forward(self, x), x, self.final_layer_norm, drop)


@fused
def _rt_detr(
    self: Any, hidden_states: Tensor, attention_mask: Any, spatial_position_embeddings: Any = None,
    **kwargs: Any,
) -> Any:  # fmt: skip
    """RT-DETR, D-FINE: encoder, post-norm."""
    if self.normalize_before:
        return self.original.forward(
            self, hidden_states, attention_mask, spatial_position_embeddings, **kwargs
        )
    branch, _ = self.self_attn(
        hidden_states=hidden_states, attention_mask=attention_mask,
        position_embeddings=spatial_position_embeddings, **kwargs,
    )  # fmt: skip
    drop = Drop(self.dropout, self.training)
    x = post_norm(branch, hidden_states, self.self_attn_layer_norm, drop)
    x = post_norm(self.mlp(x), x, self.final_layer_norm)
    if self.training and not torch.isfinite(x).all():
        x = clamped(x)
    return x


@fused
def _gte(
    self: Any, hidden_states: Tensor, attention_mask: Any = None, position_embeddings: Any = None,
    **kwargs: Any,
) -> Any:  # fmt: skip
    """GTE, NomicBERT, Jina embeddings 3."""
    branch, _ = self.self_attn(
        hidden_states, attention_mask=attention_mask, position_embeddings=position_embeddings,
        **kwargs,
    )  # fmt: skip
    x = post_norm(branch, hidden_states, self.post_attention_layernorm, self.post_attention_dropout)
    return post_norm(self.mlp(x), x, self.post_mlp_layernorm, self.post_mlp_dropout)


_LAYER: Ends = {
    "self_attn_layer_norm": ("dropout",),
    "encoder_attn_layer_norm": ("dropout",),
    "final_layer_norm": ("dropout",),
}


def _rt_detr_ends(block: Any) -> Ends:
    if block.normalize_before:
        return {}
    return {"self_attn_layer_norm": ("dropout",), "final_layer_norm": ()}


FORMS = (
    block_form(_bert_output, "3799d79263d3", {"LayerNorm": ("dropout",)}, MODULE),
    block_form(_mpnet_attention, "36bcc9e54b46", {"LayerNorm": ("dropout",)}, MODULE),
    block_form(_albert_attention, "afce0b41c6ea", {"LayerNorm": ("output_dropout",)}, MODULE),
    block_form(_albert, "0ce4001ac991", {"full_layer_layer_norm": ()}, MODULE),
    block_form(_distilbert, "557d3ea40ca8", {"sa_layer_norm": (), "output_layer_norm": ()}),
    block_form(_wav2vec2, "fad4845ae9cd", {"layer_norm": ("dropout",), "final_layer_norm": ()}),
    block_form(_bart_encoder, "227da81e0493", _LAYER),
    block_form(_bart_decoder, "67189f78d838", _LAYER),
    block_form(_rt_detr, "4c2426204ef6", _rt_detr_ends, MODULE),
    block_form(
        _gte,
        "09642a0c8d7d",
        {
            "post_attention_layernorm": ("post_attention_dropout",),
            "post_mlp_layernorm": ("post_mlp_dropout",),
        },
    ),
)
