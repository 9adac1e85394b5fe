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
    r"""Give linear and convolution layers weights of controlled norms, in place.

    ``"weight"`` trains length and direction apart, for each output:

    .. math:: w = g \cdot v / \lVert v \rVert_2

    ``"spectral"`` divides the weight, as a matrix whose rows are outputs, by an estimate of its
    largest singular value, made better by one power iteration at each forward pass in training:

    .. math:: W = V / \sigma(V)

    By torch's parametrizations, but that the outputs of a transposed convolution are those of its
    weight's second dimension for both (``torch``'s ``weight_norm`` takes the first), and that what
    would turn to nan, or tear shared weights apart, is refused. ``weight`` is now computed from
    other parameters: make optimizers afterwards; the keys of ``state_dict`` change, until
    :func:`unparametrize`. Biases stay as they are.

    Source: "Weight normalization" and "Spectral normalization", lecture S3; Salimans and Kingma,
    2016, arXiv:1602.07868; Miyato et al., 2018, arXiv:1802.05957.

    Args:
        model: Whose layers they are.
        kind: ``"weight"`` or ``"spectral"``.
        where: Names of modules, or blocks of :func:`blocks`: the layers in them. All if not given.

    Returns:
        The names of the weights that are parametrized.

    Raises:
        TypeError: If ``model`` is not a module or ``where`` not a sequence.
        ValueError: If ``kind`` is neither; if the model has nothing of a name, or no layer there;
            if a weight is parametrized already, not made yet, shared by several layers, or 0
            for an output (for ``"spectral"``: everywhere). Then nothing was changed.
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
    """Undo :func:`parametrize`: make the weights as they are now plain parameters, in place.

    The model computes what it computed in eval mode, and its ``state_dict`` has the keys, and its
    parameters the order, that they had before. Torch's ``remove_parametrizations`` changes spectral
    norms once more in training mode, makes frozen weights buffers, and puts weights after biases.
    Make optimizers afterwards.

    Args:
        model: Whose layers they are.

    Returns:
        The names of the weights. Parametrizations other than :func:`parametrize`'s stay.

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
        last.eval()  # no power iteration by looking
        torchs.remove_parametrizations(layer, "weight")
        weight = layer._buffers.pop("weight", None)  # of a frozen one
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
        left = {id(p) for p in alone} - inside  # blocks name the parameters of their modules, too
        if left:
            names = [name for name, p in model.named_parameters() if id(p) in left]
            raise ValueError(f"where has to name modules, but {names} are parameters")
    parts = {part for module in chosen for part in module.modules() if isinstance(part, _LAYERS)}
    layers = {layer: module_name(name) for name, layer in model.named_modules() if layer in parts}
    if not layers:
        raise ValueError(
            f"there is no linear or convolution layer in {type(model).__name__}"
            + ("" if where is None else f" where {[*where]} is")
        )
    return layers


def _output_dim(layer: nn.Module) -> int:
    return 1 if isinstance(layer, _ConvTransposeNd) else 0


def _check(
    name: str, layer: nn.Module, kind: Parametrization, owners: dict[int, list[str]]
) -> None:
    """Refuse a layer whose weight can't be parametrized."""
    name = name or type(layer).__name__
    if torchs.is_parametrized(layer, "weight"):
        raise ValueError(f"the weight of {name} is parametrized already: unparametrize it first")
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if torch.nn.parameter.is_lazy(weight):
        raise ValueError(f"{name} has no weight yet: run a batch through the model first")
    if len(shared := owners[id(weight)]) > 1:
        raise ValueError(f"{' and '.join(shared)} are one weight, and would be so no longer")
    largest = weight.detach().abs().transpose(0, _output_dim(layer)).flatten(1).amax(1)
    if not bool(largest.all() if kind == "weight" else largest.any()):
        where = "for an output" if kind == "weight" else "everywhere"
        raise ValueError(f"the weight of {name} is 0 {where}, and has no direction to keep")
