"""Fused forwards of transformers' blocks of convolution, norm and activation.

The classes are known by their source code, as those of ``transformers_layers``.
"""

from typing import Any

from torch import Tensor
from typing_extensions import override

from lightning_practices.nn import norm_activation
from lightning_practices.nn.blocks import Chain, FusedBlock, Steps
from lightning_practices.surgery._fuse.transformers_forms import Form


class _ConvNormActivation(Steps):
    """ResNet, RegNet, MobileViT, BEiT, UperNet, PP-LCNet."""

    steps = ("convolution", "normalization", "activation")


class _MobileNet(Steps):
    """MobileNet V1 and V2, with the padding of TensorFlow."""

    steps = ("convolution", "normalization", "activation")

    @override
    def start(self: Any, x: Tensor) -> Any:
        if not self.config.tf_padding:
            return x
        pad = self.original.forward.__globals__["apply_tf_padding"]
        return pad(x, self.convolution)


class _Detr(Steps):
    """The backbones of RT-DETR, D-FINE and others, and DETR's convolutions of masks."""

    steps = ("conv", "norm", "activation")


class _HGNet(Steps):
    """HGNet V2, PP-LCNet V4."""

    steps = ("convolution", "normalization", "activation", "lab")


class _ConvBatchNorm(Steps):
    """UperNet, TextNet."""

    steps = ("conv", "batch_norm", "activation")


class _Embeddings(Steps):
    """The stem of EfficientNet and ALIGN."""

    steps = ("padding", "convolution", "batchnorm", "activation")


class _Expansion(Steps):
    """The first convolution of a block of EfficientNet and ALIGN."""

    steps = ("expand_conv", "expand_bn", "expand_act")


class _Depthwise(Steps):
    """The second convolution of a block of EfficientNet and ALIGN."""

    steps = ("depthwise_conv", "depthwise_norm", "depthwise_act")

    @override
    def start(self: Any, x: Tensor) -> Any:
        return self.depthwise_conv_pad(x) if self.stride == 2 else x


class _Conformer(FusedBlock):
    """The convolutions of Wav2Vec2-Conformer and SeamlessM4T."""

    @override
    def chains(self) -> tuple[Chain, ...]:
        return (Chain("batch_norm", "activation"),)

    def end(self: Any, x: Tensor) -> Any:
        """Return the result for the normalised input ``x``, where no mask is left to apply."""
        x = self.glu(self.pointwise_conv1(x.transpose(1, 2)))
        x = norm_activation(self.depthwise_conv(x), self.batch_norm, self.activation)
        return self.dropout(self.pointwise_conv2(x)).transpose(1, 2)


def _wav2vec2_conformer(self: Any, hidden_states: Tensor) -> Any:
    if not self.folds(hidden_states):
        return self.original.forward(self, hidden_states)
    return self.end(self.layer_norm(hidden_states))


def _seamless(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Any:
    if not self.folds(hidden_states):
        return self.original.forward(self, hidden_states, attention_mask)
    x = self.layer_norm(hidden_states)
    if attention_mask is not None:
        x = x.masked_fill(~attention_mask.bool().unsqueeze(-1), 0.0)
    return self.end(x)


_STEPS = tuple(
    Form(base.forward, {"forward": tuple(sources)}, base)
    for base, *sources in (
        (_ConvNormActivation, "b8a5ee764a62", "527228c80d57", "c01b1db441f2"),
        (_MobileNet, "b9ea5619f0b9"),
        (_Detr, "776e7f5174f4", "5b7b86900c1b"),
        (_HGNet, "af686d9ae0a6"),
        (_ConvBatchNorm, "20291c2edb1f", "0d56794cfc6b"),
        (_Embeddings, "e187dde39619"),
        (_Expansion, "44804836dcd0"),
        (_Depthwise, "4bf1730a0752"),
    )
)
FORMS = (
    *_STEPS,
    Form(_wav2vec2_conformer, {"forward": ("fc388fc59298",)}, _Conformer),
    Form(_seamless, {"forward": ("5a42135f7e41",)}, _Conformer),
)
