"""Sizes of layers: parameters, and numbers of features or channels."""

from collections.abc import Iterator

from torch import nn

_IMAGE = 4  # the most channels of an image: colours and transparency


def count(module: nn.Module) -> int:
    """Return the number of elements of all parameters of a module without its embeddings.

    The embeddings of a vocabulary may outweigh all other layers. A layer that shares the weight of
    an embedding counts as an embedding too.
    """
    embedded = {
        id(p)
        for part in module.modules()
        if isinstance(part, nn.Embedding)
        for p in part.parameters(recurse=False)
    }
    return sum(p.numel() for p in module.parameters() if id(p) not in embedded)


def features_in(module: nn.Module) -> int | None:
    """Return the number of features or channels that the first layer takes; ``None`` if unknown."""
    for leaf in leaves(module):
        for name in ("in_features", "in_channels", "nx", "input_size", "embed_dim"):
            if isinstance(size := getattr(leaf, name, None), int):
                return size
        return _normalised(leaf)
    return None


def features_out(module: nn.Module) -> int | None:
    """Return the number of features or channels of the last layer; ``None`` if unknown."""
    leaf = next(reversed(list(leaves(module))), None)
    for name in ("out_features", "out_channels", "nf", "embedding_dim", "embed_dim"):
        if isinstance(size := getattr(leaf, name, None), int):
            return size
    return None if leaf is None else _normalised(leaf)


def may_feed(module: nn.Module, following: nn.Module) -> bool:
    """Return whether the output of a module has the size of the input of the following one.

    Between a convolution and a linear layer maps may be flattened, or made from vectors. Then the
    number of features is a multiple of the number of channels. But a convolution of few channels
    reads images, and not the output of a linear layer.
    """
    gives, takes = features_out(module), features_in(following)
    if gives is None or takes is None:
        return False
    last, first = next(reversed(list(leaves(module)))), next(leaves(following))
    if hasattr(last, "out_channels") and hasattr(first, "in_features"):
        return takes % gives == 0
    if hasattr(last, "out_features") and hasattr(first, "in_channels"):
        return takes > _IMAGE and gives % takes == 0
    return gives == takes


def children_with_parameters(module: nn.Module) -> list[nn.Module]:
    """Return the children that have parameters."""
    return [child for child in module.children() if any(True for _ in child.parameters())]


def leaves(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that own parameters, in the order of their registration."""
    return (part for part in module.modules() if any(True for _ in part.parameters(recurse=False)))


def _normalised(leaf: nn.Module) -> int | None:
    """Return the number of features or channels of a norm, torch's or of another library."""
    if isinstance(leaf, nn.LayerNorm | nn.RMSNorm):
        return int(leaf.normalized_shape[-1])
    if isinstance(leaf, nn.GroupNorm):
        return leaf.num_channels
    if isinstance(size := getattr(leaf, "num_features", None), int):
        return size
    weight = getattr(leaf, "weight", None)
    return weight.numel() if isinstance(weight, nn.Parameter) and weight.dim() == 1 else None
