"""Weight norm and spectral norm, by torch's parametrizations."""

from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrizations
from torch.nn.utils import parametrize as torchs
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm

from lightning_practices._arguments import check_choice
from lightning_practices._names import check_module, module_name
from lightning_practices.surgery._blocks import Block, found

Parametrization = Literal["weight", "spectral"]
"""Weight norm or spectral norm, see :func:`~lightning_practices.surgery.parametrize`."""

_LAYERS = (nn.Linear, nn.Bilinear, _ConvNd)


def parametrize(
    model: nn.Module, kind: Parametrization, where: Iterable[str | Block] | None = None
) -> tuple[str, ...]:
    r"""Normalise the weights of linear and convolution layers, in place.

    ``"weight"`` (weight norm) trains the length and the direction of each output's weights
    separately:

    .. math:: w = g \cdot v / \lVert v \rVert_2

    ``"spectral"`` (spectral norm) divides the weight, as a matrix whose rows are outputs, by an
    estimate of its largest singular value. One power iteration per forward pass in training refines
    the estimate:

    .. math:: W = V / \sigma(V)

    Torch's parametrizations do the work, with two differences. For a transposed convolution both
    kinds treat the weight's second dimension as the outputs, where torch's ``weight_norm`` uses the
    first. Weights that would become nan, and weights that layers share, raise an error. After this
    call ``weight`` is computed from new parameters, so make optimizers afterwards. The keys of
    ``state_dict`` change until :func:`unparametrize`. Biases are not changed.

    Source: "Weight normalization" and "Spectral normalization", lecture S3; Salimans and Kingma,
    2016, arXiv:1602.07868; Miyato et al., 2018, arXiv:1802.05957.

    Args:
        model: The model to change.
        kind: ``"weight"`` or ``"spectral"``.
        where: Names of modules, or blocks of :func:`blocks`, whose layers are parametrized.
            Default: all linear and convolution layers.

    Returns:
        The names of the parametrized weights.

    Raises:
        TypeError: If ``model`` is not a module or ``where`` not a sequence.
        ValueError: If ``kind`` is neither ``"weight"`` nor ``"spectral"``. If the model has no
            module with a given name, or the module contains no linear or convolution layer. If a
            weight is already parametrized, lazy, or shared by several layers. If the weights of a
            whole output are 0 (for ``"spectral"``: all weights of a layer). After an error the
            model is unchanged.

    Example:
        >>> from lightning_practices.surgery import parametrize
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> parametrize(model, "spectral")
        ('0.weight', '2.weight')
        >>> sigma = torch.linalg.matrix_norm(model[0].weight, ord=2)  # the largest singular value
        >>> bool((sigma - 1).abs() < 0.2)
        True
    """
    check_choice("kind", kind, get_args(Parametrization))
    layers = _layers(model, where)
    owners: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(p), []).append(name)
    for layer, name in layers.items():
        _check(name, layer, kind, owners)
    for layer in layers:
        if kind == "spectral":
            parametrizations.spectral_norm(layer)
        else:
            parametrizations.weight_norm(layer, dim=_output_dim(layer))
    return tuple(f"{name}.weight".removeprefix(".") for name in layers.values())


def unparametrize(model: nn.Module) -> tuple[str, ...]:
    """Undo :func:`parametrize` in place: replace parametrizations by their current weights.

    The new model's output is that of the parametrized model in eval mode. The keys of
    ``state_dict`` and the order of parameters are the original ones. Torch's
    ``remove_parametrizations`` would run another power iteration of a spectral norm in training
    mode, turn frozen weights into buffers, and put weights after biases. Make optimizers
    afterwards.

    Args:
        model: The model to change.

    Returns:
        The names of the weights that are plain parameters again. Other kinds of parametrizations
        stay.

    Raises:
        TypeError: If ``model`` is not a module.

    Example:
        >>> from lightning_practices.surgery import parametrize, unparametrize
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> parametrize(model, "weight")
        ('0.weight', '2.weight')
        >>> list(model[0].state_dict())
        ['bias', 'parametrizations.weight.original0', 'parametrizations.weight.original1']
        >>> unparametrize(model)
        ('0.weight', '2.weight')
        >>> list(model[0].state_dict())
        ['weight', 'bias']
    """
    check_module(model)
    names: list[str] = []
    for name, layer in [*model.named_modules()]:
        if not torchs.is_parametrized(layer, "weight"):
            continue
        (*others, last) = layer.parametrizations["weight"]
        if others or not isinstance(last, _WeightNorm | _SpectralNorm):
            continue
        last.eval()  # reading the weight in train mode runs a power iteration
        torchs.remove_parametrizations(layer, "weight")
        weight = layer._buffers.pop("weight", None)  # torch makes a frozen weight a buffer
        if weight is not None:
            layer.weight = nn.Parameter(weight, requires_grad=False)
        layer._parameters = {"weight": layer._parameters.pop("weight"), **layer._parameters}
        names.append(f"{module_name(name)}.weight".removeprefix("."))
    return tuple(names)


def _layers(model: nn.Module, where: Iterable[str | Block] | None) -> dict[nn.Module, str]:
    """Return the linear and convolution layers in ``where``, and their names in the model."""
    check_module(model)
    chosen = [model]
    if where is not None:
        chosen, alone = found(model, where)
        inside = {id(p) for module in chosen for p in module.parameters()}
        left = {id(p) for p in alone} - inside  # a block also lists the parameters of its modules
        if left:
            names = [name for name, p in model.named_parameters() if id(p) in left]
            raise ValueError(f"where has to name modules, but {names} are parameters")
    parts = {part for module in chosen for part in module.modules() if isinstance(part, _LAYERS)}
    layers = {layer: module_name(name) for name, layer in model.named_modules() if layer in parts}
    if not layers:
        raise ValueError(
            f"there is no linear or convolution layer in {type(model).__name__}"
            + ("" if where is None else f" at {[*where]}")
        )
    return layers


def _output_dim(layer: nn.Module) -> int:
    return 1 if isinstance(layer, _ConvTransposeNd) else 0


def _check(
    name: str, layer: nn.Module, kind: Parametrization, owners: dict[int, list[str]]
) -> None:
    """Raise ``ValueError`` if the weight of ``layer`` can't be parametrized."""
    name = name or type(layer).__name__
    if torchs.is_parametrized(layer, "weight"):
        raise ValueError(f"the weight of {name} is parametrized already: unparametrize it first")
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if torch.nn.parameter.is_lazy(weight):
        raise ValueError(f"{name} has no weight yet: run a batch through the model first")
    if len(shared := owners[id(weight)]) > 1:
        raise ValueError(
            f"{' and '.join(shared)} are one weight, which a parametrization would make two"
        )
    largest = weight.detach().abs().transpose(0, _output_dim(layer)).flatten(1).amax(1)
    if not bool(largest.all() if kind == "weight" else largest.any()):
        where = "for an output" if kind == "weight" else "everywhere"
        raise ValueError(f"the weight of {name} is 0 {where}, and has no direction to keep")
