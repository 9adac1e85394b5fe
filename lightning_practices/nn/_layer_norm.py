"""Layer normalisation over the fused kernel."""

from torch import Tensor, nn
from typing_extensions import override

import lightning_kernels
from lightning_kernels import Autocast


class LayerNorm(nn.LayerNorm):
    r"""Normalise the last dimensions of every sample, in one kernel each way.

    .. math::
        y = \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma + \beta

    Mean and biased variance are taken over ``normalized_shape``, in training and evaluation
    alike, and kept in float32 whatever the input's type. Still a :class:`torch.nn.LayerNorm`: the
    constructor, ``state_dict`` and ``repr`` are inherited, so checkpoints go both ways. Eager and
    compiled only: for TorchScript or ``torch.fx``, see :func:`lightning_practices.surgery.unfuse`.

    Ba et al., 2016, *Layer Normalization*, arXiv:1607.06450.

    Args:
        normalized_shape: Shape of the last dimensions of the input, those to normalise.
        eps: Added to the variance.
        elementwise_affine: Learn :math:`\gamma` (``weight``, ones at first).
        bias: Learn :math:`\beta` (``bias``, zeros at first) too.
        device: Of the parameters.
        dtype: Of the parameters.

    Attributes:
        autocast: As in :func:`lightning_kernels.layer_norm`: ``"match"`` returns float32 where
            torch does.

    Shape:
        - Input: ``(*, *normalized_shape)``, any floating dtype.
        - Output: as the input, its dtype included (torch's is float32 under a GPU's autocast).

    Raises:
        RuntimeError: From ``forward``, if the input's shape does not end in ``normalized_shape``,
            or its type is not floating.
    """

    autocast: Autocast = "input"

    @override
    def forward(self, input: Tensor) -> Tensor:
        return lightning_kernels.layer_norm(
            input, self.normalized_shape, self.weight, self.bias, self.eps, autocast=self.autocast
        )
