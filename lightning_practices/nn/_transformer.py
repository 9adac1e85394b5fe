"""Transformer layers with a fused kernel at the end of their branches."""

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices.nn._fused_layer import FusedLayer
from lightning_practices.nn._residual import can_fold, drop_add_norm, norm_of_sum


class TransformerEncoderLayer(FusedLayer, nn.TransformerEncoderLayer):
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

    The layer is a subclass of :class:`torch.nn.TransformerEncoderLayer` and inherits its
    constructor, children, state and ``repr``. Torch's forward runs in these cases: where the
    kernels don't run (see :func:`lightning_kernels.route`); if a subclass has its own ``_sa_block``
    or ``_ff_block``; and in evaluation without autocast, for which torch has one kernel for the
    whole layer. Dropout and norm are called one by one if they have hooks or a class that is
    neither torch's nor this package's.

    Vaswani et al., 2017, *Attention Is All You Need*, arXiv:1706.03762; Xiong et al., 2020, *On
    Layer Normalization in the Transformer Architecture*, arXiv:2002.04745.

    Args:
        d_model: Number of features. For all other arguments see
            :class:`torch.nn.TransformerEncoderLayer`.

    Shape:
        - Input: ``(N, S, d_model)`` with ``batch_first``, else ``(S, N, d_model)``; or without N.
        - Output: shape of the input.
    """

    @override
    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
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


class TransformerDecoderLayer(FusedLayer, nn.TransformerDecoderLayer):
    """Self-attention, attention to a memory, and feed forward, with fused ends of branches.

    It is the counterpart of :class:`TransformerEncoderLayer`. With ``norm_first`` the fused kernel
    ends two of the three branches, without it all three. The layer is a subclass of
    :class:`torch.nn.TransformerDecoderLayer`. Torch's forward runs where the kernels don't, and if
    a subclass has its own ``_sa_block``, ``_mha_block`` or ``_ff_block``.

    Vaswani et al., 2017, *Attention Is All You Need*, arXiv:1706.03762.

    Args:
        d_model: Number of features. For all other arguments see
            :class:`torch.nn.TransformerDecoderLayer`.

    Shape:
        - Input: ``(N, T, d_model)`` with ``batch_first``, else ``(T, N, d_model)``; or without N.
        - Memory: shape of the input, with ``S`` in place of ``T``.
        - Output: shape of the input.
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
