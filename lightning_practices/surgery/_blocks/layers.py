"""Find the layers of a network in the order of their registration."""

import sys
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.densenet import _DenseBlock
from torchvision.models.googlenet import InceptionAux as GoogLeNetAux
from torchvision.models.inception import InceptionAux
from torchvision.models.maxvit import MaxVitBlock
from torchvision.models.vision_transformer import Encoder

from lightning_practices._layers import NORMS
from lightning_practices.nn.blocks import FusedBlock

Layer = list[nn.Parameter]

# Classes of torchvision: whole networks, sequences of layers within them, and auxiliary heads.
_NETWORKS: tuple[type[nn.Module], ...] = tuple(
    cls
    for cls in vars(torchvision.models).values()
    if isinstance(cls, type) and issubclass(cls, nn.Module)
)
_SEQUENCES = (_DenseBlock, MaxVitBlock, Encoder, IntermediateLayerGetter)
AUXILIARY = (GoogLeNetAux, InceptionAux)

# Names under which wrappers (torch.compile, FSDP1, checkpointing, DDP) hold their only child.
_WRAPPED = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"}


def layers_of(model: nn.Module) -> list[Layer]:
    """Return the parameters of each layer, starting at the input.

    A parameter that several layers share is listed in each of them.
    :func:`lightning_practices.surgery.blocks` defines a layer.
    """
    model = _unwrapped(model)
    while not _is_network(model):
        children = _children(model)
        if len(children) != 1 or any(True for _ in model.parameters(recurse=False)):
            break
        model = _unwrapped(children[0])
    return _network(model, sum(p.numel() for p in model.parameters()))


def is_scale(module: nn.Module) -> bool:
    """Return whether a module only scales and shifts, such as norms, layer scales and ``PReLU``."""
    parameters = list(module.parameters())
    return isinstance(module, NORMS) or all(p.dim() <= 1 for p in parameters)


def _network(module: nn.Module, total: int) -> list[Layer]:
    """Return the layers of a module whose children run one after another."""
    timm: Any = sys.modules.get("timm.models")  # loaded if the model is a timm model
    matcher = getattr(module, "group_matcher", None)
    if timm is not None and matcher is not None:
        grouped = timm.group_parameters(module, matcher(coarse=False), return_values=True)
        return [grouped[place] for place in sorted(grouped)]
    own, children = list(module.parameters(recurse=False)), _children(module)
    if not children:
        return [own]
    auxiliary = [child for child in children if isinstance(child, AUXILIARY)]
    known, listed = isinstance(module, (*_NETWORKS, *_SEQUENCES)), is_list(module)
    layers = _joined(
        (child, _layers(child, total, known=known, listed=listed))
        for child in children
        if child not in auxiliary
    )
    layers[0] = own + layers[0]
    layers[-1] = layers[-1] + [p for child in auxiliary for p in child.parameters()]
    return layers


def _layers(module: nn.Module, total: int, *, known: bool, listed: bool) -> list[Layer]:
    """Return the layers of a child.

    Args:
        module: The child.
        total: Number of elements of all parameters of the model.
        known: Whether the child is in a torchvision network, whose structure is known.
        listed: Whether the child is an element of a list.
    """
    module = _unwrapped(module)
    if is_list(module):
        return _joined(
            (child, _layers(child, total, known=known, listed=True)) for child in _children(module)
        )
    if _is_network(module):
        return _network(module, total)
    is_large = 2 * sum(p.numel() for p in module.parameters()) > total
    if not known and (is_large or not listed) and _has_layers(module):
        return _network(module, total)
    return [list(module.parameters())]


def _joined(parts: Iterable[tuple[nn.Module, list[Layer]]]) -> list[Layer]:
    """Return the layers of all parts. A part that only scales joins the previous or first layer."""
    layers: list[Layer] = []
    waiting: Layer = []
    for module, found in parts:
        if not is_scale(module):
            layers += [waiting + found[0], *found[1:]]
            waiting = []
        elif layers:
            layers[-1] += chain.from_iterable(found)
        else:
            waiting += chain.from_iterable(found)
    return [*layers, waiting] if waiting else layers


def is_list(module: nn.Module) -> bool:
    """Return whether a module's children are known to run one after another."""
    cls = module.original if isinstance(module, FusedBlock) else type(module)
    is_plain = issubclass(cls, nn.Sequential) and cls.forward is nn.Sequential.forward
    return is_plain or isinstance(module, nn.ModuleList)


def _is_network(module: nn.Module) -> bool:
    # Check the class: `__getattr__` of a compiled module returns attributes of the inner module.
    has_matcher = hasattr(type(module), "group_matcher") and "timm.models" in sys.modules
    return has_matcher or isinstance(module, (*_NETWORKS, *_SEQUENCES))


def _has_layers(module: nn.Module) -> bool:
    """Return whether most parameters of a module are in a list of layers of the same class."""
    half = sum(p.numel() for p in module.parameters()) / 2
    for part in module.modules():
        if is_list(part) and sum(p.numel() for p in part.parameters()) > half:
            classes = [type(child) for child in _children(part)]
            if len(set(classes)) < len(classes):
                return True
    return False


def _children(module: nn.Module) -> list[nn.Module]:
    """Return the children that have parameters."""
    return [child for child in module.children() if any(True for _ in child.parameters())]


def _unwrapped(module: nn.Module) -> nn.Module:
    while (names := dict(module.named_children()).keys()) and len(names) == 1 and names <= _WRAPPED:
        module = next(module.children())
    return module
