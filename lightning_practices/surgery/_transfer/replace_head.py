"""Replace the layer that outputs the classes."""

from typing import Any

from torch import nn

from lightning_practices._arguments import check_flag, check_whole
from lightning_practices.surgery._blocks import Library, blocks
from lightning_practices.surgery._transfer.declared import (
    check_labels,
    check_task,
    reset_timm,
    set_labels,
)
from lightning_practices.surgery._transfer.detectors import init_focal
from lightning_practices.surgery._transfer.freeze import freeze
from lightning_practices.surgery._transfer.heads import head_of, network_of, output_layers
from lightning_practices.surgery._transfer.output_layers import (
    inputs_of,
    new_layer,
    outputs_of,
    swap,
)


def replace_head(model: nn.Module, num_classes: int, *, example: Any = None) -> tuple[str, ...]:
    """Replace the layer of ``model`` that outputs the classes by a new layer, in place.

    The layer is the last layer of the head, see :func:`blocks`: an ``nn.Linear``, or a convolution
    of one to three dimensions, transposed or not. The new layer has the same class, number of
    inputs, kernel, stride, padding, dtype and device, a bias if the old layer has one, and torch's
    default initialisation. Call this function before the optimizer is made, and before a strategy
    shards or wraps the model. Libraries' own models:

    - timm: the model's method ``reset_classifier`` does the work, also for a model without a head.
    - transformers: all layers that output the labels are replaced, and ``config.num_labels``,
      ``id2label`` and ``label2id`` are set. Other outputs, such as those of a vocabulary, of spans
      or of boxes, are refused.
    - torchvision: the auxiliary classifiers of GoogLeNet, Inception and segmentation models are
      replaced too. So are all layers of a detector, and of LRASPP, that output values for each
      class. Detectors count the background as a class, as torchvision does.

    Sources: lectures S0 and S2.

    Args:
        model: The model to change.
        num_classes: Number of classes of the new layer, at least 1.
        example: A batch that shows which layer is last, see :func:`blocks`.

    Returns:
        The names of the new layers.

    Raises:
        TypeError: If ``model`` is not a module.
        ValueError: If ``num_classes`` is not a positive integer. If the last layer of the head is
            of another class, is parametrized or sharded, or shares a parameter with another layer.
            If the head has several outputs that are not known, or does not output the labels of a
            transformers model. Also as for :func:`blocks`. After an error the model is unchanged.

    Example:
        >>> import torchvision
        >>> from lightning_practices.surgery import replace_head
        >>> model = torchvision.models.resnet18()
        >>> replace_head(model, num_classes=10)
        ('fc',)
        >>> model.fc
        Linear(in_features=512, out_features=10, bias=True)
    """
    num_classes = check_whole("num_classes", num_classes, 1)
    head = head_of(model, example)
    of_transformers = network_of(Library.TRANSFORMERS, model, head)
    of_timm = network_of(Library.TIMM, model, head)
    if of_timm is not None:
        names = reset_timm(model, of_timm, num_classes)
    else:
        if of_transformers is not None:
            check_task(of_transformers)
        layers = output_layers(model, head)
        if of_transformers is not None:
            check_labels(of_transformers, layers)
        pairs = []
        for name, classes, is_focal in layers:
            old: Any = model.get_submodule(name)
            outputs = outputs_of(old) // classes * num_classes
            new = new_layer(old, inputs_of(old), outputs)
            if is_focal:
                init_focal(new)
            pairs.append((old, new, classes))
        for old, new, classes in pairs:
            swap(model, old, new, (classes, num_classes))
        names = tuple(each.name for each in layers)
    if of_transformers is not None:
        set_labels(of_transformers, num_classes)
    return names


def feature_extractor(
    model: nn.Module,
    num_classes: int | None = None,
    *,
    dropout: bool = False,
    example: Any = None,
) -> tuple[str, ...]:
    """Make ``model`` a fixed feature extractor with a new head, in place.

    :func:`freeze` freezes all blocks but the head, including batch norms, and :func:`replace_head`
    replaces the head. Only the head is trained. :func:`unfreeze` undoes the freezing.

    Sources: "Transfer learning", lectures S0 and S2: all pretrained layers are frozen, a new head
    is trained.

    Args:
        model: The model to change.
        num_classes: Number of outputs of the new head. Default: the head stays unchanged.
        dropout: Whether dropout stays on in the frozen blocks, see :func:`freeze`.
        example: A batch that shows which block is the head, see :func:`blocks`.

    Returns:
        The names of the trainable parameters.

    Raises:
        TypeError: If ``model`` is not a module.
        ValueError: If ``model`` is a single block. Also as for :func:`replace_head`.

    Example:
        >>> import torchvision
        >>> from lightning_practices.surgery import feature_extractor
        >>> model = torchvision.models.resnet18()
        >>> feature_extractor(model, num_classes=10)
        ('fc.weight', 'fc.bias')
        >>> sum(p.requires_grad for p in model.parameters()), model.bn1.training
        (2, False)
    """
    if num_classes is not None:
        num_classes = check_whole("num_classes", num_classes, 1)
    check_flag("dropout", dropout)
    found = blocks(model, example=example)
    if len(found) == 1:
        raise ValueError(
            f"{type(model).__name__} is one block, {found[0].name!r}, with nothing below the head:"
            " freeze by names, with surgery.freeze"
        )
    if num_classes is not None:
        replace_head(model, num_classes, example=example)
        found = blocks(model, example=example)
    freeze(model, found[1:], dropout=dropout)
    return tuple(name for name, p in model.named_parameters() if p.requires_grad)
