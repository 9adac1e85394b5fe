"""Dropout rates that change in the course of training."""

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torchvision import ops

from lightning_practices._arguments import check_choice, check_layers, check_number, shown
from lightning_practices._names import modules_with_names, plain_name
from lightning_practices.nn import ScheduledRate

DropSchedule = Literal["linear", "cosine", "early", "early_linear", "late"]
"""Names of the schedules of :func:`drop_rate_factor`."""

DropLayers = type[nn.Module] | str | Sequence[type[nn.Module] | str]
"""The layers to schedule: a class or a name, or several, see :class:`DropRate`."""

# Each function maps the progress (0 at the start of the schedule, 1 at its end) to a factor in
# [0, 1] of the rates.
_SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "cosine": lambda t: (1 - math.cos(math.pi * t)) / 2,
    "early": lambda t: float(t < 1),
    "early_linear": lambda t: 1 - t,
    "late": lambda t: float(t >= 1),
}

_SHOWN = 10  # the most layers in an error message


def drop_rate_factor(schedule: DropSchedule, progress: float) -> float:
    r"""Return the factor of a dropout rate at ``progress`` :math:`t` of a schedule.

    ================  =========================================  ==============================
    ``linear``        :math:`t`                                  grows
    ``cosine``        :math:`(1 - \cos \pi t) / 2`               grows, slowly at both ends
    ``early``         1 before :math:`t = 1`, then 0             early dropout
    ``early_linear``  :math:`1 - t`                              early dropout that fades out
    ``late``          0 before :math:`t = 1`, then 1             late dropout
    ================  =========================================  ==============================

    Growing rates disturb an untrained network less: Ghiasi et al., 2018, *DropBlock*,
    arXiv:1810.12890, section 3.1 (linear). Dropout in only the first epochs helps a model that
    underfits. Dropout in all but the first epochs helps a model that overfits: Liu et al., 2023,
    *Dropout Reduces Underfitting*, arXiv:2303.01500 (``early_linear`` and ``late``, 50 of 300
    epochs).

    Args:
        schedule: Name of the schedule.
        progress: 0 at the start of the schedule and 1 at its end. From 1 on the factor is constant.

    Raises:
        ValueError: If ``schedule`` is an unknown name, or ``progress`` is negative or nan.

    Example:
        >>> from lightning_practices.schedules import drop_rate_factor
        >>> [round(drop_rate_factor("cosine", progress / 4), 2) for progress in range(5)]
        [0.0, 0.15, 0.5, 0.85, 1.0]
        >>> [drop_rate_factor("early", progress / 4) for progress in range(5)]
        [1.0, 1.0, 1.0, 1.0, 0.0]
    """
    progress = check_number("progress", progress, ge=0, finite=False)
    return _SCHEDULES[check_choice("schedule", schedule, _SCHEDULES)](min(progress, 1.0))


class DropRate:
    """Multiply the rates of a model's dropout layers by the factor of a schedule.

    The default is all dropout layers: torch's, torchvision's stochastic depth and DropBlock, this
    package's, and every layer without children that has a number ``drop_prob``, such as the
    ``DropPath`` of timm and transformers. The ratios between the layers' rates are kept, for
    instance with stochastic depth whose rate grows with the depth. Layers with a rate of 0 are
    skipped. Dropout of attention weights is an argument of torch's attention function and not a
    layer, so it is not changed.

    The layers of this package read the rate from a tensor, see
    :meth:`~lightning_practices.nn.ScheduledRate.schedule_rate`, so a compiled model is not
    recompiled. For all other layers each change of the rate recompiles the model. Make this object
    before the model is compiled or run.

    Args:
        model: The module whose dropout layers are scheduled. Its current rates are the rates at a
            factor of 1.
        schedule: Name of the schedule, see :func:`drop_rate_factor`.
        layers: The layers to schedule: a class, a name in the model where ``*`` matches any
            characters, or a sequence of classes and names. Names omit the prefixes that torch's
            wrappers add. Default: all dropout layers.
        device: Device of the layers' inputs. Default: the device of the model's first parameter.

    Attributes:
        rates: The rate of each scheduled layer at a factor of 1, by the layer's name.
        factor: The current factor of the rates.

    Raises:
        TypeError: If ``model`` is not a module, or ``layers`` holds neither classes nor names.
        ValueError: If ``schedule`` is an unknown name, or an entry of ``layers`` matches no dropout
            layer with a rate above 0.

    Example:
        >>> from lightning_practices.schedules import DropRate
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.4), nn.Linear(8, 2))
        >>> drop_rate = DropRate(model, "linear")
        >>> for step in range(3):
        ...     factor = drop_rate.apply(step / 2)  # and train a step
        ...     print(factor, model[1].p)
        0.0 0.0
        0.5 0.2
        1.0 0.4
        >>> drop_rate.restore()
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: DropSchedule = "linear",
        *,
        layers: DropLayers | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.schedule: DropSchedule = check_choice("schedule", schedule, get_args(DropSchedule))
        self.factor = 1.0
        self._layers = _choose(model, check_layers("layers", layers))
        self.rates = {name: _rate(layer) for name, layer in self._layers.items()}
        if device is None:
            device = next((parameter.device for parameter in model.parameters()), None)
        for layer in self._layers.values():
            if isinstance(layer, ScheduledRate):
                layer.schedule_rate(device)

    def apply(self, progress: float) -> float:
        """Set the rates for ``progress``, and return their factor.

        Raises:
            ValueError: If ``progress`` is negative or nan.
        """
        factor = drop_rate_factor(self.schedule, progress)
        if factor != self.factor:
            for name, layer in self._layers.items():
                setattr(layer, _rate_name(layer), factor * self.rates[name])
            self.factor = factor
        return factor

    def restore(self) -> None:
        """Reset each layer to its rate at a factor of 1."""
        for name, layer in self._layers.items():
            setattr(layer, _rate_name(layer), self.rates[name])
        self.factor = 1.0


def _rate_name(layer: nn.Module) -> str:
    """Return the attribute that holds a layer's rate, or ``""`` if it is no dropout layer."""
    if isinstance(layer, ScheduledRate):
        return layer.rate_name
    if isinstance(layer, _DropoutNd | ops.StochasticDepth | ops.DropBlock2d):
        return "p"
    is_leaf = next(layer.children(), None) is None
    has_rate = isinstance(getattr(layer, "drop_prob", None), int | float)
    return "drop_prob" if is_leaf and has_rate else ""


def _rate(layer: nn.Module) -> float:
    rate: float = getattr(layer, _rate_name(layer), 0.0)
    return rate


def _choose(model: nn.Module, layers: Sequence[type[nn.Module] | str]) -> dict[str, nn.Module]:
    """Return the chosen dropout layers by their first names. A shared layer appears once."""
    dropping = {
        tuple(plain_name(name) for name in names): layer
        for layer, names in modules_with_names(model)
        if _rate(layer) > 0
    }
    chosen: set[tuple[str, ...]] = set()
    for wanted in layers:
        found = {names for names, layer in dropping.items() if _matches(layer, names, wanted)}
        if not found:
            raise ValueError(_nothing(wanted, dropping))
        chosen |= found
    return {names[0]: layer for names, layer in dropping.items() if names in chosen}


def _matches(layer: nn.Module, names: Sequence[str], wanted: type[nn.Module] | str) -> bool:
    if isinstance(wanted, type):
        return isinstance(layer, wanted)
    return any(fnmatchcase(name, wanted) for name in names)


def _nothing(wanted: type[nn.Module] | str, dropping: dict[tuple[str, ...], nn.Module]) -> str:
    """Return the message that ``wanted`` matches no layer, with the dropout layers that exist."""
    got = wanted.__name__ if isinstance(wanted, type) else shown(wanted)
    there = [
        f"{names[0]!r}, a {type(layer).__name__} of {_rate(layer):g}"
        for names, layer in dropping.items()
    ]
    if len(there) > _SHOWN:
        there[_SHOWN:] = [f"and {len(there) - _SHOWN} more"]
    return (
        f"layers={got} matches no dropout layer with a rate above 0; there"
        f" {'are none' if not there else 'are: ' + '; '.join(there)}"
    )
