"""A linear layer that drops weights over the fused dropout kernel."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from typing_extensions import override

import lightning_kernels
from lightning_practices.nn._scheduled_rate import ScheduledRate


class DropConnectLinear(ScheduledRate, nn.Linear):
    r"""Zero weights at random while training, where dropout zeroes units.

    .. math::
        y = x \left( \frac{M \odot W}{1 - p} \right)^T + b, \qquad
        M_{ij} \sim \mathrm{Bernoulli}(1 - p)

    Each output hears a random part of the inputs. The bias is kept, which the paper drops too. In
    evaluation this is :class:`torch.nn.Linear`, with the weights' mean; the paper draws from a
    Gaussian of the mean and variance instead. Still a :class:`torch.nn.Linear`: checkpoints go both
    ways.

    One mask serves the batch: one pass over the weight, and where the kernels run no mask in
    memory. With ``per_sample`` each sample has a mask of its own, as in the paper: less noisy
    gradients, for a batched product and :math:`N` times the weight's memory.

    Wan et al., 2013, *Regularization of Neural Networks using DropConnect*, ICML (there :math:`p`
    is the share that is kept).

    Args:
        in_features: Size of an input.
        out_features: Size of an output.
        bias: Whether to add a bias.
        device: Where the parameters are.
        dtype: Their type.
        p: Probability that a weight is zeroed; may be assigned at any time.
        per_sample: Draw a mask for each index of the input's first dimension.

    Shape:
        - Input: :math:`(*, H_{in})`; with ``per_sample`` :math:`(N, *, H_{in})`, or
          :math:`(H_{in})` for one sample.
        - Output: the same with :math:`H_{out}` at the end.

    Raises:
        ValueError: If ``p`` is outside ``[0, 1]``.
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
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"DropConnectLinear's p has to be between 0 and 1, but got {p}")
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
        # Autocast knows both, so that the output has the type that a linear layer's has.
        if self.bias is None:
            y = torch.bmm(rows, weights)
        else:
            y = torch.baddbmm(self.bias, rows, weights)
        return y.reshape(*input.shape[:-1], self.out_features)

    @override
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}, per_sample={self.per_sample}"
