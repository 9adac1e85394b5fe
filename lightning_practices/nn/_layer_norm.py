"""Layer normalisation by the fused kernel."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

import lightning_kernels
from lightning_kernels import Autocast
from lightning_practices._arguments import check_flag, check_number, check_sizes
from lightning_practices.nn._fused_layer import FusedLayer


class FusedLayerNorm(FusedLayer, nn.LayerNorm):
    """Base class of the fused layer norms. It is no layer by itself: see :class:`LayerNorm`."""

    autocast: Autocast = "input"

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            check_sizes("normalized_shape", normalized_shape),
            check_number("eps", eps, ge=0),
            check_flag("elementwise_affine", elementwise_affine),
            check_flag("bias", bias),
            device,
            dtype,
        )


class LayerNorm(FusedLayerNorm):
    r"""Normalise the last dimensions of every sample. Forward and backward are one kernel each.

    .. math::
        y = \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma + \beta

    Mean and biased variance are taken over ``normalized_shape``, in training and in evaluation, in
    float32 for every input dtype. The layer is a subclass of :class:`torch.nn.LayerNorm` and
    has its arguments, ``state_dict`` and ``repr``, so each layer loads the other's
    checkpoints. It runs in eager mode and under ``torch.compile``. TorchScript and ``torch.fx``
    need torch's layer: call :func:`lightning_practices.surgery.unfuse` first.

    Ba et al., 2016, *Layer Normalization*, arXiv:1607.06450.

    Args:
        normalized_shape: Shape of the last dimensions of the input, over which to normalise.
        eps: Number added to the variance.
        elementwise_affine: Whether to learn :math:`\gamma` (``weight``, initially 1).
        bias: Whether to learn :math:`\beta` (``bias``, initially 0) too.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Attributes:
        autocast: Dtype of the output under autocast, as in :func:`lightning_kernels.layer_norm`.
            ``"match"`` returns float32 wherever torch does.

    Shape:
        - Input: ``(*, *normalized_shape)``, any floating dtype.
        - Output: shape and dtype of the input (torch returns float32 under autocast on a GPU).

    Raises:
        ValueError: If ``normalized_shape`` is empty or negative, or ``eps`` is negative or nan.
        RuntimeError: From ``forward``, if the input's shape does not end in ``normalized_shape``,
            or its dtype is not floating.

    Example:
        >>> from lightning_practices.nn import LayerNorm
        >>> x = torch.randn(4, 10, 64)
        >>> norm = LayerNorm(64)
        >>> torch.allclose(norm(x), nn.LayerNorm(64)(x), atol=1e-6)
        True
        >>> norm(x.bfloat16()).dtype
        torch.bfloat16
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        return lightning_kernels.layer_norm(
            input, self.normalized_shape, self.weight, self.bias, self.eps, autocast=self.autocast
        )
