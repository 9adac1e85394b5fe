"""Dropout, addition and norm at the end of a transformer's branch, in one fused kernel."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

import lightning_kernels
from lightning_practices._arguments import check_number
from lightning_practices.nn._dropout import Dropout
from lightning_practices.nn._hooks import any_hook_on_all, is_touched
from lightning_practices.nn._layer_norm import LayerNorm
from lightning_practices.nn._stochastic_depth import StochasticDepth

_DROPS = frozenset({Dropout, StochasticDepth})


class AddDropoutLayerNorm(LayerNorm):
    r"""Drop out a branch, scale it, add the residual stream and normalise the sum, in one kernel.

    .. math::
        z = r + \frac{m_n}{1 - q} \, \lambda \odot \mathrm{dropout}_p(x), \qquad
        y = \mathrm{layer\_norm}(z), \qquad m_n \sim \mathrm{Bernoulli}(1 - q)

    :math:`x` is the output of a branch and :math:`r` the residual stream. :math:`z` is the new
    residual stream, and :math:`y` is the input of the next branch. Forward and backward are one
    kernel each. The layer is a subclass of :class:`torch.nn.LayerNorm` with the same parameter
    names, plus ``layer_scale``. The children ``dropout`` and ``drop_path`` are dropout layers and
    hold the rates, so rate schedules and Monte Carlo dropout apply to them. ::

        class Block(nn.Module):  # pre-norm: y is the normalised z
            def __init__(self, width, p, drop_path):
                super().__init__()
                self.attention, self.feed_forward = Attention(width), FeedForward(width)
                self.after_attention, self.after_feed_forward = (
                    AddDropoutLayerNorm(width, p, drop_path, layer_scale=1e-5) for _ in range(2)
                )

            def forward(self, y, z):
                y, z = self.after_attention(self.attention(y), z)
                return self.after_feed_forward(self.feed_forward(y), z)

        y, z = first_norm(tokens), tokens  # an nn.LayerNorm
        for block in blocks:
            y, z = block(y, z)
        # y is normalised and is the head's input

    Ba et al., 2016, arXiv:1607.06450; Huang et al., 2016, *Deep Networks with Stochastic Depth*,
    arXiv:1603.09382; Touvron et al., 2021, arXiv:2103.17239 (layer scale).

    Args:
        normalized_shape: Shape of the last dimensions of the input, over which to normalise.
        p: Probability that an element of the branch is zeroed.
        drop_path: Probability that the branch of a sample is dropped.
        layer_scale: Initial value of the learned scale :math:`\lambda`, one factor per channel.
            ``None``: no layer scale.
        eps: Number added to the variance.
        elementwise_affine: Whether to learn the norm's ``weight``, initially 1.
        bias: Whether to learn the norm's ``bias`` too, initially 0.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Shape:
        - Input: ``(N, *, *normalized_shape)``, any floating dtype.
        - Residual: shape of the input; dtype of the input, or float32 with a 16-bit input. Or
          ``None``.
        - Output: :math:`y` with the shape and dtype of the input, and :math:`z` with those of the
          residual, or of the input if there is no residual.

    Raises:
        ValueError: If ``p`` or ``drop_path`` is outside ``[0, 1]``, ``normalized_shape`` is empty
            or negative, or ``eps`` is negative or nan.

    Example:
        >>> from lightning_practices.nn import AddDropoutLayerNorm
        >>> norm = AddDropoutLayerNorm(64, p=0.1, drop_path=0.2).eval()  # without drops
        >>> branch, stream = torch.randn(2, 8, 10, 64).unbind()
        >>> y, z = norm(branch, stream)
        >>> torch.equal(z, stream + branch)
        True
        >>> torch.allclose(y, nn.functional.layer_norm(z, (64,)), atol=1e-6)
        True
    """

    layer_scale: nn.Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        p: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        p = check_number("p", p, ge=0, le=1)
        drop_path = check_number("drop_path", drop_path, ge=0, le=1)
        if layer_scale is not None:
            layer_scale = check_number("layer_scale", layer_scale)
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self.initial_scale = layer_scale
        self.dropout = Dropout(p)
        self.drop_path = StochasticDepth(drop_path, "row")
        scale = None
        if layer_scale is not None:
            empty = torch.empty(self.normalized_shape, device=device, dtype=dtype)
            scale = nn.Parameter(empty.fill_(layer_scale))
        self.register_parameter("layer_scale", scale)

    @override
    def reset_parameters(self) -> None:
        super().reset_parameters()
        # The norm's constructor calls this method before the layer scale exists.
        scale = self._parameters.get("layer_scale")
        if scale is not None and self.initial_scale is not None:
            nn.init.constant_(scale, self.initial_scale)

    @override
    def forward(  # type: ignore[override]  # it takes and returns the residual stream too
        self, input: Tensor, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        children: dict[str, Any] = self._modules  # without nn.Module.__getattr__, which is slow
        dropout, drop_path = children["dropout"], children["drop_path"]
        fused = dropout.training and drop_path.training
        if not fused:
            for child in (dropout, drop_path):
                if not _is_idle(child):
                    input = child(input)
        return lightning_kernels.add_dropout_layer_norm(
            input,
            residual,
            self.normalized_shape,
            self.weight,
            self.bias,
            p=dropout.current_rate() if fused else 0.0,
            drop_path=drop_path.current_rate() if fused else 0.0,
            layer_scale=self.layer_scale,
            eps=self.eps,
            training=fused,
        )

    @override
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, layer_scale={self.initial_scale}"


def _is_idle(child: nn.Module) -> bool:
    """Return whether a call of a dropout layer would return its input and run no hook."""
    return (
        not child.training
        and type(child) in _DROPS
        and not is_touched(child.__dict__)
        and not any_hook_on_all()
    )
