"""Transformer layers with a fused kernel at the end of their branches."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices._arguments import (
    check_callable,
    check_choice,
    check_flag,
    check_heads,
    check_number,
    check_whole,
)
from lightning_practices.nn._fused_layer import FusedLayer, refuse_proxy
from lightning_practices.nn._residual import can_fold, drop_add_norm, norm_of_sum


class FusedTransformerLayer(FusedLayer):
    """Base class of the two layers below: their constructor, with checks of its arguments."""

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_heads("nhead", nhead, "d_model", d_model)
        if isinstance(activation, str):
            check_choice("activation", activation, ("relu", "gelu"), "a function")
        else:
            check_callable("activation", activation, "'relu', 'gelu' or a function")
        super().__init__(
            d_model,
            nhead,
            check_whole("dim_feedforward", dim_feedforward, 1),
            check_number("dropout", dropout, ge=0, le=1),
            activation,
            check_number("layer_norm_eps", layer_norm_eps, ge=0),
            check_flag("batch_first", batch_first),
            check_flag("norm_first", norm_first),
            check_flag("bias", bias),
            device,
            dtype,
        )


class TransformerEncoderLayer(FusedTransformerLayer, nn.TransformerEncoderLayer):
    r"""Attention and feed forward, with the end of a branch and the norm after it in one kernel.

    .. math::
        z = x + \mathrm{dropout}_1(\mathrm{attention}(\mathrm{norm}_1(x))), \qquad
        x' = z + \mathrm{dropout}_2(\mathrm{feed\_forward}(\mathrm{norm}_2(z)))

    with ``norm_first``. There, :math:`\mathrm{dropout}_1`, the addition and :math:`\mathrm{norm}_2`
    are one kernel, :func:`lightning_kernels.add_dropout_layer_norm`. Without ``norm_first``

    .. math::
        y = \mathrm{norm}_1(x + \mathrm{dropout}_1(\mathrm{attention}(x))), \qquad
        x' = \mathrm{norm}_2(y + \mathrm{dropout}_2(\mathrm{feed\_forward}(y)))

    and both branches end in this kernel. With ``norm_first`` the second branch ends in a plain
    addition: the norm after it is part of the next layer, whose parameters may be in another shard
    or whose activations may be checkpointed.

    The layer is a subclass of :class:`torch.nn.TransformerEncoderLayer` with its arguments,
    children, state and ``repr``. Torch's forward runs in these cases: where the
    kernels don't run (see :func:`lightning_kernels.route`); if a subclass has its own ``_sa_block``
    or ``_ff_block``; and in evaluation without autocast, for which torch has one kernel for the
    whole layer. Dropout and norm are called one by one if they have hooks or a class that is
    neither torch's nor this package's.

    Vaswani et al., 2017, *Attention Is All You Need*, arXiv:1706.03762; Xiong et al., 2020, *On
    Layer Normalization in the Transformer Architecture*, arXiv:2002.04745.

    Args:
        d_model: Number of features of a token.
        nhead: Number of attention heads, a divisor of ``d_model``.
        dim_feedforward: Number of hidden features of the feed-forward network.
        dropout: Probability that dropout zeroes an element: at the end of each branch, in the
            feed-forward network, and of the attention weights.
        activation: ``"relu"``, ``"gelu"`` or a function, in the feed-forward network.
        layer_norm_eps: Number added to the variance in the norms.
        batch_first: Whether the batch is the first dimension of inputs and output, not the second.
        norm_first: Whether each branch begins with its norm, or else ends with it.
        bias: Whether linear layers and norms have a bias.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If ``nhead`` does not divide ``d_model``, or a number is out of range.

    Shape:
        - Input: ``(N, S, d_model)`` with ``batch_first``, else ``(S, N, d_model)``; or without N.
        - Output: shape of the input.

    Example:
        >>> from lightning_practices.nn import TransformerEncoderLayer
        >>> sizes = {"d_model": 32, "nhead": 4, "dim_feedforward": 64, "batch_first": True}
        >>> layer, plain = TransformerEncoderLayer(**sizes), nn.TransformerEncoderLayer(**sizes)
        >>> plain.load_state_dict(layer.state_dict())
        <All keys matched successfully>
        >>> x = torch.randn(2, 10, 32)
        >>> torch.allclose(layer.eval()(x), plain.eval()(x), atol=1e-5)
        True
    """

    @override
    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        refuse_proxy(src)
        masks = src_mask, src_key_padding_mask, is_causal
        if not (self.training or torch.is_autocast_enabled()) or not can_fold(
            self, nn.TransformerEncoderLayer, ("_sa_block", "_ff_block"), src
        ):
            return super().forward(src, *masks)
        if self.norm_first:
            x = self.norm1(src)
            attended = _attend(self.self_attn, x, x, *masks)
            x, z = drop_add_norm(attended, src, self.dropout1, self.norm2)
            dropped: Tensor = self.dropout2(_feed_forward(self, x))
            return z + dropped
        attended = _attend(self.self_attn, src, src, *masks)
        x = norm_of_sum(attended, src, self.dropout1, self.norm1)
        return norm_of_sum(_feed_forward(self, x), x, self.dropout2, self.norm2)


class TransformerDecoderLayer(FusedTransformerLayer, nn.TransformerDecoderLayer):
    """Self-attention, attention to a memory, and feed forward, with fused ends of branches.

    It is the counterpart of :class:`TransformerEncoderLayer`. With ``norm_first`` the fused kernel
    ends two of the three branches, without it all three. The layer is a subclass of
    :class:`torch.nn.TransformerDecoderLayer`. Torch's forward runs where the kernels don't, and if
    a subclass has its own ``_sa_block``, ``_mha_block`` or ``_ff_block``.

    Vaswani et al., 2017, *Attention Is All You Need*, arXiv:1706.03762.

    Args:
        d_model: Number of features of a token.
        nhead: Number of attention heads, a divisor of ``d_model``.
        dim_feedforward: Number of hidden features of the feed-forward network.
        dropout: Probability that dropout zeroes an element: at the end of each branch, in the
            feed-forward network, and of the attention weights.
        activation: ``"relu"``, ``"gelu"`` or a function, in the feed-forward network.
        layer_norm_eps: Number added to the variance in the norms.
        batch_first: Whether the batch is the first dimension of inputs and output, not the second.
        norm_first: Whether each branch begins with its norm, or else ends with it.
        bias: Whether linear layers and norms have a bias.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Shape:
        - Input: ``(N, T, d_model)`` with ``batch_first``, else ``(T, N, d_model)``; or without N.
        - Memory: shape of the input, with ``S`` in place of ``T``.
        - Output: shape of the input.

    Raises:
        ValueError: If ``nhead`` does not divide ``d_model``, or a number is out of range.

    Example:
        >>> from lightning_practices.nn import TransformerDecoderLayer
        >>> sizes = {"d_model": 32, "nhead": 4, "dim_feedforward": 64, "batch_first": True}
        >>> layer, plain = TransformerDecoderLayer(**sizes), nn.TransformerDecoderLayer(**sizes)
        >>> plain.load_state_dict(layer.state_dict())
        <All keys matched successfully>
        >>> tokens, memory = torch.randn(2, 5, 32), torch.randn(2, 9, 32)
        >>> torch.allclose(layer.eval()(tokens, memory), plain.eval()(tokens, memory), atol=1e-5)
        True
    """

    @override
    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        if not can_fold(
            self, nn.TransformerDecoderLayer, ("_sa_block", "_mha_block", "_ff_block"), tgt
        ):
            return super().forward(
                tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask,
                tgt_is_causal, memory_is_causal,
            )  # fmt: skip
        own = tgt_mask, tgt_key_padding_mask, tgt_is_causal
        cross = memory_mask, memory_key_padding_mask, memory_is_causal
        if self.norm_first:
            x = self.norm1(tgt)
            attended = _attend(self.self_attn, x, x, *own)
            x, z = drop_add_norm(attended, tgt, self.dropout1, self.norm2)
            attended = _attend(self.multihead_attn, x, memory, *cross)
            x, z = drop_add_norm(attended, z, self.dropout2, self.norm3)
            dropped: Tensor = self.dropout3(_feed_forward(self, x))
            return z + dropped
        attended = _attend(self.self_attn, tgt, tgt, *own)
        x = norm_of_sum(attended, tgt, self.dropout1, self.norm1)
        attended = _attend(self.multihead_attn, x, memory, *cross)
        x = norm_of_sum(attended, x, self.dropout2, self.norm2)
        return norm_of_sum(_feed_forward(self, x), x, self.dropout3, self.norm3)


def _attend(
    attention: nn.Module, x: Tensor, memory: Tensor, mask: Tensor | None, padding: Tensor | None,
    is_causal: bool,
) -> Tensor:  # fmt: skip
    """Return the output of ``attention`` from ``x`` to ``memory``, before dropout."""
    attended: Tensor = attention(
        x, memory, memory, attn_mask=mask, key_padding_mask=padding, need_weights=False,
        is_causal=is_causal,
    )[0]  # fmt: skip
    return attended


def _feed_forward(layer: Any, x: Tensor) -> Tensor:
    """Return the output of the feed-forward branch, before its last dropout."""
    result: Tensor = layer.linear2(layer.dropout(layer.activation(layer.linear1(x))))
    return result
