"""Groups of parameters for optimizers: which weights are decayed, and each layer's rate."""

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from lightning_practices._arguments import check_names, check_number, shown
from lightning_practices._layers import NORMS
from lightning_practices._names import check_module, plain_name
from lightning_practices.surgery import blocks

KINDS = ("norm", "bias", "embedding")
"""The kinds of parameters that are neither decayed nor penalised by default."""

_BIAS = re.compile(r"(?:^|_)bias(?:es)?(?:_|$)")
_SCALE = re.compile(r"(?:^|_)(?:scale|gamma)(?:_|$)")
_EMBEDDING = re.compile(r"(?:^|_)(?:embed|embedding|token)s?(?:_|$)")
_PARAMETRIZATIONS = "parametrizations."
_SHOWN = 10  # the most names in an error message


def decayed_weights(model: nn.Module, no_decay: Sequence[str] = KINDS) -> dict[str, nn.Parameter]:
    """Return the weights that are to be decayed or penalised, by their names.

    The parameters that ``no_decay`` describes are left out. A small bias, scale or offset doesn't
    make a function smoother, and decay would shrink a row of an embedding in each step in which its
    word doesn't occur.

    - ``"norm"``: all parameters of normalisation layers of torch, torchvision, timm and this
      package, biases included. Also scales: parameters named ``scale`` or ``gamma``, and parameters
      with at most one dimension, such as layer scales and the slopes of ``PReLU``.
    - ``"bias"``: parameters with the word in their own name: ``bias``, ``in_proj_bias``,
      ``relative_position_bias_table``.
    - ``"embedding"``: the weights of ``nn.Embedding`` and ``nn.EmbeddingBag``; parameters named an
      embedding or a token, such as ``cls_token`` and ``pos_embedding``; and parameters that a
      module's method ``no_weight_decay()`` lists, as timm's models do.
    - Any other entry is a pattern of parameter names, where ``*`` matches any characters:
      ``"head.*"``.

    A parameter that several modules share appears once, under its first name. It is left out if
    ``no_decay`` describes it in any of these modules, as for an embedding that is also the output
    layer. Parametrised weights are treated like plain weights, and frozen parameters like trainable
    ones. Under FSDP2 and tensor parallelism the shape of the whole parameter counts, not that of
    its shard.

    Args:
        model: The module whose parameters are examined.
        no_decay: The kinds and name patterns of the parameters that are left out.

    Raises:
        ValueError: If a pattern matches no parameter. If the model has no parameters, parameters
            without a shape yet, or the flat parameters that ``FullyShardedDataParallel`` makes.

    Example:
        >>> from lightning_practices.optim import decayed_weights
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 8), nn.LayerNorm(8))
        >>> list(decayed_weights(model))
        ['1.weight']
        >>> list(decayed_weights(model, no_decay=["norm", "bias"]))
        ['0.weight', '1.weight']
    """
    places = _places(model, check_names("no_decay", no_decay))
    spared = {id(place.parameter) for place in places if place.is_spared}
    weights: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for place in places:
        if id(place.parameter) not in seen | spared:
            seen.add(id(place.parameter))
            weights[place.name] = place.parameter
    return weights


def parameter_groups(
    model: nn.Module,
    weight_decay: float | None = None,
    *,
    no_decay: Sequence[str] = KINDS,
    layer_decay: float | None = None,
    lr: float | None = None,
) -> list[dict[str, Any]]:
    r"""Return the parameters in named groups, for any of torch's optimizers.

    The group ``"decay"`` has the weights that :func:`decayed_weights` returns. The group
    ``"no_decay"`` has all other parameters, with a weight decay of 0. Each group holds its name
    under the key ``"name"``, which Lightning's ``LearningRateMonitor`` reads and checkpoints keep.

    With ``layer_decay`` :math:`\xi` each layer has its own groups, ``"layer_0_decay"`` and so on,
    counted from the input. Their learning rate is :math:`\eta \xi^d` with :math:`d` layers between
    the layer and the output; the last layer has the rate :math:`\eta`. :func:`layer_depths` defines
    the layers.

    Each parameter, shared or not, is in exactly one group. Frozen parameters are in the groups too:
    optimizers skip parameters without a gradient, and unfreezing needs no new group, which would
    make schedulers fail.

    Source: Bao et al., 2022, "BEiT: BERT pre-training of image transformers", arXiv:2106.08254, for
    the rates by layer.

    Args:
        model: The module whose parameters are grouped.
        weight_decay: Weight decay of the group ``"decay"``. Default: the optimizer's own.
        no_decay: The parameters that are not decayed, see :func:`decayed_weights`.
        layer_decay: Factor :math:`\xi` of the rate from each layer to the layer before it, above 0
            and up to 1. Default: all layers have the same rate.
        lr: Learning rate :math:`\eta` of the last layer. Default: the optimizer's own.
            ``layer_decay`` needs it.

    Raises:
        ValueError: If ``weight_decay`` or ``lr`` is negative or not finite, ``layer_decay`` is not
            above 0 and up to 1, or ``lr`` is missing with ``layer_decay``. Also as for
            :func:`decayed_weights`.

    Example:
        >>> from lightning_practices.optim import parameter_groups
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> for group in parameter_groups(model, weight_decay=0.05, layer_decay=0.5, lr=0.1):
        ...     print(group["name"], group["lr"], group["weight_decay"])
        layer_0_decay 0.05 0.05
        layer_0_no_decay 0.05 0.0
        layer_1_decay 0.1 0.05
        layer_1_no_decay 0.1 0.0
    """
    weight_decay, layer_decay, lr = check_groups(weight_decay, layer_decay, lr)
    weights = {id(p) for p in decayed_weights(model, no_decay).values()}
    depths = None if layer_decay is None else _depths(model, layer_decay)
    last = max(depths.values()) if depths else 0
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for p in model.parameters():
        key = (-depths[id(p)] if depths else 0, id(p) not in weights)
        groups.setdefault(key, {"params": []})["params"].append(p)
    for (minus_depth, is_spared), group in groups.items():
        kind = "no_decay" if is_spared else "decay"
        group["name"] = f"layer_{last + minus_depth}_{kind}" if depths else kind
        if is_spared:
            group["weight_decay"] = 0.0
        elif weight_decay is not None:
            group["weight_decay"] = weight_decay
        if lr is not None:
            group["lr"] = lr * layer_decay**-minus_depth if layer_decay else lr
    return [groups[key] for key in sorted(groups)]


def layer_depths(model: nn.Module) -> dict[nn.Parameter, int]:
    """Return how many layers are between each parameter and the output.

    Layers are the blocks that :func:`lightning_practices.surgery.blocks` returns, with their
    depths.

    Args:
        model: The module whose parameters are examined.

    Raises:
        ValueError: If the model has no parameters, or parameters without a shape yet.

    Example:
        >>> from lightning_practices.optim import layer_depths
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> depths = layer_depths(model)
        >>> [(name, depths[parameter]) for name, parameter in model.named_parameters()]
        [('0.weight', 1), ('0.bias', 1), ('2.weight', 0), ('2.bias', 0)]
    """
    found = blocks(model)
    parameters = dict(model.named_parameters())
    return {parameters[name]: block.depth for block in found for name in block.parameters}


def check_groups(
    weight_decay: float | None, layer_decay: float | None, lr: float | None
) -> tuple[float | None, float | None, float | None]:
    """Return the arguments of :func:`parameter_groups` that don't depend on the model.

    Raises:
        ValueError: If ``weight_decay`` or ``lr`` is negative or not finite, ``layer_decay`` is not
            above 0 and up to 1, or ``lr`` is missing with ``layer_decay``.
    """
    if weight_decay is not None:
        weight_decay = check_number("weight_decay", weight_decay, ge=0)
    if lr is not None:
        lr = check_number("lr", lr, ge=0)
    if layer_decay is not None:
        layer_decay = check_number("layer_decay", layer_decay, gt=0, le=1)
        if lr is None:
            raise ValueError("layer_decay multiplies the rate of the last layer: give lr too")
    return weight_decay, layer_decay, lr


class _Place(NamedTuple):
    """A parameter in one of the modules that hold it.

    Attributes:
        name: Full name of the parameter in the model.
        parameter: The parameter. A shared parameter has several places.
        is_spared: Whether an entry of ``no_decay`` matches the parameter in this module.
    """

    name: str
    parameter: nn.Parameter
    is_spared: bool


def _places(model: nn.Module, no_decay: tuple[str, ...]) -> list[_Place]:
    """Return all places of all parameters, in the order of registration."""
    _check_model(model)
    tokens = set(_without_decay(model)) if "embedding" in no_decay else set()
    patterns = dict.fromkeys((entry for entry in no_decay if entry not in KINDS), False)
    places = []
    for path, module in model.named_modules(remove_duplicate=False):
        for own, p in module.named_parameters(recurse=False):
            name = plain_name(f"{path}.{own}" if path else own)
            found = [pattern for pattern in patterns if fnmatchcase(name, pattern)]
            patterns.update(dict.fromkeys(found, True))
            owner, word = _unparametrized(model, path, module, own)
            is_kind = not _kinds(owner, word, p).isdisjoint(no_decay) or id(p) in tokens
            places.append(_Place(name, p, bool(found) or is_kind))
    for pattern, is_used in patterns.items():
        if not is_used:
            raise ValueError(_nothing(pattern, [place.name for place in places]))
    return places


def _check_model(model: nn.Module) -> None:
    check_module(model)
    name = type(model).__name__
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise ValueError(
            f"FullyShardedDataParallel makes flat shards of the parameters of {name}, of which one"
            " can't tell biases and scales from weights: use fully_shard (FSDP2), in Lightning"
            " ModelParallelStrategy, or make the groups before it wraps"
        )
    count = 0
    for parameter_name, p in model.named_parameters():
        if is_lazy(p):
            raise ValueError(
                f"{parameter_name} of {name} has no shape yet ({UninitializedParameter.__name__}):"
                " call the model once, on a batch, before"
            )
        if _is_partitioned(p):
            raise ValueError(
                f"{parameter_name} of {name} is partitioned by DeepSpeed's ZeRO stage 3 and empty"
                " here, so nothing tells weights from biases, and no weight would be decayed: make"
                " the layers in __init__ and not in configure_model, or make the"
                " groups within deepspeed.zero.GatheredParameters, or use ModelParallelStrategy"
                " (FSDP2)"
            )
        count += 1
    if not count:
        raise ValueError(f"{name} has no parameters")


def _is_partitioned(p: Tensor) -> bool:
    """Return whether a parameter is empty here because DeepSpeed's ZeRO stage 3 shards it."""
    return hasattr(p, "ds_id") and hasattr(p, "ds_tensor") and not p.numel()


def _kinds(module: nn.Module, word: str, p: Tensor) -> set[str]:
    """Return which of ``KINDS`` a parameter is, from its module and its name in the module."""
    kinds = set()
    is_vector = p.dim() <= 1
    if _BIAS.search(word):
        kinds.add("bias")
    is_norm = isinstance(module, NORMS) or (is_vector and "norm" in type(module).__name__.lower())
    if is_norm or (not kinds and (is_vector or _SCALE.search(word))):
        kinds.add("norm")
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) or _EMBEDDING.search(word):
        kinds.add("embedding")
    return kinds


def _unparametrized(
    model: nn.Module, path: str, module: nn.Module, own: str
) -> tuple[nn.Module, str]:
    """Return the layer to which a parametrised tensor belongs, and the tensor's name there."""
    if not isinstance(module, ParametrizationList):
        return module, own
    layer, _, word = path.rpartition(_PARAMETRIZATIONS)
    return model.get_submodule(layer.removesuffix(".")), word


def _without_decay(model: nn.Module) -> Iterator[int]:
    """Yield the ids of the parameters that modules list in ``no_weight_decay()``."""
    for module in model.modules():
        names = getattr(module, "no_weight_decay", None)
        if callable(names):
            patterns = names()
            for name, p in module.named_parameters(remove_duplicate=False):
                if any(fnmatchcase(plain_name(name), pattern) for pattern in patterns):
                    yield id(p)


def _depths(model: nn.Module, layer_decay: float) -> dict[int, int]:
    depths = {id(p): depth for p, depth in layer_depths(model).items()}
    if layer_decay < 1 and not any(depths.values()):
        raise ValueError(
            f"layer_decay={layer_decay} is from layer to layer, but {type(model).__name__} is one"
            " layer: surgery.blocks says what is one"
        )
    return depths


def _nothing(pattern: str, names: list[str]) -> str:
    """Return the message that a pattern matches no parameter, with the names that exist."""
    there = [*map(repr, names[:_SHOWN])]
    if len(names) > _SHOWN:
        there.append(f"and {len(names) - _SHOWN} more")
    return (
        f"{shown(pattern)} is none of {', '.join(map(repr, KINDS))} and matches no parameter's"
        f" name; there are: {', '.join(there)}"
    )
