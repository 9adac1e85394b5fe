"""The block of torchvision's vision transformer, over the fused kernel."""

from torch import Tensor
from torchvision.models import vision_transformer
from typing_extensions import override

from lightning_practices.nn._residual import can_fold, drop_add_norm


class EncoderBlock(vision_transformer.EncoderBlock):  # type: ignore[misc]  # untyped
    r"""Attend and feed forward, with the end of the first branch and the norm in one kernel.

    .. math::
        z = x + \mathrm{dropout}(\mathrm{attention}(\mathrm{ln}_1(x))), \qquad
        x' = z + \mathrm{mlp}(\mathrm{ln}_2(z))

    where dropout, addition and :math:`\mathrm{ln}_2` are
    :func:`lightning_kernels.add_dropout_layer_norm`. Still torchvision's ``EncoderBlock``, whose
    forward runs where the kernels do not, see :func:`lightning_kernels.route`; a dropout or norm
    with hooks, or of a class that is neither torch's nor this package's, is called as ever.

    Dosovitskiy et al., 2020, *An Image is Worth 16x16 Words*, arXiv:2010.11929.

    Args:
        num_heads: As all others, see :mod:`torchvision.models.vision_transformer`.

    Shape:
        - Input: ``(N, S, hidden_dim)``.
        - Output: as the input.
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 3 or not can_fold(self, vision_transformer.EncoderBlock, (), input):
            result: Tensor = super().forward(input)
            return result
        x = self.ln_1(input)
        x, _ = self.self_attention(x, x, x, need_weights=False)
        x, z = drop_add_norm(x, input, self.dropout, self.ln_2)
        branch: Tensor = self.mlp(x)
        return z + branch
