"""Stochastic depth by the fused kernel."""

from torch import Tensor
from torchvision import ops
from typing_extensions import override

import lightning_kernels
from lightning_practices._arguments import check_choice, check_number
from lightning_practices.nn._scheduled_rate import ScheduledRate


class StochasticDepth(ScheduledRate, ops.StochasticDepth):  # type: ignore[misc]  # untyped
    r"""Drop a residual branch, per sample or per batch, and add the residual, in one kernel.

    .. math::
        y_n = r_n + \frac{m_n}{1 - p} \, \lambda \odot x_n, \qquad
        m_n \sim \mathrm{Bernoulli}(1 - p)

    where the residual :math:`r` and the layer scale :math:`\lambda` are optional. In evaluation
    :math:`m_n / (1 - p)` is 1. The layer is a subclass of :class:`torchvision.ops.StochasticDepth`.

    Huang et al., 2016, *Deep Networks with Stochastic Depth*, arXiv:1603.09382.

    Args:
        p: Probability that a branch is dropped. May be assigned at any time.
        mode: ``"row"`` draws for each sample, ``"batch"`` once for the whole batch.

    Shape:
        - Input: ``(N, *)``, any floating dtype.
        - Residual: shape of the input, or ``None``.
        - Layer scale: one number per channel, in a shape that broadcasts to the input; or ``None``.
        - Output: shape and dtype of the residual, or of the input if there is no residual.

    Raises:
        ValueError: If ``p`` is outside ``[0, 1]``, or ``mode`` is neither ``"row"`` nor
            ``"batch"``.

    Example:
        >>> from lightning_practices.nn import StochasticDepth
        >>> drop = StochasticDepth(0.5, "row")
        >>> branch, residual = torch.ones(100, 16), torch.ones(100, 16)
        >>> drop(branch, residual).unique()  # dropped, or scaled by 2
        tensor([1., 3.])
        >>> drop.eval()(branch, residual).unique()
        tensor([2.])
    """

    mode: str

    def __init__(self, p: float, mode: str) -> None:
        super().__init__(
            check_number("p", p, ge=0, le=1), check_choice("mode", mode, ("batch", "row"))
        )

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
