"""A linear layer with dropout of its weights, by the fused dropout kernel."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from typing_extensions import override

import lightning_kernels
from lightning_practices._arguments import check_flag, check_number, check_whole
from lightning_practices.nn._scheduled_rate import ScheduledRate


class DropConnectLinear(ScheduledRate, nn.Linear):
    r"""Zero weights of a linear layer at random while training; dropout zeroes units instead.

    .. math::
        y = x \left( \frac{M \odot W}{1 - p} \right)^T + b, \qquad
        M_{ij} \sim \mathrm{Bernoulli}(1 - p)

    Each output depends on a random part of the inputs. Unlike in the paper the bias is never
    dropped. In evaluation the layer computes the output of :class:`torch.nn.Linear`, with the mean
    of the weights; the paper samples from a Gaussian with the weights' mean and variance. It is a
    subclass of :class:`torch.nn.Linear`, so each layer loads the other's checkpoints.

    By default all samples of a batch share one mask. This takes one pass over the weight, and the
    kernels keep no mask in memory. With ``per_sample`` each sample has its own mask, as in the
    paper. The gradients are then less noisy, but the layer needs a batched matrix product and
    :math:`N` times the memory of the weight.

    Wan et al., 2013, *Regularization of Neural Networks using DropConnect*, ICML (there :math:`p`
    is the share of kept weights).

    Args:
        in_features: Number of features of an input.
        out_features: Number of features of an output.
        bias: Whether to add a bias.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
        p: Probability that a weight is zeroed. May be assigned at any time.
        per_sample: Whether each index of the input's first dimension has its own mask.

    Shape:
        - Input: :math:`(*, H_{in})`; with ``per_sample`` :math:`(N, *, H_{in})`, or
          :math:`(H_{in})` for one sample.
        - Output: shape of the input, with :math:`H_{out}` as the last dimension.

    Raises:
        ValueError: If ``p`` is outside ``[0, 1]``.

    Example:
        >>> from lightning_practices.nn import DropConnectLinear
        >>> layer = DropConnectLinear(64, 32, p=0.5)
        >>> x = torch.randn(3, 64)
        >>> torch.equal(layer(x), layer(x))  # two passes, two masks
        False
        >>> torch.equal(layer.eval()(x), nn.functional.linear(x, layer.weight, layer.bias))
        True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        p: float = 0.5,
        per_sample: bool = False,
    ) -> None:
        p = check_number("p", p, ge=0, le=1)
        check_flag("per_sample", per_sample)
        check_whole("in_features", in_features, 0)
        check_whole("out_features", out_features, 0)
        check_flag("bias", bias)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.p = p
        self.per_sample = per_sample

    @override
    def forward(self, input: Tensor) -> Tensor:
        if self.training and self.per_sample and input.dim() > 1:
            return self._with_a_mask_each(input)
        weight = lightning_kernels.dropout(self.weight, self.current_rate(), self.training)
        return F.linear(input, weight, self.bias)

    def _with_a_mask_each(self, input: Tensor) -> Tensor:
        weights = self.weight.expand(len(input), -1, -1)
        weights = lightning_kernels.dropout(weights, self.current_rate()).mT
        rows = input.unsqueeze(1).flatten(1, -2)  # (N, all dimensions between, in_features)
        # Autocast covers `bmm` and `baddbmm`, so the output has the dtype of a linear layer's
        # output.
        if self.bias is None:
            y = torch.bmm(rows, weights)
        else:
            y = torch.baddbmm(self.bias, rows, weights)
        return y.reshape(*input.shape[:-1], self.out_features)

    @override
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}, per_sample={self.per_sample}"
