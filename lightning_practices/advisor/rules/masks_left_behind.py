"""Images that are flipped or turned otherwise than their masks."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from lightning_practices.advisor._entries import targets_of
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._samples import entry_of

_SAMPLES, _READINGS = 4, 8
_SECONDS = 0.4  # for all readings
_SIDE = 32  # pixels of what is compared of larger images
_NEARER = 0.5  # times as near to the image moved alone as to the image moved with its mask

_MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "as it was": lambda x: x,
    "flipped left to right": lambda x: x.flip(-1),
    "flipped upside down": lambda x: x.flip(-2),
    "turned by 180 degrees": lambda x: x.flip(-1, -2),
    "transposed": lambda x: x.transpose(-1, -2),
    "turned by 90 degrees": lambda x: x.rot90(1, (-2, -1)),
    "turned by 270 degrees": lambda x: x.rot90(-1, (-2, -1)),
    "flipped along the other diagonal": lambda x: x.rot90(2, (-2, -1)).transpose(-1, -2),
}


@rule(
    "LP343", "error",
    practice="A mask is flipped with its image",
    measures="readings of a training sample: images that resemble each other flipped or turned,"
    " under masks that stay or are moved otherwise",
    healthy="none",
    source="torchvision, transforms v2: images and masks are transformed jointly in one call",
)  # fmt: skip
def masks_left_behind(seen: Observation) -> Iterator[Evidence]:
    samples = seen.train.samples
    found = [entry.source for loss, entry in targets_of(seen) if len(loss.target.shape) > 2]
    sources = [source for source in found if source is not None]
    if samples is None or not sources or not samples.keeps_structure:
        return
    # In one reading, as each begins from the same seed: other samples get other random numbers.
    places = samples.spread(_SAMPLES).tolist()
    read = samples.read([place for place in places for _ in range(_READINGS)], _SECONDS)
    for start in range(0, len(read), _READINGS):
        for other in read[start + 1 : start + _READINGS]:
            moves = _moves_apart(read[start], other, sources[0])
            if moves is not None:
                yield Evidence(
                    f"of two readings of a training sample, the second has the image {moves[0]} and"
                    f" the mask, {sources[0]}, {moves[1]}: masks don't fit their images",
                    "one call of transforms v2 for both: image, mask = transform(image,"
                    " tv_tensors.Mask(mask))",
                )
                return


def _moves_apart(one: object, other: object, source: str) -> tuple[str, str] | None:
    """Return how an image and its mask have moved between two readings, if not alike."""
    mask, moved = entry_of(one, source), entry_of(other, source)
    if not (isinstance(mask, Tensor) and isinstance(moved, Tensor) and mask.dim() > 1):
        return None
    of_mask = {
        name: move
        for name, move in _MOVES.items()
        if (back := move(mask)).shape == moved.shape and torch.equal(back, moved)
    }
    for a, b in zip(tree_leaves(one), tree_leaves(other), strict=False):
        if a is mask or not of_mask or not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            continue
        if a.dim() > 1 and a.shape == b.shape and a.shape[-2:] == mask.shape[-2:]:
            name = _own_move(_small(a), _small(b), of_mask)
            if name is not None:
                return name, next(iter(of_mask))
    return None


def _own_move(a: Tensor, b: Tensor, of_mask: dict[str, Callable[[Tensor], Tensor]]) -> str | None:
    """Return the move that brings ``a`` to ``b``, if none of those of the mask does nearly."""
    apart = {
        name: float((back - b).norm())
        for name, move in _MOVES.items()
        if (back := move(a)).shape == b.shape
    }
    nearest = min(apart, key=lambda name: apart[name])
    with_mask = min(apart[name] for name in of_mask)
    return nearest if apart[nearest] < _NEARER * with_mask else None


def _small(x: Tensor) -> Tensor:
    """Return an image of a bounded size, which moves as the image does."""
    x = x.float().reshape(-1, *x.shape[-2:])
    return x if max(x.shape[-2:]) <= _SIDE else functional.adaptive_avg_pool2d(x, _SIDE)
