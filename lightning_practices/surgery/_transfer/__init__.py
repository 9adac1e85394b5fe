"""Changes to a pretrained model for transfer learning.

- ``freeze``: freeze parts of a model, and unfreeze them.
- ``input_transform``: the transform of images that pretrained weights require.
- ``remove_top_blocks``: remove the hidden blocks next to the head.
- ``replace_head``: replace the layer that outputs the classes; make a fixed feature extractor.
- ``heads``: find the layers of a head that output the classes.
- ``detectors``: the layers of torchvision's detectors that output the classes.
- ``declared``: new heads in the ways of timm and transformers.
- ``output_layers``: the sizes of layers that output the classes, and new ones in their place.
- ``share_layers``: share layers between two models.
"""

from lightning_practices.surgery._transfer.freeze import freeze, unfreeze
from lightning_practices.surgery._transfer.input_transform import input_transform
from lightning_practices.surgery._transfer.remove_top_blocks import remove_top_blocks
from lightning_practices.surgery._transfer.replace_head import feature_extractor, replace_head
from lightning_practices.surgery._transfer.share_layers import share_layers

__all__ = [
    "feature_extractor",
    "freeze",
    "input_transform",
    "remove_top_blocks",
    "replace_head",
    "share_layers",
    "unfreeze",
]
