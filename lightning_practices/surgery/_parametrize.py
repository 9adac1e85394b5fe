"""Weight and spectral norm, over torch's parametrizations."""

from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrizations
from torch.nn.utils import parametrize as torchs
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm

from lightning_practices._names import check_module, module_name
from lightning_practices.surgery._blocks import Block, found

Parametrization = Literal["weight", "spectral"]
_LAYERS = (nn.Linear, nn.Bilinear, _ConvNd)


def parametrize(
    model: nn.Module, kind: Parametrization, where: Iterable[str | Block] | None = None
) -> tuple[str, ...]:
    r"""Control the norms of the weights of linear and convolution layers, in place.

    ``"weight"`` (weight norm) trains the length and the direction of each output's weights apart:

    .. math:: w = g \cdot v / \lVert v \rVert_2

    ``"spectral"`` (spectral norm) divides the weight, as a matrix whose rows are outputs, by an
    estimate of its largest singular value, which one power iteration per forward pass in training
    improves:

    .. math:: W = V / \sigma(V)

    The work is done by torch's parametrizations. Two things differ. The outputs of a transposed
    convolution are its weight's second dimension for both kinds, where torch's ``weight_norm``
    takes the first. And weights that would become nan, or that are shared, raise an error.
    ``weight`` is then computed from other parameters, so make optimizers afterwards. The keys of
    ``state_dict`` change until :func:`unparametrize`. Biases are not changed.

    Source: "Weight normalization" and "Spectral normalization", lecture S3; Salimans and Kingma,
    2016, arXiv:1602.07868; Miyato et al., 2018, arXiv:1802.05957.

    Args:
        model: The model to change.
        kind: ``"weight"`` or ``"spectral"``.
        where: Names of modules, or blocks of :func:`blocks`, whose layers are parametrized.
            Default: all.

    Returns:
        The names of the parametrized weights.

    Raises:
        TypeError: If ``model`` is not a module or ``where`` not a sequence.
        ValueError: If ``kind`` is another; if the model has no module of a name, or no layer in it;
            if a weight is parametrized already, lazy, shared by several layers, or 0 for a whole
            output (for ``"spectral"``: 0 everywhere). Then nothing was changed.
    """
    if kind not in get_args(Parametrization):
        raise ValueError(f"kind has to be 'weight' or 'spectral', but got {kind!r}")
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
    """Undo :func:`parametrize`: make plain parameters of the current weights, in place.

    The model computes what it computed in eval mode. The keys of ``state_dict`` and the order of
    parameters are the original ones. Torch's ``remove_parametrizations`` would update a spectral
    norm once more in training mode, turn frozen weights into buffers, and put weights after biases.
    Make optimizers afterwards.

    Args:
        model: The model to change.

    Returns:
        The names of the weights. Parametrizations of other kinds stay.

    Raises:
        TypeError: If ``model`` is not a module.
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
        weight = layer._buffers.pop("weight", None)  # a frozen weight became a buffer
        if weight is not None:
            layer.weight = nn.Parameter(weight, requires_grad=False)
        layer._parameters = {"weight": layer._parameters.pop("weight"), **layer._parameters}
        names.append(f"{module_name(name)}.weight".removeprefix("."))
    return tuple(names)


def _layers(model: nn.Module, where: Iterable[str | Block] | None) -> dict[nn.Module, str]:
    """Return the layers in ``where``, and their names in the model."""
    check_module(model)
    chosen = [model]
    if where is not None:
        chosen, alone = found(model, where)
        inside = {id(p) for module in chosen for p in module.parameters()}
        left = {id(p) for p in alone} - inside  # a block also names the parameters of its modules
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
