"""Root mean square normalisation by the fused kernel."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

import lightning_kernels
from lightning_kernels import Autocast
from lightning_practices._arguments import check_flag, check_number, check_sizes
from lightning_practices.nn._fused_layer import FusedLayer


class RMSNorm(FusedLayer, nn.RMSNorm):
    r"""Divide the last dimensions by their root mean square: one kernel forward, one backward.

    .. math:: y = \frac{x}{\sqrt{\overline{x^2} + \epsilon}} \cdot \gamma

    The layer is a subclass of :class:`torch.nn.RMSNorm` and has its arguments,
    ``state_dict`` and ``repr``, so each layer loads the other's checkpoints. Queries and keys may
    be views of one projection: the kernel reads the heads in place, without a copy.

    Zhang and Sennrich, 2019, *Root Mean Square Layer Normalization*, arXiv:1910.07467.

    Args:
        normalized_shape: Shape of the last dimensions of the input, over which to normalise.
        eps: Number added to the mean square. Default: the machine epsilon of float32, or of float64
            for float64 inputs.
        elementwise_affine: Whether to learn :math:`\gamma` (``weight``, initially 1).
        device: Device of the parameter.
        dtype: Dtype of the parameter.

    Attributes:
        autocast: Dtype of the output under autocast, as in :func:`lightning_kernels.rms_norm`.
            ``"match"`` returns float32 wherever torch does.

    Shape:
        - Input: ``(*, *normalized_shape)``, any floating dtype.
        - Output: shape and dtype of the input (torch returns float32 under autocast on a GPU).

    Raises:
        ValueError: If ``normalized_shape`` is empty or negative, or ``eps`` is negative or nan.
        RuntimeError: From ``forward``, if the input's shape does not end in ``normalized_shape``.
        NotImplementedError: From ``forward``, if the input's dtype is not floating.

    Example:
        >>> from lightning_practices.nn import RMSNorm
        >>> y = RMSNorm(64)(5 + 3 * torch.randn(4, 10, 64))
        >>> torch.allclose(y.square().mean(-1), torch.ones(4, 10), atol=1e-5)
        True
    """

    autocast: Autocast = "input"

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            check_sizes("normalized_shape", normalized_shape),
            None if eps is None else check_number("eps", eps, ge=0),
            check_flag("elementwise_affine", elementwise_affine),
            device,
            dtype,
        )

    @override
    def forward(self, x: Tensor) -> Tensor:
        return lightning_kernels.rms_norm(
            x, self.normalized_shape, self.weight, self.eps, autocast=self.autocast
        )
