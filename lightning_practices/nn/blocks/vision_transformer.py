"""The block of torchvision's vision transformer, with the fused kernel."""

from collections.abc import Callable
from inspect import signature
from typing import Any

from torch import Tensor, nn
from torchvision.models import vision_transformer
from typing_extensions import override

from lightning_practices._arguments import (
    check_callable,
    check_heads,
    check_number,
    check_whole,
)
from lightning_practices.nn.blocks.pre_norm import Branch, PreNormBlock

_DEFAULTS = signature(vision_transformer.EncoderBlock).parameters
_NORM_LAYER: Callable[..., nn.Module] = _DEFAULTS["norm_layer"].default


def _attend(block: Any, x: Tensor) -> Tensor:
    attended: Tensor = block.self_attention(x, x, x, need_weights=False)[0]
    return attended


def _feed_forward(block: Any, x: Tensor) -> Tensor:
    result: Tensor = block.mlp(x)
    return result


class EncoderBlock(PreNormBlock, vision_transformer.EncoderBlock):  # type: ignore[misc]  # untyped
    r"""Attention and feed forward, with the end of the first branch and the norm in one kernel.

    .. math::
        z = x + \mathrm{dropout}(\mathrm{attention}(\mathrm{ln}_1(x))), \qquad
        x' = z + \mathrm{mlp}(\mathrm{ln}_2(z))

    where dropout, addition and :math:`\mathrm{ln}_2` are one kernel,
    :func:`lightning_kernels.add_dropout_layer_norm`. The block is a subclass of torchvision's
    ``EncoderBlock``, whose forward runs where the kernels don't, see
    :func:`lightning_kernels.route`. Dropout and norm are called one by one if they have hooks or a
    class that is neither torch's nor this package's.

    Dosovitskiy et al., 2020, *An Image is Worth 16x16 Words*, arXiv:2010.11929.

    Args:
        num_heads: Number of attention heads, a divisor of ``hidden_dim``.
        hidden_dim: Number of features of a token.
        mlp_dim: Number of hidden features of the feed-forward network.
        dropout: Probability that dropout zeroes an element, after the attention and in the
            feed-forward network.
        attention_dropout: Probability that an attention weight is zeroed.
        norm_layer: Function that makes the norms of ``hidden_dim`` features.

    Raises:
        ValueError: If ``num_heads`` does not divide ``hidden_dim``, or a number is out of range.

    Shape:
        - Input: ``(N, S, hidden_dim)``.
        - Output: shape of the input.

    Example:
        >>> from lightning_practices.nn import EncoderBlock
        >>> block = EncoderBlock(4, hidden_dim=32, mlp_dim=64, dropout=0.1, attention_dropout=0.0)
        >>> block(torch.randn(2, 10, 32)).shape
        torch.Size([2, 10, 32])
        >>> sorted(name for name, _ in block.named_children())  # torchvision's, so checkpoints load
        ['dropout', 'ln_1', 'ln_2', 'mlp', 'self_attention']
    """

    original = vision_transformer.EncoderBlock
    sources = {"forward": ("7c331f587035",)}
    branches = Branch("ln_1", _attend, dropout="dropout"), Branch("ln_2", _feed_forward)

    def __init__(
        self,
        num_heads: int,
        hidden_dim: int,
        mlp_dim: int,
        dropout: float,
        attention_dropout: float,
        norm_layer: Callable[..., nn.Module] = _NORM_LAYER,
    ) -> None:
        check_heads("num_heads", num_heads, "hidden_dim", hidden_dim)
        super().__init__(
            num_heads,
            hidden_dim,
            check_whole("mlp_dim", mlp_dim, 1),
            check_number("dropout", dropout, ge=0, le=1),
            check_number("attention_dropout", attention_dropout, ge=0, le=1),
            check_callable("norm_layer", norm_layer, "a function that makes a norm"),
        )

    @override
    def folds(self, x: Tensor) -> bool:
        return super().folds(x) and x.dim() == 3

    @override
    def forward(self: Any, input: Tensor) -> Any:  # torchvision's name of the argument
        return super().forward(input)
