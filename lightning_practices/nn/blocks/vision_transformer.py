"""The block of torchvision's vision transformer, with the fused kernel."""

from typing import Any

from torch import Tensor
from torchvision.models import vision_transformer
from typing_extensions import override

from lightning_practices.nn._residual import drop_add_norm
from lightning_practices.nn.blocks.block import FusedBlock


class EncoderBlock(FusedBlock, vision_transformer.EncoderBlock):  # type: ignore[misc]  # untyped
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
        num_heads: Number of attention heads. For all other arguments see
            :mod:`torchvision.models.vision_transformer`.

    Shape:
        - Input: ``(N, S, hidden_dim)``.
        - Output: shape of the input.
    """

    original = vision_transformer.EncoderBlock
    sources = {"forward": ("7c331f587035",)}

    @override
    def forward(self: Any, input: Tensor) -> Any:
        if input.dim() != 3 or not self.folds(input):
            return self.original.forward(self, input)
        x = self.ln_1(input)
        x, _ = self.self_attention(x, x, x, need_weights=False)
        x, z = drop_add_norm(x, input, self.dropout, self.ln_2)
        branch: Tensor = self.mlp(x)
        return z + branch
