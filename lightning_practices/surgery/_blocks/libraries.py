"""What libraries declare about their networks: the order of layers, the backbone, the groups."""

import sys
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

import torchvision
from torch import nn
from torchvision.models import detection, optical_flow, segmentation, video
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.densenet import _DenseBlock
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.ssd import SSD, SSDFeatureExtractorVGG
from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet
from torchvision.models.googlenet import InceptionAux as GoogLeNetAux
from torchvision.models.inception import InceptionAux
from torchvision.models.maxvit import MaxVitBlock
from torchvision.models.segmentation._utils import _SimpleSegmentationModel
from torchvision.models.vision_transformer import Encoder

Layer = list[nn.Parameter]

# Classes of torchvision: whole networks, sequences of layers within them, and auxiliary heads.
_NETWORKS: tuple[type[nn.Module], ...] = (
    GeneralizedRCNN,
    SSD,
    *(
        cls
        for package in (torchvision.models, detection, optical_flow, segmentation, video)
        for cls in vars(package).values()
        if isinstance(cls, type) and issubclass(cls, nn.Module)
    ),
)
_SEQUENCES = (
    _DenseBlock,
    MaxVitBlock,
    Encoder,
    IntermediateLayerGetter,
    BackboneWithFPN,
    RoIHeads,
    SSDFeatureExtractorVGG,
    SSDLiteFeatureExtractorMobileNet,
)
_AUXILIARY = (GoogLeNetAux, InceptionAux)


class Library(Enum):
    """The library whose conventions hold within a network."""

    TORCHVISION = auto()
    TIMM = auto()
    TRANSFORMERS = auto()


def library_of(module: nn.Module) -> Library | None:
    """Return the library whose network, or sequence of layers, a module is."""
    if isinstance(module, (*_NETWORKS, *_SEQUENCES)):
        return Library.TORCHVISION
    # Check the class: `__getattr__` of a compiled module returns attributes of the inner module.
    if hasattr(type(module), "group_matcher") and "timm.models" in sys.modules:
        return Library.TIMM
    transformers: Any = sys.modules.get("transformers.modeling_utils")
    if transformers is not None and isinstance(module, transformers.PreTrainedModel):
        return Library.TRANSFORMERS
    return None


def groups_of_timm(model: Any) -> list[Layer]:
    """Return the groups of a timm model's ``group_matcher``."""
    timm: Any = sys.modules["timm.models"]
    matcher = model.group_matcher(coarse=False)
    grouped = timm.group_parameters(model, matcher, return_values=True)
    return [grouped[place] for place in sorted(grouped)]


def is_auxiliary(parent: nn.Module, child: nn.Module) -> bool:
    """Return whether a child is an auxiliary classifier, which only training uses."""
    if isinstance(parent, _SimpleSegmentationModel) and child is parent.aux_classifier:
        return True
    of_transformers = library_of(parent) is Library.TRANSFORMERS
    is_second = of_transformers and child is parent._modules.get("auxiliary_head")
    return isinstance(child, _AUXILIARY) or is_second


def auxiliary_in(model: nn.Module) -> list[str]:
    """Return the names of all auxiliary classifiers of a model."""
    return [
        f"{name}.{key}" if name else key
        for name, module in model.named_modules()
        for key, child in module.named_children()
        if is_auxiliary(module, child)
    ]


def backbone_of(model: nn.Module) -> nn.Module | None:
    """Return the backbone of a transformers model; ``None`` if the model declares none."""
    prefix = getattr(model, "base_model_prefix", None)
    backbone = getattr(model, prefix, None) if prefix else None
    return backbone if isinstance(backbone, nn.Module) and backbone is not model else None


def is_embedding(name: str, module: nn.Module, *, is_scale: bool) -> bool:
    """Return whether a child of a transformers model embeds its input, or is a norm of that."""
    if isinstance(module, nn.Embedding) or "Embedding" in type(module).__name__:
        return True
    return is_scale and "emb" in name


def units_of(
    module: nn.Module, children: Sequence[nn.Module], library: Library | None
) -> list[tuple[nn.Module, ...]]:
    """Return the children in units: those of one unit are one layer, or run side by side.

    Several ``nn.ModuleList`` of one length in one module of transformers run in turns, as
    attentions and feed-forward layers do in XLM. The predictors of torchvision's detectors run side
    by side.
    """
    if isinstance(module, RoIHeads):
        heads = module.box_head, module.mask_head, module.keypoint_head
        predictors = module.box_predictor, module.mask_predictor, module.keypoint_predictor
        rows = [tuple(part for part in row if part in children) for row in (heads, predictors)]
        return [row for row in rows if row]
    lists = [child for child in children if isinstance(child, nn.ModuleList) and len(child) > 1]
    lengths = {len(each) for each in lists}
    if library is not Library.TRANSFORMERS or len(lists) < 2 or len(lengths) > 1:
        return [(child,) for child in children]
    before = list(children[: children.index(lists[0])])
    after = [child for child in children if child not in before and child not in lists]
    turns: list[tuple[nn.Module, ...]] = []
    for turn in zip(*lists, strict=True):
        has_lists = any(isinstance(part, nn.ModuleList) for part in turn)
        turns += [(part,) for part in turn] if has_lists else [turn]
    return [*((child,) for child in before), *turns, *((child,) for child in after)]


def notes_of(module: nn.Module) -> list[str]:
    """Return what a transformers model declares of layers that share their parameters."""
    config = getattr(module, "config", None)
    groups, layers = (
        getattr(config, name, None) for name in ("num_hidden_groups", "num_hidden_layers")
    )
    if not isinstance(groups, int) or not isinstance(layers, int) or groups >= layers:
        return []
    return [
        f"{type(module).__name__} runs {groups} {'layer' if groups == 1 else 'layers'} of"
        f" parameters {layers} times in all: layers that share parameters are one block"
    ]
