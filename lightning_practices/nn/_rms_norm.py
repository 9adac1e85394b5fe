"""Root mean square normalisation over the fused kernel."""

from torch import Tensor, nn
from typing_extensions import override

import lightning_kernels
from lightning_kernels import Autocast


class RMSNorm(nn.RMSNorm):
    r"""Divide the last dimensions by their root mean square, in one kernel each way.

    .. math:: y = \frac{x}{\sqrt{\overline{x^2} + \epsilon}} \cdot \gamma

    Still a :class:`torch.nn.RMSNorm`: the constructor, ``state_dict`` and ``repr`` are inherited,
    so checkpoints go both ways. Queries and keys may be views into one projection: their heads are
    read where they are.

    Zhang and Sennrich, 2019, *Root Mean Square Layer Normalization*, arXiv:1910.07467.

    Args:
        normalized_shape: Shape of the last dimensions of the input, those to normalise.
        eps: Added to the mean square. Default: the machine epsilon of float32, for float64 its own.
        elementwise_affine: Learn :math:`\gamma` (``weight``, ones at first).
        device: Of the parameter.
        dtype: Of the parameter.

    Attributes:
        autocast: As in :func:`lightning_kernels.rms_norm`: ``"match"`` returns float32 where torch
            does.

    Shape:
        - Input: ``(*, *normalized_shape)``, any floating dtype.
        - Output: as the input, its dtype included (torch's is float32 under a GPU's autocast).

    Raises:
        RuntimeError: From ``forward``, if the input's shape does not end in ``normalized_shape``.
        NotImplementedError: From ``forward``, if its type is not floating.
    """

    autocast: Autocast = "input"

    @override
    def forward(self, x: Tensor) -> Tensor:
        return lightning_kernels.rms_norm(
            x, self.normalized_shape, self.weight, self.eps, autocast=self.autocast
        )
