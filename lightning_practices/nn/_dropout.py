"""Dropout of elements and of channels, by the fused kernels."""

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from typing_extensions import override

import lightning_kernels
from lightning_practices._arguments import check_flag, check_number
from lightning_practices.nn._scheduled_rate import ScheduledRate


class FusedDropout(ScheduledRate, _DropoutNd):
    """Base class of the layers that take a rate and ``inplace``: see :class:`Dropout`."""

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__(check_number("p", p, ge=0, le=1), check_flag("inplace", inplace))


class Dropout(FusedDropout, nn.Dropout):
    r"""Zero elements at random while training. The backward pass needs no stored mask.

    .. math::
        y_i = \frac{m_i x_i}{1 - p}, \qquad m_i \sim \mathrm{Bernoulli}(1 - p)

    In evaluation the input is returned unchanged. Random numbers come from torch's generator of the
    input's device. The layer is a subclass of :class:`torch.nn.Dropout` with its
    arguments and ``repr``.

    Srivastava et al., 2014, *Dropout: A Simple Way to Prevent Neural Networks from Overfitting*,
    JMLR 15; Hinton et al., 2012, arXiv:1207.0580.

    Args:
        p: Probability that an element is zeroed. May be assigned at any time.
        inplace: Whether to overwrite the input.

    Shape:
        - Input: ``(*)``, any floating dtype.
        - Output: shape and dtype of the input.

    Raises:
        ValueError: If ``p`` is outside ``[0, 1]``.

    Example:
        >>> from lightning_practices.nn import Dropout
        >>> dropout = Dropout(0.5)
        >>> dropout(torch.ones(1000)).unique()
        tensor([0., 2.])
        >>> dropout.eval()(torch.ones(3))
        tensor([1., 1., 1.])
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        return lightning_kernels.dropout(input, self.current_rate(), self.training, self.inplace)


class Dropout1d(FusedDropout, nn.Dropout1d):
    """:class:`Dropout` of whole channels, for inputs ``(N, C, L)`` or ``(C, L)``.

    ``p`` is the probability that a channel is zeroed. Arguments and errors are those of
    :class:`Dropout`.

    Tompson et al., 2015, *Efficient Object Localization Using Convolutional Networks*,
    arXiv:1411.4280 (spatial dropout).

    Example:
        >>> from lightning_practices.nn import Dropout1d
        >>> y = Dropout1d(0.5)(torch.ones(50, 8, 10))
        >>> y.unique(), bool((y == y[..., :1]).all())  # a channel is dropped or kept as a whole
        (tensor([0., 2.]), True)
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        return lightning_kernels.dropout1d(input, self.current_rate(), self.training, self.inplace)


class Dropout2d(FusedDropout, nn.Dropout2d):
    """:class:`Dropout1d` for inputs ``(N, C, H, W)``, contiguous or channels last.

    Arguments and errors are those of :class:`Dropout`.

    Example:
        >>> from lightning_practices.nn import Dropout2d
        >>> y = Dropout2d(0.5)(torch.ones(50, 8, 4, 4))
        >>> y.amax((2, 3)).unique()  # of each channel
        tensor([0., 2.])
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        return lightning_kernels.dropout2d(input, self.current_rate(), self.training, self.inplace)


class Dropout3d(FusedDropout, nn.Dropout3d):
    """:class:`Dropout1d` for inputs ``(N, C, D, H, W)`` or ``(C, D, H, W)``.

    Arguments and errors are those of :class:`Dropout`.

    Example:
        >>> from lightning_practices.nn import Dropout3d
        >>> y = Dropout3d(0.5)(torch.ones(50, 8, 2, 4, 4))
        >>> y.amax((2, 3, 4)).unique()  # of each channel
        tensor([0., 2.])
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        return lightning_kernels.dropout3d(input, self.current_rate(), self.training, self.inplace)


class AlphaDropout(FusedDropout, nn.AlphaDropout):
    r"""Dropout for SELU networks: set elements to SELU's saturation value at random while training.

    .. math::
        y_i = a (m_i x_i + (1 - m_i) \alpha') + b, \qquad m_i \sim \mathrm{Bernoulli}(1 - p)

    where :math:`\alpha' = -1.7581` is SELU's saturation value. The constants :math:`a` and
    :math:`b` keep mean and variance, see :func:`lightning_kernels.alpha_dropout`. The layer is a
    subclass of :class:`torch.nn.AlphaDropout`. It respects ``inplace``, which torch's layer
    ignores.

    Klambauer et al., 2017, *Self-Normalizing Neural Networks*, arXiv:1706.02515.

    Args:
        p: Probability that an element is set to :math:`\alpha'`. May be assigned at any time.
        inplace: Whether to overwrite the input.

    Shape:
        - Input: ``(*)``, any floating dtype.
        - Output: shape and dtype of the input.

    Raises:
        ValueError: If ``p`` is outside ``[0, 1]``.

    Example:
        >>> from lightning_practices.nn import AlphaDropout
        >>> y = AlphaDropout(0.2)(torch.randn(100_000))
        >>> bool(y.mean().abs() < 0.05), bool((y.std() - 1).abs() < 0.05)  # as before dropout
        (True, True)
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        return lightning_kernels.alpha_dropout(
            input, self.current_rate(), self.training, self.inplace
        )


class FeatureAlphaDropout(FusedDropout, nn.FeatureAlphaDropout):
    """:class:`AlphaDropout` of whole channels, for inputs ``(N, C, *)``.

    ``p`` is the probability that a channel is set to SELU's saturation value. Equation, arguments
    and errors are those of :class:`AlphaDropout`.

    Example:
        >>> from lightning_practices.nn import FeatureAlphaDropout
        >>> y = FeatureAlphaDropout(0.5)(torch.randn(50, 8, 100))
        >>> dropped = y.std(2) < 1e-6  # channels that hold one value
        >>> y[dropped].unique().numel() == 1, bool(dropped.any())
        (True, True)
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        return lightning_kernels.feature_alpha_dropout(
            input, self.current_rate(), self.training, self.inplace
        )
