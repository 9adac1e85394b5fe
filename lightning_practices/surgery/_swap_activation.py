"""Replace the activations of a model, with what else the new activation needs."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from typing_extensions import override

from lightning_practices._arguments import check_flag, shown
from lightning_practices._names import check_module, count, modules_with_names, some
from lightning_practices._tables import as_text
from lightning_practices.init import InitReport
from lightning_practices.init import initialize as initialize_weights
from lightning_practices.nn.blocks import FUSED_FROM

Activation = type[nn.Module] | nn.Module

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)
_ALPHA_DROPOUTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Dropout: nn.AlphaDropout,
    nn.Dropout1d: nn.FeatureAlphaDropout,
    nn.Dropout2d: nn.FeatureAlphaDropout,
    nn.Dropout3d: nn.FeatureAlphaDropout,
}


@dataclass(frozen=True)
class SwappedLayer:
    """A layer that was replaced by another.

    Attributes:
        names: All names of the layer in the model.
        before: The layer that was there.
        after: The layer that is there now.

    Example:
        >>> from lightning_practices.surgery import swap_activation
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> swap_activation(model, nn.ReLU, nn.GELU).activations
        [SwappedLayer(names=('1',), before=ReLU(), after=GELU(approximate='none'))]
    """

    names: tuple[str, ...]
    before: nn.Module
    after: nn.Module


@dataclass
class SwapReport:
    """What :func:`swap_activation` changed, and what undoes it. ``print`` shows a table.

    Attributes:
        activations: The activations that were replaced.
        dropouts: The dropout layers that were replaced, for SELU.
        norms: Names of the normalisation layers, which SELU does without.
        initialized: The report of the new weights; ``None`` if the weights stayed.

    Example:
        >>> from lightning_practices.surgery import swap_activation
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> report = swap_activation(model, nn.ReLU, nn.GELU)
        >>> report.activations[0].names, model[1]
        (('1',), GELU(approximate='none'))
        >>> report.undo()
        >>> model[1]
        ReLU()
    """

    activations: list[SwappedLayer]
    dropouts: list[SwappedLayer] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    initialized: InitReport | None = None
    _model: nn.Module | None = field(default=None, repr=False)
    _values: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def undo(self) -> None:
        """Restore the layers that were there, and the weights if they were initialised.

        Parameters stay the same objects, so that optimizers keep them.

        Raises:
            RuntimeError: If it was undone already, or a new layer is no longer in its place.
        """
        if self._model is None:
            raise RuntimeError("this swap is undone already")
        swaps = [*self.activations, *self.dropouts]
        for swap in swaps:
            for name in swap.names:
                if self._model.get_submodule(name) is not swap.after:
                    raise RuntimeError(f"{name} is no longer the layer that was swapped in")
        for swap in swaps:
            swap.before.train(swap.after.training)
            _put(self._model, swap.names, swap.before)
        present = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        with torch.no_grad():
            for name, value in self._values.items():
                if name in present:  # not the parameters of new activations
                    present[name].copy_(value)
        self._model, self._values = None, {}

    def __rich__(self) -> Table:
        table = Table("module", "before", "after")
        for swap in (*self.activations, *self.dropouts):
            names = Text("\n".join(swap.names))
            table.add_row(names, Text(repr(swap.before)), Text(repr(swap.after)))
        captions = []
        if self.norms:
            captions.append(f"SELU normalises by itself: leave out {some(self.norms)}")
        if self.initialized is not None:
            number = len(self.initialized.initialized)
            captions.append(f"{count(number, 'weight')} initialised for the new activation")
        table.caption = "; ".join(captions) or None
        return table

    @override
    def __str__(self) -> str:
        return as_text(self)


def swap_activation(
    model: nn.Module, before: Activation, after: Activation, *, initialize: bool = True
) -> SwapReport:
    r"""Replace all activations of one kind by another, in place, with weights that fit.

    A new activation changes the scale of signals: weights for ReLU, of variance
    :math:`2 / n_\mathrm{in}`, let the signals of a deep SELU network grow until it doesn't train,
    and LeCun's, :math:`1 / n_\mathrm{in}`, keep them. So by default all weights of the model are
    initialised anew by :func:`~lightning_practices.init.initialize`; frozen parameters stay. For a
    trained model give ``initialize=False``, and expect to train it further.

    For SELU, :class:`~torch.nn.Dropout` becomes :class:`~torch.nn.AlphaDropout` of the same rate,
    and dropout of channels :class:`~torch.nn.FeatureAlphaDropout`, since plain dropout changes the
    mean and the variance that SELU keeps. Normalisation layers stay, and the report names them.

    Only layers are replaced: activations that a ``forward`` calls as functions, such as
    ``torch.relu(x)``, are not seen.

    The lecture's order of preference: SELU, ELU, leaky ReLU, ReLU, tanh, sigmoid; and ReLU where
    run time matters. ``examples/activations.py`` measures it.

    Source: "Activation functions", lecture S2; Klambauer et al., 2017, arXiv:1706.02515.

    Args:
        model: The model to change.
        before: Class of the activations to replace, such as ``nn.ReLU``, or such a layer, whose
            class counts.
        after: Class of the new activations, which is made without arguments, or a layer, which is
            copied, such as ``nn.LeakyReLU(0.1)``.
        initialize: Whether to initialise the weights of the model anew.

    Returns:
        The report, whose :meth:`~SwapReport.undo` restores layers and weights exactly.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the model has no such activation, or has layers of
            :func:`fuse`, which compute activations within norms. The model is unchanged then.

    Example:
        >>> from lightning_practices.surgery import swap_activation
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))
        >>> report = swap_activation(model, nn.ReLU, nn.SELU)
        >>> model[1], model[2]
        (SELU(), AlphaDropout(p=0.1, inplace=False))
        >>> report.undo()
        >>> model[1], model[2]
        (ReLU(), Dropout(p=0.1, inplace=False))
    """
    check_module(model)
    kind = before if isinstance(before, type) else type(before)
    _check_activation("before", before)
    _check_activation("after", after)
    check_flag("initialize", initialize)
    named = list(modules_with_names(model))
    _check_swappable(model, kind, named)
    make = after if isinstance(after, type) else lambda: deepcopy(after)
    is_selu = issubclass(after if isinstance(after, type) else type(after), nn.SELU)
    report = SwapReport([_swapped(names, one, make) for one, names in named if type(one) is kind])
    if is_selu:
        report.dropouts = [
            _swapped(names, one, partial(_alpha, one))
            for one, names in named
            if _alpha_kind(one) is not None
        ]
        report.norms = [names[0] for one, names in named if isinstance(one, _NORMS)]
    report._model = model
    for swap in (*report.activations, *report.dropouts):
        _put(model, swap.names, swap.after)
    if initialize:
        try:
            _initialize(model, report)
        except Exception:
            report.undo()
            raise
    return report


def _initialize(model: nn.Module, report: SwapReport) -> None:
    values = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    report._values = {name: value.detach().clone() for name, value in values.items()}
    report.initialized = initialize_weights(model)


def _swapped(
    names: tuple[str, ...], layer: nn.Module, make: Callable[[], nn.Module]
) -> SwappedLayer:
    new = make()
    return SwappedLayer(names, layer, new.train(layer.training))


def _alpha_kind(layer: nn.Module) -> type[nn.Module] | None:
    """Return the alpha dropout for a plain dropout layer, ``None`` for other layers."""
    kinds = (kind for kind in type(layer).__mro__ if kind in _ALPHA_DROPOUTS)
    return next((_ALPHA_DROPOUTS[kind] for kind in kinds), None)


def _alpha(layer: nn.Module) -> nn.Module:
    kind = _alpha_kind(layer)
    assert kind is not None
    assert isinstance(layer, _DropoutNd)
    made: Any = kind
    alpha: nn.Module = made(layer.p, layer.inplace)
    return alpha


def _put(model: nn.Module, names: tuple[str, ...], layer: nn.Module) -> None:
    for name in names:
        model.set_submodule(name, layer)


def _check_activation(name: str, value: Any) -> None:
    is_layer = isinstance(value, nn.Module)
    if not is_layer and not (isinstance(value, type) and issubclass(value, nn.Module)):
        raise TypeError(
            f"{name} has to be the class of an activation, such as nn.ReLU, or such a layer, but"
            f" got {shown(value)}"
        )


def _check_swappable(
    model: nn.Module, kind: type[nn.Module], named: list[tuple[nn.Module, tuple[str, ...]]]
) -> None:
    if any(FUSED_FROM in vars(module) for module, _ in named):
        raise ValueError(
            "the model has fused layers, which compute activations within norms: call"
            " surgery.unfuse(model) before, and surgery.fuse(model) after"
        )
    if type(model) is kind:
        raise ValueError(f"the model itself is a {kind.__name__}, which can't be replaced in place")
    if not any(type(module) is kind for module, _ in named):
        present = dict.fromkeys(
            type(module).__name__
            for module, _ in named
            if type(module).__module__ == "torch.nn.modules.activation"
        )
        have = ", ".join(present) or "none"
        raise ValueError(
            f"{type(model).__name__} has no layer of class {kind.__name__}; activations among its"
            f" layers: {have}. Activations that forward calls as functions can't be replaced"
        )
