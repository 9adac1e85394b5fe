"""Small blocks and models of timm, and how to compare what they compute."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices.surgery import Folded, Report

timm: Any = pytest.importorskip("timm")
kernel = pytest.mark.kernel
MODELS: Any = timm.models
VIT: Any = MODELS.vision_transformer
DIM = 8


def given(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def small(model: nn.Module) -> Any:
    """Return ``model`` with random parameters for which float32 is precise."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def maxvit(cls: Any) -> Any:
    cfg = MODELS.maxxvit.MaxxVitTransformerCfg(dim_head=4, window_size=4, init_values=0.5)
    return cls(DIM, cfg=cfg)


# A block of each class, the shape of its input without the batch, and its other arguments.
TOKENS, MAP = (16, DIM), (4, 4, DIM)
BLOCKS: dict[str, tuple[Callable[[], Any], tuple[int, ...], tuple[Any, ...]]] = {
    "vision_transformer.Block": (lambda: VIT.Block(DIM, 2, init_values=0.5), TOKENS, ()),
    "eva.EvaBlock": (
        lambda: MODELS.eva.EvaBlock(DIM, 2, init_values=0.5, num_prefix_tokens=0),
        TOKENS,
        (given(16, 8),),
    ),
    "deepseek_vit.DeepseekVitBlock": (
        lambda: MODELS.deepseek_vit.DeepseekVitBlock(DIM, 2, norm_layer=timm.layers.RmsNorm),
        TOKENS,
        (given(16, 8),),
    ),
    "beit.Block": (lambda: MODELS.beit.Block(DIM, 2, init_values=0.5), TOKENS, ()),
    "vision_transformer_relpos.RelPosBlock": (
        lambda: MODELS.vision_transformer_relpos.RelPosBlock(DIM, 2, init_values=0.5),
        TOKENS,
        (),
    ),
    "swin_transformer.SwinTransformerBlock": (
        lambda: MODELS.swin_transformer.SwinTransformerBlock(
            DIM, (4, 4), 2, window_size=2, shift_size=1
        ),
        MAP,
        (),
    ),
    "gcvit.GlobalContextVitBlock": (
        lambda: MODELS.gcvit.GlobalContextVitBlock(
            DIM, (4, 4), 2, window_size=4, layer_scale=0.5
        ),
        MAP,
        (given(2, 16, DIM),),
    ),
    "cait.LayerScaleBlock": (lambda: MODELS.cait.LayerScaleBlock(DIM, 2), TOKENS, ()),
    "convit.Block": (lambda: MODELS.convit.Block(DIM, 2, use_gpsa=False), TOKENS, ()),
    "nest.TransformerLayer": (
        lambda: MODELS.nest.TransformerLayer(DIM, 2), (2, *TOKENS), (),
    ),
    "volo.Outlooker": (lambda: MODELS.volo.Outlooker(DIM, 3, 1, num_heads=2), MAP, ()),
    "volo.Transformer": (lambda: MODELS.volo.Transformer(DIM, 2), MAP, ()),
    "pvt_v2.Block": (lambda: MODELS.pvt_v2.Block(DIM, 2, sr_ratio=2), TOKENS, ([4, 4],)),
    "twins.Block": (lambda: MODELS.twins.Block(DIM, 2, ws=2), TOKENS, ((4, 4),)),
    "efficientformer.MetaBlock1d": (
        lambda: MODELS.efficientformer.MetaBlock1d(DIM), (49, DIM), (),
    ),
    "maxxvit.PartitionAttentionCl": (
        lambda: maxvit(MODELS.maxxvit.PartitionAttentionCl), MAP, (),
    ),
    "maxxvit.ParallelPartitionAttention": (
        lambda: maxvit(MODELS.maxxvit.ParallelPartitionAttention), MAP, (),
    ),
    "vision_transformer_sam.Block": (
        lambda: MODELS.vision_transformer_sam.Block(DIM, 2, init_values=0.5, window_size=3),
        MAP,
        (),
    ),
    "mlp_mixer.MixerBlock": (lambda: MODELS.mlp_mixer.MixerBlock(DIM, 16), TOKENS, ()),
    "sequencer.Sequencer2dBlock": (
        lambda: MODELS.sequencer.Sequencer2dBlock(DIM, 4), MAP, (),
    ),
    "xcit.XCABlock": (lambda: MODELS.xcit.XCABlock(DIM, 2), TOKENS, (4, 4)),
    "gemma4_vit.Gemma4Block": (
        lambda: MODELS.gemma4_vit.Gemma4Block(DIM, 2, 8, 16),
        TOKENS,
        (given(1, 16, 8), given(1, 16, 8)),
    ),
}  # fmt: skip
each_block = pytest.mark.parametrize("name", BLOCKS)


class Given(nn.Module):
    """A block with its other arguments."""

    def __init__(self, block: nn.Module, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.block, self.arguments = block, arguments

    @override
    def forward(self, x: Tensor) -> Any:
        def like(a: Any) -> Any:
            return a.to(x) if isinstance(a, Tensor) else a

        return self.block(x, *map(like, self.arguments))


def built(name: str) -> tuple[Given, Tensor]:
    """Return a block with random parameters, and an input."""
    build, shape, arguments = BLOCKS[name]
    return small(Given(build(), arguments)), torch.randn(2, *shape)


def vit(depth: int = 3, **options: Any) -> Any:
    return small(
        VIT.VisionTransformer(
            img_size=16, patch_size=8, embed_dim=DIM, depth=depth, num_heads=2, num_classes=5,
            **options,
        )
    )  # fmt: skip


def rms_vit() -> Any:
    return vit(norm_layer=timm.layers.RmsNorm)


def swin() -> Any:
    return small(
        MODELS.SwinTransformer(
            img_size=32, patch_size=4, window_size=4, embed_dim=DIM, depths=(2, 2),
            num_heads=(2, 2), num_classes=5, drop_path_rate=0.0,
        )
    )  # fmt: skip


def images(size: int = 16) -> Tensor:
    return torch.randn(2, 3, size, size)


WHOLE: list[tuple[Callable[[], Any], int, int]] = [(vit, 16, 5), (rms_vit, 16, 5), (swin, 32, 6)]
each_model = pytest.mark.parametrize(("build", "size", "folds"), WHOLE)


def close(actual: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def sums(report: Report) -> list[Folded]:
    return [fold for fold in report.folded if "add + " in fold.chain and "Norm" in fold.chain[6:]]
