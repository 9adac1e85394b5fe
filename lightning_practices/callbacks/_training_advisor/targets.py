"""Whether the target of a loss comes from the batch, or is made in the step.

A target that a network, a random generator or an environment has made is no data: a loss of it may
rise, or stay at that of its mean, while training goes well.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

_MOST = 2048  # elements that are compared
_FEWEST = 8
_REPEATED = 0.5  # share of the elements that equal another one, as classes do


class Given:
    """The tensors of a batch.

    Args:
        batch: The batch.
    """

    def __init__(self, batch: Any) -> None:
        leaves = [x for x in tree_leaves(batch) if isinstance(x, Tensor) and x.dim() and x.numel()]
        self._leaves = [x.detach() for x in leaves if not x.is_sparse and not x.is_complex()]

    def has(self, target: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return 1 if a target that varies is a function of the batch, element by element, else 0.

        It is if it shares memory with a tensor of the batch, or if equal elements there have equal
        targets, and many are equal, or targets grow or fall with them. A tensor may have one
        element for each row of the target, as classes have for one-hot vectors, or be cut at its
        start or end, as the next tokens of a text are.

        Args:
            target: The target.
            kept: Which elements count; by default all.
        """
        target = target.detach()
        kept = torch.ones_like(target, dtype=torch.bool) if kept is None else kept
        varies = (target != target[:1]).any()
        found = torch.zeros((), dtype=torch.bool, device=target.device)
        for leaf in self._leaves:
            if leaf.device != target.device:
                continue
            if leaf.untyped_storage().data_ptr() == target.untyped_storage().data_ptr():
                return varies.float()
            for source in _sources(leaf, target.numel()):
                found = found | _is_function(source, target, kept)
        return (found & varies).float()


def _sources(leaf: Tensor, number: int) -> Iterator[Tensor]:
    """Yield the parts of a tensor that may have made a target of ``number`` elements, flat."""
    if leaf.numel() >= _FEWEST and number % leaf.numel() == 0:
        yield leaf.reshape(-1)
    elif leaf.dim() > 1 and number % len(leaf) == 0 and number >= _FEWEST:
        length, rows = number // len(leaf), leaf.reshape(len(leaf), -1)
        if length < rows.shape[1]:
            yield rows[:, :length].reshape(-1)
            yield rows[:, -length:].reshape(-1)


def _is_function(source: Tensor, target: Tensor, kept: Tensor) -> Tensor:
    rows, used = target.reshape(len(source), -1), kept.reshape(len(source), -1).all(1)
    spacing = -(-len(source) // _MOST)
    source, rows, used = source[::spacing].float(), rows[::spacing].float(), used[::spacing]
    order = source.masked_fill(~used, torch.inf).argsort(stable=True)
    source, rows, used = source[order], rows[order], used[order]
    pair = used[1:] & used[:-1]
    same = (source[1:] == source[:-1]) & pair
    equal = (rows[1:] == rows[:-1]).all(1)
    is_function = (equal | ~same).all()
    repeats = same.sum() >= _REPEATED * pair.sum().clamp_min(_FEWEST)
    change = (rows[1:] - rows[:-1]).masked_fill(~pair[:, None], 0)
    is_monotone = ((change >= 0).all() | (change <= 0).all()) & (rows.shape[1] == 1)
    return is_function & (repeats | (is_monotone & (pair.sum() >= _FEWEST - 1)))
