"""Entries of a list of layers that are one and the same layer."""

from collections.abc import Iterator
from itertools import pairwise

from torch import nn

from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_MOST = 0.5  # share of an entry's weights that another entry holds


@rule(
    "LP561", "hint",
    practice="Each entry of a list of layers has weights of its own",
    measures="modules with matrices, or with a batch norm's statistics, that hold half of the"
    " weights of two entries of one list",
    healthy="none, but where layers share weights on purpose, as in ALBERT; activations, dropout"
    " and pooling may be shared",
    source="torch.nn.TransformerEncoder copies its layer by deepcopy; questions on forums about"
    " nn.ModuleList([layer] * n), whose number of parameters doesn't grow with n",
)  # fmt: skip
def repeated_layers(seen: Observation) -> Iterator[Evidence]:
    for name, part in seen.modules.items():
        if not isinstance(part, _LISTS):
            continue
        entries = dict(part._modules)  # named_children leaves repeated ones out
        held = {key: _weights(entry) for key, entry in entries.items() if entry is not None}
        holders: dict[int, list[str]] = {}
        for key, sizes in held.items():
            for layer in sizes:
                holders.setdefault(layer, []).append(key)
        pairs = {pair for keys in holders.values() for pair in pairwise(keys)}
        same = {key for a, b in pairs if _shared(held[a], held[b]) >= _MOST for key in (a, b)}
        if not same:
            continue
        places = [".".join(filter(None, [name, key])) for key in held if key in same]
        is_one = len({id(entries[key]) for key in same}) == 1
        yield Evidence(
            f"{len(same)} entries of {name or 'the module'} ({', '.join(places)})"
            f" {'are one module' if is_one else 'hold the same modules'}: they share their weights",
            "a new layer for each entry, such as nn.ModuleList(make_layer() for _ in range(n)), or"
            " copy.deepcopy(layer), unless the weights are shared on purpose",
            tuple(dict.fromkeys(filter(None, [name, places[0]]))),
            {"entries": len(same)},
        )


def _weights(entry: nn.Module) -> dict[int, int]:
    """Return the number of weights that each layer within a module holds itself, by its ``id``."""
    found = {}
    for part in entry.modules():
        own = [p for p in part.parameters(recurse=False) if p.requires_grad]
        if any(p.dim() > 1 for p in own) or getattr(part, "running_mean", None) is not None:
            found[id(part)] = sum(p.numel() for p in own)
    return found


def _shared(first: dict[int, int], second: dict[int, int]) -> float:
    common = sum(size for key, size in first.items() if key in second)
    return common / max(min(sum(first.values()), sum(second.values())), 1)
