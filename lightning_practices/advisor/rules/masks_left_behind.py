"""Images that are flipped while their masks are not."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_practices.advisor._entries import targets_of
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._samples import entry_of

_SAMPLES, _READINGS = 4, 6
_NEARER = 0.5  # times as near to the flipped image as to the image


@rule(
    "LP343", "error",
    practice="A mask is flipped with its image",
    measures="readings of a training sample: images that resemble each other flipped, under equal"
    " masks",
    healthy="none",
    source="torchvision, transforms v2: images and masks are transformed jointly in one call",
)  # fmt: skip
def masks_left_behind(seen: Observation) -> Iterator[Evidence]:
    samples = seen.train.samples
    found = [entry.source for loss, entry in targets_of(seen) if len(loss.target.shape) > 2]
    sources = [source for source in found if source is not None]
    if samples is None or not sources or not samples.keeps_structure:
        return
    for place in samples.spread(_SAMPLES).tolist():
        read = samples.read([place] * _READINGS)
        masks = [entry_of(one, sources[0]) for one in read]
        if not all(isinstance(mask, Tensor) and mask.dim() > 1 for mask in masks):
            return
        for other in range(1, len(read)):
            pairs = zip(tree_leaves(read[0]), tree_leaves(read[other]), strict=False)
            if any(_are_flipped(a, b, masks[0], masks[other]) for a, b in pairs):
                yield Evidence(
                    f"two readings of a training sample have images that are flipped against each"
                    f" other, and the same mask, {sources[0]}: most masks don't fit their images",
                    "one call of transforms v2 for both: image, mask = transform(image,"
                    " tv_tensors.Mask(mask))",
                )
                return


def _are_flipped(a: object, b: object, mask: Tensor, other: Tensor) -> bool:
    """Return whether ``b`` is ``a`` flipped, more or less, under a mask that stays."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or not torch.equal(mask, other):
        return False
    if a is mask or a.dim() < 2 or a.shape != b.shape or a.shape[-2:] != mask.shape[-2:]:
        return False
    a, b = a.float(), b.float()
    return any(
        (a.flip(side) - b).norm() < _NEARER * (a - b).norm()
        and not torch.equal(mask.flip(side), mask)
        for side in (-1, -2)
    )
