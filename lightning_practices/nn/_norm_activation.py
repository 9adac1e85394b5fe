"""A norm, the addition of a residual and an activation in one fused call."""

from collections.abc import Callable
from typing import Any, get_args

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.instancenorm import _InstanceNorm

import lightning_kernels
from lightning_practices._arguments import check_flag, shown
from lightning_practices._names import check_module
from lightning_practices.nn._batch_norm import FusedBatchNorm
from lightning_practices.nn._group_norm import GroupNorm
from lightning_practices.nn._hooks import any_hook_on_all, is_touched
from lightning_practices.nn._instance_norm import FusedInstanceNorm

Activation = tuple[str, float | None]  # name and parameter, in the form of the kernels' arguments

_NAMES = frozenset(get_args(lightning_kernels.Activation))  # that the kernels know

# The activation of each layer class, and the layer's attribute that holds the parameter, variant or
# function.
_ACTIVATIONS: dict[type, tuple[Activation, str | None]] = {
    nn.ReLU: (("relu", None), None),
    nn.ReLU6: (("relu6", None), None),
    nn.LeakyReLU: (("leaky_relu", None), "negative_slope"),
    nn.ELU: (("elu", None), "alpha"),
    nn.SELU: (("selu", None), None),
    nn.SiLU: (("silu", None), None),
    nn.Hardswish: (("hardswish", None), None),
    nn.GELU: (("gelu", None), "approximate"),
}


def add_activation(
    layer: type[nn.Module], activation: lightning_kernels.Activation, attribute: str | None = None
) -> None:
    """Add the layer class of a library to the known activations.

    Args:
        layer: The class.
        activation: Name of the kernels' activation, which has no parameter.
        attribute: Attribute of a layer that has to be torch's function of this name.
    """
    _ACTIVATIONS[layer] = ((activation, None), attribute)


def norm_activation(
    x: Tensor,
    norm: nn.Module,
    activation: nn.Module | str,
    residual: Tensor | None = None,
    *,
    inplace: bool = False,
) -> Tensor:
    r"""Normalise, add a residual and apply an activation, in one fused call where possible.

    .. math:: y = a(\mathrm{norm}(x) + r)

    One fused call computes :math:`y` if ``norm`` is a batch norm of this package (or a group or
    instance norm, without a residual), the kernels support ``activation``, neither layer has hooks
    or a ``forward`` set on the instance, and the residual has the shape and dtype of ``x``.
    Otherwise ``norm``, the addition and ``activation`` run one after the other. Result, gradients
    and the hooks that run are the same in both cases.

    Args:
        x: Input of the norm.
        norm: Normalisation layer.
        activation: Activation layer, or the name of a function in :mod:`torch.nn.functional`, such
            as ``"relu"``.
        residual: Tensor added to the normalised input; ``None`` for no addition.
        inplace: Whether to add by ``y += residual``, which keeps the norm's dtype under autocast.
            The default is ``y + residual``.

    Returns:
        :math:`y`, in the shape of ``x``.

    Raises:
        TypeError: If ``norm`` is not a module, or ``activation`` neither a layer nor the name of a
            function.

    Example:
        >>> from lightning_practices.nn import BatchNorm2d, norm_activation
        >>> norm, activation, x = BatchNorm2d(4), nn.ReLU(), torch.randn(2, 4, 8, 8)
        >>> y = norm_activation(x, norm, activation, residual=x)
        >>> torch.allclose(y, activation(norm(x) + x), atol=1e-6)
        True
    """
    check_module(norm, "norm")
    check_flag("inplace", inplace)
    is_named = isinstance(activation, str) and hasattr(functional, activation)
    if not is_named and (isinstance(activation, type) or not callable(activation)):
        raise TypeError(
            "activation has to be a layer, or the name of a function in torch.nn.functional, but"
            f" got {shown(activation)}"
        )
    kind: Any = type(norm)
    is_batch_norm = kind.forward is FusedBatchNorm.forward
    call = kind.normalise if is_batch_norm else norm_call(kind)
    if (
        call is not None
        and (residual is None or (is_batch_norm and _alike(residual, x)))
        and not (is_batch_norm and norm.activation is not None)
        and (known := kernel_activation(activation)) is not None
        and not is_touched(norm.__dict__)
        and not any_hook_on_all()
    ):
        y = call(norm, x, residual, *known)
        if y is not None:
            return y
    z: Tensor = norm(x)
    if residual is not None:
        z = z.add_(residual) if inplace else z + residual
    activate: Any = getattr(functional, activation) if isinstance(activation, str) else activation
    result: Tensor = activate(z)
    return result


def kernel_activation(activation: nn.Module | str) -> Activation | None:
    """Return an activation's name and parameter in the form of the kernels' arguments.

    Returns:
        ``None`` if the kernels don't support the activation, or its layer has hooks or a forward
        set on the instance.
    """
    known = _ACTIVATIONS.get(type(activation))
    if known is None:
        return (activation, None) if activation in _NAMES else None  # type: ignore[return-value]
    state = activation.__dict__
    if is_touched(state):
        return None
    plain, attribute = known
    if attribute is None:
        return plain
    value = state[attribute]
    if attribute == "approximate":
        return plain if value == "none" else None
    if callable(value):
        return plain if value is getattr(functional, plain[0]) else None
    return (plain[0], float(value)) if type(value) in (float, int) else None


def activation_name(activation: nn.Module | str) -> str:
    """Return the class name of an activation's layer."""
    if not isinstance(activation, str):
        return type(activation).__name__
    names = {plain[0]: cls.__name__ for cls, (plain, _) in _ACTIVATIONS.items()}
    return names.get(activation, activation)


def is_activation(layer: nn.Module) -> bool:
    """Return whether ``layer`` has a class of activation layers that the kernels support."""
    return type(layer) in _ACTIVATIONS


def norm_call(norm: type[nn.Module]) -> Callable[..., Tensor | None] | None:
    """Return the function that fuses norms of class ``norm`` with an activation, or ``None``."""
    forward: Any = norm.forward
    if forward is FusedBatchNorm.forward:
        normalise: Callable[..., Tensor] = norm.normalise  # type: ignore[attr-defined]
        return normalise
    if forward is GroupNorm.forward:
        return _group_norm
    if forward is _InstanceNorm.forward and issubclass(norm, FusedInstanceNorm):
        own = norm._apply_instance_norm is not FusedInstanceNorm._apply_instance_norm
        return None if own else _instance_norm
    return None


def adds_residual(norm: type[nn.Module]) -> bool:
    """Return whether the fused call of norms of class ``norm`` can add a residual too."""
    forward: Any = norm.forward
    return forward is FusedBatchNorm.forward


def passes_on(layer: nn.Module) -> bool:
    """Return whether a call of ``layer`` returns its input and does nothing else."""
    return type(layer) is nn.Identity and not is_touched(layer.__dict__) and not any_hook_on_all()


def _alike(residual: Any, x: Tensor) -> bool:
    # The device is not compared: tensors on two devices are an error on either path.
    return isinstance(residual, Tensor) and residual.dtype is x.dtype and residual.shape == x.shape


def _group_norm(
    norm: Any, x: Tensor, residual: None, activation: str, parameter: float | None
) -> Tensor:
    return lightning_kernels.group_norm(
        x, norm.num_groups, norm.weight, norm.bias, norm.eps, activation, parameter,
        autocast=norm.autocast,
    )  # fmt: skip


def _instance_norm(
    norm: Any, x: Tensor, residual: None, activation: str, parameter: float | None
) -> Tensor | None:
    if x.dim() != norm._get_no_batch_dim() + 1 or x.shape[1] != norm.num_features:
        return None  # the layer's own forward checks such inputs, or adds a batch dimension
    return lightning_kernels.instance_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias,
        norm.training or not norm.track_running_stats,
        0.0 if norm.momentum is None else norm.momentum, norm.eps,
        activation=activation, activation_parameter=parameter,
    )  # fmt: skip
