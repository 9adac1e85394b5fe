"""Group normalisation."""

from torch import Tensor

from lightning_kernels._core.activation import aten_activate, resolve_parameter
from lightning_kernels._core.autocast import Autocast, autocast_dtype
from lightning_kernels._core.crossover import pays
from lightning_kernels._core.dispatch import norm_runs_triton
from lightning_kernels._core.parameters import check_channels, check_eps, check_tensor
from lightning_kernels._group_norm.aten import aten_group_norm
from lightning_kernels._group_norm.operator import group_norm_operator


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
    activation_parameter: float | None = None,
    *,
    autocast: Autocast = "input",
) -> Tensor:
    r"""Normalise each group of channels of each sample of ``input``, and activate.

    .. math:: y = a((x - \bar x) / \sqrt{s^2 + \epsilon} \cdot \gamma + \beta)

    :math:`\bar x` and :math:`s^2` are the mean and the biased variance of each of ``num_groups``
    groups of neighbouring channels. The positional arguments up to ``eps`` are those of
    :func:`torch.nn.functional.group_norm`. If a group fits into the registers of a program, the
    forward pass reads ``input`` once, and the backward pass reads ``input`` and the gradient of the
    output once. Otherwise they read these tensors twice. Statistics and sums are float32, merged in
    a fixed order: a second run on the same device is bitwise equal.

    The graph keeps the inputs and two numbers per group. The backward pass computes the values
    before the activation again. Where the kernels do not run (see
    :func:`lightning_kernels.route`) the result is composed of torch's functions.

    Args:
        input: Input of shape ``(N, C, *)``, any strides, floating point.
        num_groups: Number of groups, a divisor of ``C``.
        weight: Scale :math:`\gamma` of shape ``(C,)``, in the dtype of ``input`` or float32.
        bias: Shift :math:`\beta`, like ``weight``.
        eps: Number :math:`\epsilon` that is added to the variance.
        activation: Activation :math:`a`: ``None``, ``"relu"``, ``"relu6"``, ``"leaky_relu"``,
            ``"elu"``, ``"selu"``, ``"silu"``, ``"hardswish"`` or ``"gelu"`` (exact, not the tanh
            approximation).
        activation_parameter: Slope of leaky_relu (default 0.01) or alpha of elu (default 1.0).
        autocast: Choice of the result's dtype under autocast: see
            :func:`lightning_kernels.layer_norm`.

    Returns:
        Tensor of the shape and memory format (channels last or contiguous) of ``input``. It has the
        dtype of ``input``, but under autocast see ``autocast``.

    Raises:
        NotImplementedError: If ``input`` is not floating point. It is torch's own error, on some
            devices another ``RuntimeError``.
        RuntimeError: If the shape, dtype or device of an argument does not fit ``input``.
        ValueError: If a group has a single value. If ``activation`` is unknown. If
            ``activation_parameter`` is given for an activation without parameter. If ``autocast``
            is neither ``"input"`` nor ``"match"``.

    Example:
        >>> from lightning_kernels import group_norm
        >>> x = torch.randn(2, 8, 4, 4)
        >>> y = group_norm(x, num_groups=4, activation="silu")
        >>> torch.allclose(y, nn.functional.silu(nn.functional.group_norm(x, 4)), atol=1e-6)
        True

    References:
        Wu and He, 2018, "Group normalization", arXiv:1803.08494.
    """
    if activation is None and activation_parameter is None:
        parameter = 0.0
    else:
        parameter = resolve_parameter(activation, activation_parameter)
    _check(input, num_groups, weight, bias)
    check_eps("group_norm", eps)
    dtype = None if autocast == "input" else autocast_dtype("group_norm", input, autocast)
    if not (norm_runs_triton(input) and pays("group_norm", input, num_groups, activation)):
        if dtype is not None:
            input = input.to(dtype)
        y = aten_group_norm(input, num_groups, weight, bias, eps)
        return y if activation is None else aten_activate(y, activation, parameter)
    return group_norm_operator(
        input, num_groups, weight, bias, float(eps), activation, parameter, dtype
    )[0]


def _check(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None) -> None:
    """Check the arguments of :func:`group_norm`. The types of the errors are those of torch."""
    check_tensor("group_norm", x)
    shape = x.shape
    if len(shape) < 2:
        raise RuntimeError(f"group_norm expects an input of shape (N, C, *), but got {list(shape)}")
    if not isinstance(num_groups, int):
        raise TypeError(f"group_norm expects num_groups as an int, but got {num_groups!r}")
    if num_groups < 1 or shape[1] % num_groups != 0:
        raise RuntimeError(
            f"group_norm expects num_groups, at least 1, to divide the {shape[1]} channels,"
            f" but got {num_groups}"
        )
    if x.numel() == num_groups:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {shape} in"
            f" {num_groups} groups"
        )
    if weight is not None or bias is not None:
        check_channels("group_norm", x, weight=weight, bias=bias)
