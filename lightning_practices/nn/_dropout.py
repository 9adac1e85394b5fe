"""Dropout over the fused kernel."""

from torch import Tensor, nn
from typing_extensions import override

import lightning_kernels


class Dropout(nn.Dropout):
    r"""Zero elements at random while training, with no mask kept for the backward pass.

    .. math::
        y_i = \frac{m_i x_i}{1 - p}, \qquad m_i \sim \mathrm{Bernoulli}(1 - p)

    In evaluation the input is returned as it is. The draws come from torch's generator of the
    input's device. Still a :class:`torch.nn.Dropout`: constructor and ``repr`` are inherited.

    Srivastava et al., 2014, *Dropout: A Simple Way to Prevent Neural Networks from Overfitting*,
    JMLR 15; Hinton et al., 2012, arXiv:1207.0580.

    Args:
        p: Probability that an element is zeroed.
        inplace: Overwrite the input.

    Shape:
        - Input: ``(*)``, any floating dtype.
        - Output: as the input.

    Raises:
        ValueError: If ``p`` is outside ``[0, 1]``.
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        return lightning_kernels.dropout(input, self.p, self.training, self.inplace)
