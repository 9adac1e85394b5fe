"""Which weights are decayed, and how fast each layer learns: the groups that optimizers take."""

import math
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from lightning_practices._layers import NORMS
from lightning_practices._names import plain_name
from lightning_practices.surgery import blocks

KINDS = ("norm", "bias", "embedding")
"""The kinds of parameters that are neither decayed nor penalised by default."""

_BIAS = re.compile(r"(?:^|_)bias(?:es)?(?:_|$)")
_SCALE = re.compile(r"(?:^|_)(?:scale|gamma)(?:_|$)")
_EMBEDDING = re.compile(r"(?:^|_)(?:embed|embedding|token)s?(?:_|$)")
_PARAMETRIZATIONS = "parametrizations."
_SHOWN = 10  # names in an error


def decayed_weights(model: nn.Module, no_decay: Sequence[str] = KINDS) -> dict[str, nn.Parameter]:
    """Return the weights that are to be decayed or penalised, by their names.

    What ``no_decay`` names is spared: for a bias, a scale or an offset to be small doesn't make a
    function smoother, and a row of an embedding would shrink whenever its word doesn't occur.

    - ``"norm"``: what normalisation layers of torch, torchvision, timm and of this package have,
      biases included; and scales, that is whatever else is called ``scale`` or ``gamma``, or has
      one dimension or none, such as layer scales and the slopes of ``PReLU``.
    - ``"bias"``: all whose own name has the word: ``bias``, ``in_proj_bias``,
      ``relative_position_bias_table``.
    - ``"embedding"``: the weights of ``nn.Embedding`` and ``nn.EmbeddingBag``; parameters that are
      called an embedding or a token, such as ``cls_token`` and ``pos_embedding``; and those that a
      module's ``no_weight_decay()`` returns, as timm's do.
    - Anything else is a pattern of names, in which ``*`` stands for anything: ``"head.*"``.

    A parameter that several modules share is one, under its first name, and spared if it is in one
    of its places: an embedding that is the output layer too. A parametrised weight is judged as if
    it weren't. Frozen parameters are weights like others. Under FSDP2 and tensor parallelism shapes
    are those of the whole.

    Args:
        model: Whose parameters.
        no_decay: What to spare.

    Raises:
        ValueError: If a pattern matches nothing; if the model has no parameters, some without a
            shape yet, or flat ones, as ``FullyShardedDataParallel`` makes.
    """
    places = _places(model, _checked(no_decay))
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

    ::

        optimizer = AdamW(parameter_groups(model, weight_decay=0.05), lr=1e-3)

    The group ``"decay"`` has the weights that :func:`decayed_weights` returns, ``"no_decay"`` all
    others, with a weight decay of 0. The names are under the key ``"name"``, where Lightning's
    ``LearningRateMonitor`` finds them, and stay in checkpoints.

    With ``layer_decay`` :math:`\xi` each layer has groups of its own, ``"layer_0_decay"`` and so on
    from the input, whose rate is :math:`\eta \xi^d`, where :math:`d` layers are between it and the
    output: :math:`\eta` for the last one. Layers are those of :func:`layer_depths`.

    Each parameter is in one group, shared ones too. Frozen ones are in theirs as well: optimizers
    leave parameters without a gradient alone, and once they are unfrozen nothing has to be added,
    at which schedulers fail.

    Source: Bao et al., 2022, "BEiT: BERT pre-training of image transformers", arXiv:2106.08254, for
    the rates by layers.

    Args:
        model: Whose parameters.
        weight_decay: Weight decay of the weights. Default: the optimizer's own.
        no_decay: The parameters that are not decayed, see :func:`decayed_weights`.
        layer_decay: Factor of the rate from each layer to the one before it, above 0 and up to 1.
        lr: Learning rate. Default: the optimizer's own; with ``layer_decay`` it has to be given.

    Raises:
        ValueError: If an argument is out of range, or see :func:`decayed_weights`.
    """
    check_groups(weight_decay, layer_decay, lr)
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

    Layers are the blocks of :func:`lightning_practices.surgery.blocks`, at their depths.

    Args:
        model: Whose parameters.

    Raises:
        ValueError: If the model has no parameters, or some without a shape yet.
    """
    parameters = dict(model.named_parameters())
    return {parameters[name]: block.depth for block in blocks(model) for name in block.parameters}


def check_groups(weight_decay: float | None, layer_decay: float | None, lr: float | None) -> None:
    """Refuse arguments of :func:`parameter_groups` that are wrong for any model.

    Raises:
        ValueError: If one is out of range.
    """
    for name, value in {"weight_decay": weight_decay, "lr": lr}.items():
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} has to be 0 or more, and finite, but got {value!r}")
    if layer_decay is None:
        return
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay has to be above 0 and up to 1, but got {layer_decay!r}")
    if lr is None:
        raise ValueError("layer_decay multiplies the learning rate of the last layer: give that")


class _Place(NamedTuple):
    """A parameter where a module has it.

    Attributes:
        name: From the model on.
        parameter: The same in all places of one that is shared.
        is_spared: Whether something of ``no_decay`` fits it here.
    """

    name: str
    parameter: nn.Parameter
    is_spared: bool


def _checked(no_decay: Sequence[str]) -> tuple[str, ...]:
    if isinstance(no_decay, str) or not all(isinstance(entry, str) for entry in no_decay):
        raise ValueError(
            f"no_decay has to be a sequence of names, as in ('norm', 'bias'), but got {no_decay!r}"
        )
    return tuple(no_decay)


def _places(model: nn.Module, no_decay: tuple[str, ...]) -> list[_Place]:
    """Return all places of all parameters, in order of registration."""
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
    """Say whether DeepSpeed's ZeRO stage 3 has left no elements of a parameter in its place."""
    return hasattr(p, "ds_id") and hasattr(p, "ds_tensor") and not p.numel()


def _kinds(module: nn.Module, word: str, p: Tensor) -> set[str]:
    """Say of which kinds a parameter is, by its module and its name in it."""
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
    """Return the layer that a parametrised tensor is of, and its name there."""
    if not isinstance(module, ParametrizationList):
        return module, own
    layer, _, word = path.rpartition(_PARAMETRIZATIONS)
    return model.get_submodule(layer.removesuffix(".")), word


def _without_decay(model: nn.Module) -> Iterator[int]:
    """Yield what modules themselves say not to decay, by ids."""
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
    """Say that a pattern matches no parameter, and which there are."""
    shown = [*map(repr, names[:_SHOWN])]
    if len(names) > _SHOWN:
        shown.append(f"and {len(names) - _SHOWN} more")
    return (
        f"{pattern!r} is none of {', '.join(map(repr, KINDS))} and matches no parameter's name;"
        f" there are: {', '.join(shown)}"
    )
