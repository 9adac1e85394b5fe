"""timm's blocks whose branches begin with a norm: vision transformers, MLP mixers and others."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from timm.models import vision_transformer_sam as sam
from torch import Tensor

from lightning_practices.nn.blocks.pre_norm import Branch, PreNormBlock

Function = Callable[..., Tensor]


def _call(name: str) -> Function:
    """Return the function that calls a child or a method of the block, without arguments."""

    def function(block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return getattr(block, name)(x)

    return function


def _call_transposed(name: str) -> Function:
    """Return the function that calls a child of the block for tokens instead of channels."""

    def function(block: Any, x: Tensor) -> Any:
        return getattr(block, name)(x.transpose(1, 2)).transpose(1, 2)

    return function


def _attend_masked(
    block: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Any:
    return block.attn(x, attn_mask=attn_mask, is_causal=is_causal)


def _attend_rotated(
    block: Any, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Any:  # fmt: skip
    return block.attn(x, rope=rope, attn_mask=attn_mask, is_causal=is_causal)


def _deepseek(block: Any, x: Tensor, rope: Tensor | None = None) -> Any:
    return block.attn(x, rope=rope)


def _beit(block: Any, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Any:
    return block.attn(x, shared_rel_pos_bias=shared_rel_pos_bias)


def _relpos(block: Any, x: Tensor, shared_rel_pos: Tensor | None = None) -> Any:
    return block.attn(x, shared_rel_pos=shared_rel_pos)


def _gcvit(block: Any, x: Tensor, q_global: Tensor | None = None) -> Any:
    return block._window_attn(x, q_global)


def _attend_sized(block: Any, x: Tensor, size: Any) -> Any:
    return block.attn(x, size)


def _pvt(name: str) -> Function:
    def function(block: Any, x: Tensor, feat_size: list[int]) -> Any:
        return getattr(block, name)(x, feat_size)

    return function


def _xcit_local(block: Any, x: Tensor, H: int, W: int) -> Any:  # noqa: N803  # timm's names
    return block.local_mp(x, H, W)


def _gemma(
    block: Any, x: Tensor, rope_cos: Tensor, rope_sin: Tensor, attn_mask: Tensor | None = None
) -> Any:
    return block.attn(x, rope_cos, rope_sin, attn_mask=attn_mask)


def _sam(block: Any, x: Tensor) -> Any:
    """Attend in windows, and drop windows."""
    size, padded = x.shape[1:3], None
    if block.window_size > 0:
        x, padded = sam.window_partition(x, block.window_size)
    x = block.drop_path1(block.ls1(block.attn(x)))
    if block.window_size > 0:
        x = sam.window_unpartition(x, block.window_size, size, padded)
    return x


def _tokens(shape: torch.Size) -> tuple[int, ...]:
    """Return the shape (N, H W, C) of a map of shape (N, H, W, C)."""
    return shape[0], -1, shape[-1]


def _two(
    attention: Function, mlp: Function | None = None, *,
    scales: tuple[str, str] | tuple[()] = (), drops: tuple[str, str] = ("drop_path1", "drop_path2"),
    is_map: bool = False,
) -> tuple[Branch, Branch]:  # fmt: skip
    """Return attention and MLP, which begin with ``norm1`` and ``norm2``.

    Args:
        attention: Function of the first branch.
        mlp: Function of the second branch. Default: that of the child ``mlp``.
        scales: Names of the two layer scales.
        drops: Names of the two stochastic depths.
        is_map: Whether the input is a map of shape (N, H, W, C), and that of the MLP (N, H W, C).
    """
    ends = tuple(zip(*filter(None, (scales, drops)), strict=True))
    shapes = (_tokens, tuple) if is_map else (None, None)
    return (
        Branch("norm1", attention, ends[0], shape=shapes[0]),
        Branch("norm2", mlp or _call("mlp"), ends[1], shape=shapes[1]),
    )


_LAYERS = ("ls1", "ls2")
_ONE_DROP = ("drop_path", "drop_path")

# File, class, known source and branches of each block.
_BLOCKS: tuple[tuple[str, str, str, tuple[Branch, ...]], ...] = (
    ("vision_transformer", "Block", "960fb0bc61f3", _two(_attend_masked, scales=_LAYERS)),
    ("eva", "EvaBlock", "5d491db3ef56", _two(_attend_rotated, scales=("gamma_1", "gamma_2"))),
    ("deepseek_vit", "DeepseekVitBlock", "e231a72d74e4", _two(_deepseek)),
    ("beit", "Block", "79da2c21d6c5", _two(_beit, scales=("gamma_1", "gamma_2"))),
    ("vision_transformer_relpos", "RelPosBlock", "8b198a9d3662", _two(_relpos, scales=_LAYERS)),
    ("swin_transformer", "SwinTransformerBlock", "508dc1ff4ecc", _two(_call("_attn"), is_map=True)),
    ("gcvit", "GlobalContextVitBlock", "5766bc6edb2a", _two(_gcvit, scales=_LAYERS)),
    (
        "cait", "LayerScaleBlock", "98f2d9567d09",
        _two(_call("attn"), scales=("gamma_1", "gamma_2"), drops=_ONE_DROP),
    ),
    ("convit", "Block", "8408fbbe0861", _two(_call("attn"), drops=_ONE_DROP)),
    ("nest", "TransformerLayer", "06df2b232c98", _two(_call("attn"))),
    ("volo", "Outlooker", "30101cb2524c", _two(_call("attn"))),
    ("volo", "Transformer", "30101cb2524c", _two(_call("attn"))),
    ("pvt_v2", "Block", "f692c0b1aac3", _two(_pvt("attn"), _pvt("mlp"))),
    ("twins", "Block", "95d69bf02aa9", _two(_attend_sized)),
    (
        "efficientformer", "MetaBlock1d", "187b0fcc11f7",
        _two(_call("token_mixer"), scales=_LAYERS),
    ),
    (
        "maxxvit", "PartitionAttentionCl", "684fa1b640fa",
        _two(_call("_partition_attn"), scales=_LAYERS),
    ),
    (
        "maxxvit", "ParallelPartitionAttention", "684fa1b640fa",
        _two(_call("_partition_attn"), scales=_LAYERS),
    ),
    (
        "vision_transformer_sam", "Block", "c1903cc42d8a",
        (
            Branch("norm1", _sam, shape=_tokens),
            Branch("norm2", _call("mlp"), ("ls2", "drop_path2"), shape=tuple),
        ),
    ),
    (
        "mlp_mixer", "MixerBlock", "0bec3cc26ff9",
        _two(_call_transposed("mlp_tokens"), _call("mlp_channels"), drops=_ONE_DROP),
    ),
    (
        "sequencer", "Sequencer2dBlock", "0d457e5ba5b5",
        _two(_call("rnn_tokens"), _call("mlp_channels"), drops=_ONE_DROP),
    ),
    (
        "xcit", "XCABlock", "e95e246c66db",
        (
            Branch("norm1", _call("attn"), ("gamma1", "drop_path1")),
            Branch("norm3", _xcit_local, ("gamma3", "drop_path3")),
            Branch("norm2", _call("mlp"), ("gamma2", "drop_path2")),
        ),
    ),
    (
        "gemma4_vit", "Gemma4Block", "d710baf241e8",
        (
            Branch("norm1", _gemma, ("norm2", "drop_path")),
            Branch("norm3", _call("mlp"), ("norm4", "drop_path")),
        ),
    ),
)  # fmt: skip


def _fused(original: Any, source: str, branches: tuple[Branch, ...]) -> type[PreNormBlock]:
    """Return the fused class of a block. It has the block's name, since ``repr`` shows it."""
    file = original.__module__.rpartition(".")[2]
    members = {
        "__module__": __name__,
        "__qualname__": f"{file}_{original.__name__}",  # by which pickle finds it
        "__doc__": f"timm's {file}.{original.__name__}.",
        "original": original,
        "sources": {"forward": (source,)},
        "branches": branches,
    }
    return type(original.__name__, (PreNormBlock, original), members)


def _all_fused() -> dict[str, type[PreNormBlock]]:
    """Return the fused classes by name. Other versions of timm have other files and classes."""
    found = {}
    for file, name, source, branches in _BLOCKS:
        original = getattr(sys.modules.get(f"timm.models.{file}"), name, None)
        if original is not None:
            cls = _fused(original, source, branches)
            found[cls.__qualname__] = cls
    return found


globals().update(_all_fused())
