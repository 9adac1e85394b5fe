"""Augmentation of images by torchvision's transforms, sample by sample.

- ``augmentation.py``: the layer, for any training loop.
- ``names.py``: augmentations and presets by name.
- ``crop.py``: a crop to the image's own size.
- ``samples.py``: transforms of one sample, and of a batch with a draw for each sample.
- ``mixing.py``: MixUp and CutMix, and their soft targets.
- ``vectorized.py``: which transforms are computed for a whole batch at once.
- ``geometry.py``, ``color.py``, ``erasing.py``: these transforms.
- ``checks.py``: which images are refused.
- ``states.py``: the random states around a transform.
- ``loader.py``: a loader whose samples are augmented where they are loaded.
"""

from lightning_practices.data._augmentation.augmentation import (
    Augmentation,
    OneAugmentation,
    augmentation,
)
from lightning_practices.data._augmentation.loader import augmented_loader
from lightning_practices.data._augmentation.mixing import hard_targets
from lightning_practices.data._augmentation.names import AugmentationName

__all__ = [
    "Augmentation",
    "AugmentationName",
    "OneAugmentation",
    "augmentation",
    "augmented_loader",
    "hard_targets",
]
