"""Fused forwards of the decoder blocks of transformers: see ``branch_ends``.

The first branch ends in the norm that opens the second branch. OPT has post-norm blocks too.
"""

from typing import Any

from torch import Tensor

from lightning_practices.surgery._fuse.branch_ends import (
    Drop,
    Ends,
    block_form,
    end_branch,
    feed_forward,
    fused,
    post_norm,
)


def _attended(
    self: Any, hidden_states: Tensor, attention_mask: Any = None, position_ids: Any = None,
    cache: Any = None, use_cache: bool | None = False, position_embeddings: Any = None,
    **kwargs: Any,
) -> Any:  # fmt: skip
    """Return the self-attention of a Llama block, or one with its arguments in the same order."""
    return self.self_attn(
        hidden_states=self.input_layernorm(hidden_states), attention_mask=attention_mask,
        position_ids=position_ids, cache=cache, use_cache=use_cache,
        position_embeddings=position_embeddings, **kwargs,
    )[0]  # fmt: skip


def _attended_in_order_of_mixtral(
    self: Any, hidden_states: Tensor, position_embeddings: Any = None, attention_mask: Any = None,
    position_ids: Any = None, cache: Any = None, **kwargs: Any,
) -> Any:  # fmt: skip
    """Return the self-attention of a Mixtral block, or one with its arguments in this order."""
    return self.self_attn(
        hidden_states=self.input_layernorm(hidden_states), position_embeddings=position_embeddings,
        attention_mask=attention_mask, position_ids=position_ids, cache=cache, **kwargs,
    )[0]  # fmt: skip


@fused
def _llama(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Llama, Mistral, Qwen, DeepSeek, OLMo, Gemma 1, StarCoder 2."""
    branch = _attended(self, hidden_states, *args, **kwargs)
    x, stream = end_branch(branch, hidden_states, self.post_attention_layernorm, into=self.mlp)
    return stream + self.mlp(x)


@fused
def _granite(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Granite: each branch is multiplied by a number."""
    branch = _attended(self, hidden_states, *args, **kwargs) * self.residual_multiplier
    x, stream = end_branch(branch, hidden_states, self.post_attention_layernorm, into=self.mlp)
    return stream + self.mlp(x) * self.residual_multiplier


@fused
def _phi3(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Phi-3."""
    branch = _attended(self, hidden_states, *args, **kwargs)
    x, stream = end_branch(
        branch, hidden_states, self.post_attention_layernorm, self.resid_attn_dropout, into=self.mlp
    )
    return stream + self.resid_mlp_dropout(self.mlp(x))


@fused
def _mixtral(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Mixtral, Phi-3.5-MoE, MiniMax-M2."""
    branch = _attended_in_order_of_mixtral(self, hidden_states, *args, **kwargs)
    x, stream = end_branch(branch, hidden_states, self.post_attention_layernorm, into=self.mlp)
    return stream + self.mlp(x)


@fused
def _gemma2(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Gemma 2 and 3: each branch ends in a norm of its own."""
    branch = _attended_in_order_of_mixtral(self, hidden_states, *args, **kwargs)
    branch = self.post_attention_layernorm(branch)
    x, stream = end_branch(branch, hidden_states, self.pre_feedforward_layernorm, into=self.mlp)
    return stream + self.post_feedforward_layernorm(self.mlp(x))


@fused
def _glm4(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """GLM-4: each branch ends in a norm of its own."""
    return _end_glm4(self, hidden_states, _attended(self, hidden_states, *args, **kwargs))


def _end_glm4(self: Any, hidden_states: Tensor, branch: Tensor) -> Any:
    branch = self.post_self_attn_layernorm(branch)
    x, stream = end_branch(branch, hidden_states, self.post_attention_layernorm, into=self.mlp)
    return stream + self.post_mlp_layernorm(self.mlp(x))


@fused
def _glm4v(
    self: Any, hidden_states: Tensor, position_embeddings: Any = None, attention_mask: Any = None,
    position_ids: Any = None, cache: Any = None, use_cache: bool | None = False, **kwargs: Any,
) -> Any:  # fmt: skip
    """GLM-4V, GLM-OCR: as GLM-4, with arguments in another order."""
    branch = _attended(
        self, hidden_states, attention_mask, position_ids, cache, use_cache, position_embeddings,
        **kwargs,
    )  # fmt: skip
    return _end_glm4(self, hidden_states, branch)


@fused
def _qwen3_next(
    self: Any, hidden_states: Tensor, position_embeddings: Any, attention_mask: Any = None,
    position_ids: Any = None, cache: Any = None, **kwargs: Any,
) -> Any:  # fmt: skip
    """Qwen3-Next, Qwen 3.5 with experts: linear attention in some layers."""
    x = self.input_layernorm(hidden_states)
    if self.block_type == "linear_attention":
        x = self.linear_attn(hidden_states=x, cache=cache, attention_mask=attention_mask, **kwargs)
    elif self.block_type == "full_attention":
        x, _ = self.self_attn(
            hidden_states=x, attention_mask=attention_mask, position_ids=position_ids, cache=cache,
            position_embeddings=position_embeddings, **kwargs,
        )  # fmt: skip
    x, stream = end_branch(x, hidden_states, self.post_attention_layernorm, into=self.mlp)
    branch = self.mlp(x)
    return stream + (branch[0] if isinstance(branch, tuple) else branch)


@fused
def _gpt2(
    self: Any, hidden_states: Tensor, cache: Any = None, attention_mask: Any = None,
    encoder_hidden_states: Any = None, encoder_attention_mask: Any = None,
    use_cache: bool | None = False, **kwargs: Any,
) -> Any:  # fmt: skip
    """GPT-2, with and without cross-attention."""
    crosses = encoder_hidden_states is not None
    if crosses and not hasattr(self, "crossattention"):  # the original raises its error
        return self.original.forward(
            self, hidden_states, cache, attention_mask, encoder_hidden_states,
            encoder_attention_mask, use_cache, **kwargs,
        )  # fmt: skip
    branch, _ = self.attn(
        self.ln_1(hidden_states), cache=cache, attention_mask=attention_mask, use_cache=use_cache,
        **kwargs,
    )  # fmt: skip
    stream = hidden_states
    if crosses:
        x, stream = end_branch(branch, stream, self.ln_cross_attn, into=self.crossattention)
        branch, _ = self.crossattention(
            x, cache=cache, attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
        )  # fmt: skip
    x, stream = end_branch(branch, stream, self.ln_2, into=self.mlp)
    return stream + self.mlp(x)


@fused
def _gpt_neox(
    self: Any, hidden_states: Tensor, attention_mask: Any = None, position_ids: Any = None,
    use_cache: bool | None = False, layer_past: Any = None, position_embeddings: Any = None,
    **kwargs: Any,
) -> Any:  # fmt: skip
    """GPT-NeoX, with one branch after the other."""
    if self.use_parallel_residual:
        return self.original.forward(
            self, hidden_states, attention_mask, position_ids, use_cache, layer_past,
            position_embeddings, **kwargs,
        )  # fmt: skip
    branch, _ = self.attention(
        self.input_layernorm(hidden_states), attention_mask=attention_mask,
        position_ids=position_ids, layer_past=layer_past, use_cache=use_cache,
        position_embeddings=position_embeddings, **kwargs,
    )  # fmt: skip
    x, stream = end_branch(
        branch, hidden_states, self.post_attention_layernorm, self.post_attention_dropout,
        into=self.mlp,
    )  # fmt: skip
    return self.post_mlp_dropout(self.mlp(x)) + stream


@fused
def _opt(
    self: Any, hidden_states: Tensor, attention_mask: Any = None, cache: Any = None,
    use_cache: bool | None = False, position_ids: Any = None, **kwargs: Any,
) -> Any:  # fmt: skip
    """OPT, pre-norm and post-norm (the model of 350 million parameters)."""
    drop, first = Drop(self.dropout, self.training), self.do_layer_norm_before
    branch, _ = self.self_attn(
        hidden_states=self.self_attn_layer_norm(hidden_states) if first else hidden_states,
        cache=cache, position_ids=position_ids, attention_mask=attention_mask, **kwargs,
    )  # fmt: skip
    if first:
        x, stream = end_branch(branch, hidden_states, self.final_layer_norm, drop, into=self.fc1)
    else:
        x = stream = post_norm(branch, hidden_states, self.self_attn_layer_norm, drop)
    shape = x.shape
    x = self.fc2(self.activation_fn(self.fc1(x.reshape(-1, shape[-1])))).view(shape)
    if first:
        return stream + drop(x)
    return post_norm(x, stream, self.final_layer_norm, drop)


@fused
def _biogpt(
    self: Any, hidden_states: Tensor, attention_mask: Any = None, cache: Any = None,
    use_cache: bool | None = True, position_ids: Any = None, **kwargs: Any,
) -> Any:  # fmt: skip
    """BioGPT."""
    drop = Drop(self.dropout, self.training)
    branch, _ = self.self_attn(
        hidden_states=self.self_attn_layer_norm(hidden_states), cache=cache,
        attention_mask=attention_mask, position_ids=position_ids, **kwargs,
    )  # fmt: skip
    x, stream = end_branch(branch, hidden_states, self.final_layer_norm, drop, into=self.fc1)
    return stream + drop(feed_forward(self, x))


@fused
def _mbart_decoder(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """mBART, Pegasus, BlenderBot, M2M-100: decoder."""
    return _decode(self, hidden_states, _by_name, *args, **kwargs)


@fused
def _whisper_decoder(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Whisper, MusicGen, Speech2Text, XGLM: decoder."""
    return _decode(self, hidden_states, _by_position, *args, **kwargs)


def _by_name(attention: Any, hidden_states: Tensor, **kwargs: Any) -> Any:
    return attention(hidden_states=hidden_states, **kwargs)[0]


def _by_position(attention: Any, hidden_states: Tensor, **kwargs: Any) -> Any:
    return attention(hidden_states, **kwargs)[0]


def _decode(
    self: Any, stream: Tensor, attend: Any, attention_mask: Any = None,
    encoder_hidden_states: Any = None, encoder_attention_mask: Any = None, cache: Any = None,
    use_cache: bool | None = True, **kwargs: Any,
) -> Any:  # fmt: skip
    """Run a pre-norm decoder layer, with self-attention and attention to the encoder's result."""
    drop = Drop(self.dropout, self.training)
    x = self.self_attn_layer_norm(stream)
    branch = attend(self.self_attn, x, cache=cache, attention_mask=attention_mask, **kwargs)
    if encoder_hidden_states is not None:
        x, stream = end_branch(
            branch, stream, self.encoder_attn_layer_norm, drop, into=self.encoder_attn
        )
        branch = attend(
            self.encoder_attn, x, key_value_states=encoder_hidden_states,
            attention_mask=encoder_attention_mask, cache=cache, **kwargs,
        )  # fmt: skip
    x, stream = end_branch(branch, stream, self.final_layer_norm, drop, into=self.fc1)
    return stream + drop(feed_forward(self, x))


def _gpt_neox_ends(block: Any) -> Ends:
    if block.use_parallel_residual:
        return {}
    return {"post_attention_layernorm": ("post_attention_dropout",)}


def _opt_ends(block: Any) -> Ends:
    norms = ("self_attn_layer_norm", "final_layer_norm")
    return dict.fromkeys(norms[1:] if block.do_layer_norm_before else norms, ("dropout",))


_AFTER_ATTENTION: Ends = {"post_attention_layernorm": ()}
_CROSS: Ends = {"encoder_attn_layer_norm": ("dropout",), "final_layer_norm": ("dropout",)}

FORMS = (
    block_form(_llama, "625e5c2cd738", _AFTER_ATTENTION),
    block_form(_granite, "5cbb48e16f7e", _AFTER_ATTENTION),
    block_form(_phi3, "bf5a509ce04c", {"post_attention_layernorm": ("resid_attn_dropout",)}),
    block_form(_mixtral, "99046d450f64", _AFTER_ATTENTION),
    block_form(_gemma2, "9e2d28175860", {"pre_feedforward_layernorm": ()}),
    block_form(_glm4, "e1d5dec28ce2", _AFTER_ATTENTION),
    block_form(_glm4v, "ad5e2f5ed6c6", _AFTER_ATTENTION),
    block_form(_qwen3_next, "b53a18182f3a", _AFTER_ATTENTION),
    block_form(_gpt2, "823c366502c8", {"ln_cross_attn": (), "ln_2": ()}),
    block_form(_gpt_neox, "5ae6fa9dbe03", _gpt_neox_ends),
    block_form(_opt, "0eed4cf0af68", _opt_ends),
    block_form(_biogpt, "0898f7dc83ef", {"final_layer_norm": ("dropout",)}),
    block_form(_mbart_decoder, "71b00b8defc0", _CROSS),
    block_form(_whisper_decoder, "deb3ef154c76", _CROSS),
)
