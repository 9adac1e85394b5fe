"""Activations, and the gain with which the weights before them are drawn."""

import math
from typing import Any, NamedTuple

from torch import nn


class Activation(NamedTuple):
    """An activation by torch's name, such as ``"relu"``, and its parameter.

    Attributes:
        name: Name of the function in :mod:`torch.nn.functional`; ``"linear"`` for none.
        parameter: Slope of ``"leaky_relu"``, or alpha of ``"elu"``; ``None`` for the others.
    """

    name: str
    parameter: float | None = None

    def __str__(self) -> str:
        return self.name if self.parameter is None else f"{self.name}({self.parameter:.4g})"


LINEAR = Activation("linear")

_RELU_VARIANCE = 2.0  # times 1 / fan_in; He et al., 2015, equation 10

# The variance of the weights times fan_in. With it, neither activations nor gradients vanish or
# explode over 30 layers of width 256, except for the gradients of sigmoid and softplus.
# `tests/init/test_depth.py` measures this again.
#
# For gelu, silu, mish and hardswish the variance that keeps the second moment of one layer (2.35
# for gelu, 2.81 for silu) is an unstable fixed point: over 30 layers activations grow to 6 to 14
# with gelu, to 70 to 170 with silu. With the variances here single draws end at 0.2 to 6. For tanh
# a variance of 1, as in Xavier's scheme, leaves 0.12 of the signal, and (5 / 3)^2 makes gradients
# 13 times as large.
_VARIANCES = {
    "linear": 1.0,
    "sigmoid": 1.0,
    "tanh": 1.4,
    "hardtanh": 1.1,
    "softsign": 2.5,
    "relu": _RELU_VARIANCE,
    "relu6": _RELU_VARIANCE,
    "gelu": 2.15,
    "silu": 2.34,
    "mish": 2.1,
    "hardswish": 2.33,
    "selu": 1.0,  # Klambauer et al., 2017: with 1 / fan_in activations stay normal
    "softplus": 2.0,
}

_XAVIER = ("linear", "sigmoid", "tanh", "hardtanh", "softsign")

_CLASSES: dict[type[nn.Module], tuple[str, str | None]] = {
    nn.ReLU: ("relu", None),
    nn.ReLU6: ("relu6", None),
    nn.LeakyReLU: ("leaky_relu", "negative_slope"),
    nn.ELU: ("elu", "alpha"),
    nn.CELU: ("elu", "alpha"),
    nn.SELU: ("selu", None),
    nn.GELU: ("gelu", None),
    nn.SiLU: ("silu", None),
    nn.Mish: ("mish", None),
    nn.Hardswish: ("hardswish", None),
    nn.Tanh: ("tanh", None),
    nn.Softsign: ("softsign", None),
    nn.Sigmoid: ("sigmoid", None),
    nn.Hardsigmoid: ("sigmoid", None),
    nn.Softplus: ("softplus", None),
}

# Words in the names of other libraries' classes, the longer ones first.
_WORDS = {
    "leakyrelu": "leaky_relu", "relu6": "relu6", "relu": "relu", "gelu": "gelu", "selu": "selu",
    "swish": "silu", "silu": "silu", "mish": "mish", "sigmoid": "sigmoid", "tanh": "tanh",
}  # fmt: skip
_FUNCTIONS = {*_VARIANCES, "leaky_relu", "elu"}
_PRELU = 0.25  # torch's initial slope of nn.PReLU
_LEAKY = 0.01  # torch's default slope of nn.LeakyReLU


def of_function(name: str, parameter: float | None = None) -> Activation | None:
    """Return the activation that a function of this name computes, or ``None``."""
    name = {"celu": "elu", "hardsigmoid": "sigmoid"}.get(name, name)
    if name == "prelu":
        return Activation("leaky_relu", _PRELU)
    if name == "rrelu":
        return Activation("leaky_relu", _mean_slope(1 / 8, 1 / 3))
    if name not in _FUNCTIONS or name == "linear":
        return None
    if name == "leaky_relu":
        return Activation(name, _LEAKY if parameter is None else parameter)
    if name == "elu":
        return Activation(name, 1.0 if parameter is None else parameter)
    return Activation(name)


def of_module(module: nn.Module) -> Activation | None:
    """Return the activation that a layer computes, or ``None`` if it is no activation."""
    if isinstance(module, nn.PReLU):
        return Activation("leaky_relu", _PRELU)
    if isinstance(module, nn.RReLU):
        return Activation("leaky_relu", _mean_slope(module.lower, module.upper))
    if isinstance(module, nn.Hardtanh) and not isinstance(module, nn.ReLU6):
        return Activation("hardtanh" if module.min_val < 0 else "relu6")
    for cls, (name, attribute) in _CLASSES.items():
        if isinstance(module, cls):
            parameter = float(getattr(module, attribute)) if attribute else None
            return Activation(name, parameter)
    name = type(module).__name__.lower()
    is_leaf = not any(module.children()) and not any(True for _ in module.parameters())
    if not is_leaf or type(module).__module__.startswith("torch.nn."):
        return None
    return next((of_function(known) for word, known in _WORDS.items() if word in name), None)


def of_attribute(value: Any) -> Activation | None:
    """Return the activation that an attribute of a layer names: a function or a string."""
    name = value if isinstance(value, str) else getattr(value, "__name__", None)
    return None if not isinstance(name, str) else of_function(name.lower())


def variance(activation: Activation) -> float:
    r"""Return :math:`g^2`, the variance of weights before an activation, times the fan.

    - leaky ReLU of slope :math:`a`: :math:`2 / (1 + a^2)`, He et al., 2015, equation 15.
    - ELU: :math:`1 / \mathrm{E}[f(z)^2]` for a standard normal :math:`z`, which is a stable fixed
      point for ELU: 1.55 for an alpha of 1.
    - others: measured at depth.
    """
    name, parameter = activation
    if name == "leaky_relu":
        return _RELU_VARIANCE / (1 + (parameter or 0.0) ** 2)
    if name == "elu":
        alpha = 1.0 if parameter is None else parameter
        # E[(exp(z) - 1)^2; z < 0] = e^2 P(z < -2) - 2 sqrt(e) P(z < -1) + 1 / 2
        below = math.exp(2) * _normal(-2) - 2 * math.exp(0.5) * _normal(-1) + 0.5
        return 1 / (0.5 + alpha**2 * below)
    return _VARIANCES[name]


def he_variance(activation: Activation) -> float:
    """Return the variance of He's scheme times fan_in: 2, or less for a leaky ReLU."""
    return variance(activation) if activation.name == "leaky_relu" else _RELU_VARIANCE


def scheme_for(activation: Activation) -> str:
    """Return the name of the scheme for weights before an activation."""
    if activation.name in _XAVIER:
        return "xavier_normal"
    return "lecun_normal" if activation.name == "selu" else "kaiming_normal"


def _normal(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _mean_slope(lower: float, upper: float) -> float:
    return (lower + upper) / 2
