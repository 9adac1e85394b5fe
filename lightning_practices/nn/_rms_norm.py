"""Root mean square normalisation over the fused kernel."""

from torch import Tensor, nn
from typing_extensions import override

import lightning_kernels
from lightning_kernels import Autocast


class RMSNorm(nn.RMSNorm):
    r"""Divide the last dimensions by their root mean square, in one kernel each way.

    .. math:: y = \frac{x}{\sqrt{\overline{x^2} + \epsilon}} \cdot \gamma

    It is a subclass of :class:`torch.nn.RMSNorm` and inherits its constructor, ``state_dict`` and
    ``repr``, so checkpoints go both ways. Queries and keys may be views of one projection: the
    kernel reads the heads in place, without a copy.

    Zhang and Sennrich, 2019, *Root Mean Square Layer Normalization*, arXiv:1910.07467.

    Args:
        normalized_shape: Shape of the last dimensions of the input, over which to normalise.
        eps: Added to the mean square. Default: the machine epsilon of float32, or of float64 for
            float64 inputs.
        elementwise_affine: Learn :math:`\gamma` (``weight``, ones at first).
        device: Device of the parameter.
        dtype: Dtype of the parameter.

    Attributes:
        autocast: As in :func:`lightning_kernels.rms_norm`. ``"match"`` returns float32 where torch
            does.

    Shape:
        - Input: ``(*, *normalized_shape)``, any floating dtype.
        - Output: shape and dtype of the input (torch returns float32 under autocast on a GPU).

    Raises:
        RuntimeError: From ``forward``, if the input's shape does not end in ``normalized_shape``.
        NotImplementedError: From ``forward``, if the input is not floating.
    """

    autocast: Autocast = "input"

    @override
    def forward(self, x: Tensor) -> Tensor:
        return lightning_kernels.rms_norm(
            x, self.normalized_shape, self.weight, self.eps, autocast=self.autocast
        )
