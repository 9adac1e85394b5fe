"""Stochastic depth over the fused kernel."""

from torch import Tensor
from torchvision import ops
from typing_extensions import override

import lightning_kernels
from lightning_practices.nn._scheduled_rate import ScheduledRate


class StochasticDepth(ScheduledRate, ops.StochasticDepth):  # type: ignore[misc]  # untyped
    r"""Drop a residual branch, of each sample or of the whole batch, and add the rest in one pass.

    .. math::
        y_n = r_n + \frac{m_n}{1 - p} \, \lambda \odot x_n, \qquad
        m_n \sim \mathrm{Bernoulli}(1 - p)

    with residual :math:`r` and layer scale :math:`\lambda` if they are given. In evaluation
    :math:`m_n / (1 - p)` is 1. Still a :class:`torchvision.ops.StochasticDepth`.

    Huang et al., 2016, *Deep Networks with Stochastic Depth*, arXiv:1603.09382.

    Args:
        p: Probability that a branch is dropped; may be assigned at any time.
        mode: ``"row"`` for a draw for each sample, ``"batch"`` for one.

    Shape:
        - Input: ``(N, *)``, any floating dtype.
        - Residual: as the input, or ``None``.
        - Layer scale: one number for each channel, in a shape that broadcasts, or ``None``.
        - Output: as the residual, or as the input without one.

    Raises:
        ValueError: From ``forward``, if ``p`` is outside ``[0, 1]`` or ``mode`` unknown.
    """

    mode: str

    @override
    def forward(
        self, input: Tensor, residual: Tensor | None = None, layer_scale: Tensor | None = None
    ) -> Tensor:
        return lightning_kernels.stochastic_depth(
            input,
            self.current_rate(),
            self.mode,
            self.training,
            residual=residual,
            layer_scale=layer_scale,
        )
