"""The layers of torchvision's detectors that output the classes."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.fcos import FCOSClassificationHead
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetClassificationHead
from torchvision.models.detection.ssd import SSDClassificationHead
from torchvision.models.detection.ssdlite import SSDLiteClassificationHead
from torchvision.models.segmentation.lraspp import LRASPPHead

# For each class the names of its layers and the attribute that holds the number of classes. Without
# an attribute the first layer has an output for each class.
_LAYERS: dict[type[nn.Module], tuple[tuple[str, ...], str | None]] = {
    FastRCNNPredictor: (("cls_score", "bbox_pred"), None),
    MaskRCNNPredictor: (("mask_fcn_logits",), None),
    LRASPPHead: (("low_classifier", "high_classifier"), None),
    RetinaNetClassificationHead: (("cls_logits",), "num_classes"),
    FCOSClassificationHead: (("cls_logits",), "num_classes"),
    SSDClassificationHead: (("module_list",), "num_columns"),
    SSDLiteClassificationHead: (("module_list",), "num_columns"),
}
_FOCAL = (RetinaNetClassificationHead, FCOSClassificationHead)
_PRIOR = 0.01  # torchvision's initial probability of each class, for the focal loss


class Predictor(NamedTuple):
    """A layer that outputs values for each class.

    Attributes:
        name: The layer's name in the model.
        classes: Number of classes. The layer has a multiple of outputs: for anchors, or for the
            sides of boxes.
        is_focal: Whether the layer's outputs go into the focal loss.
    """

    name: str
    classes: int
    is_focal: bool = False


def predictors_of(model: nn.Module) -> Iterator[Predictor]:
    """Yield the layers of torchvision's detectors, and of LRASPP, that output the classes."""
    for name, module in model.named_modules():
        keys, attribute = _LAYERS.get(type(module), ((), None))
        for key in keys:
            first: Any = getattr(module, keys[0])
            classes = getattr(module, attribute) if attribute else first.weight.shape[0]
            part = module.get_submodule(key)
            maps = part.named_children() if isinstance(part, nn.ModuleList) else [("", part)]
            for own, block in maps:
                last = list(block.named_modules())[-1][0]
                full = ".".join(filter(None, (name, key, own, last)))
                yield Predictor(full, classes, isinstance(module, _FOCAL))


def init_focal(layer: Any) -> None:
    """Initialise a layer as torchvision does before the focal loss: all classes are improbable."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.constant_(layer.bias, -math.log((1 - _PRIOR) / _PRIOR))
