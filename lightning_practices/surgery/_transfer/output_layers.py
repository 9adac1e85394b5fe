"""Layers that output the classes: their sizes, and new ones in their place."""

from typing import Any, get_args

from torch import nn

Output = (
    nn.Linear
    | nn.Conv1d
    | nn.Conv2d
    | nn.Conv3d
    | nn.ConvTranspose1d
    | nn.ConvTranspose2d
    | nn.ConvTranspose3d
)
_CLASSES: tuple[type[Output], ...] = get_args(Output)


def class_of(layer: nn.Module) -> type[Output] | None:
    """Return torch's class of a layer that :func:`new_layer` can make anew, or ``None``."""
    found = (cls for cls in _CLASSES if isinstance(layer, cls))
    return next((cls for cls in found if type(layer).forward is cls.forward), None)


def inputs_of(layer: Output) -> int:
    """Return the number of input features or input channels of a layer."""
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def outputs_of(layer: Output) -> int:
    """Return the number of output features or output channels of a layer."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def new_layer(old: Output, inputs: int, outputs: int) -> Output:
    """Return a new layer like ``old``, with the given numbers of inputs and outputs.

    Raises:
        ValueError: If the groups of a convolution don't divide ``outputs``.
    """
    options: dict[str, Any] = {
        "bias": old.bias is not None, "device": old.weight.device, "dtype": old.weight.dtype
    }  # fmt: skip
    if isinstance(old, nn.Linear):
        return nn.Linear(inputs, outputs, **options)
    if outputs % old.groups:
        raise ValueError(
            f"the head is a {type(old).__name__} of {old.groups} groups, so that its outputs have"
            f" to be a multiple of {old.groups}, but got {outputs}: replace it by assignment"
        )
    for name in ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"):
        options[name] = getattr(old, name)
    if isinstance(old, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        options["output_padding"] = old.output_padding
    cls: Any = class_of(old)
    layer: Output = cls(inputs, outputs, **options)
    return layer


def swap(
    model: nn.Module, old: Output, new: Output, classes: tuple[int, int] | None = None
) -> None:
    """Replace ``old`` by ``new`` in all of ``model``, and update attributes that hold its sizes.

    Args:
        model: The model.
        old: The layer to replace.
        new: The layer in its place.
        classes: The numbers of classes before and after. Default: the layers' outputs.
    """
    new.train(model.training)
    outputs = classes or (outputs_of(old), outputs_of(new))
    inputs = inputs_of(old), inputs_of(new)
    sizes = {
        **dict.fromkeys(("num_classes", "num_labels", "num_columns", "out_channels"), outputs),
        **dict.fromkeys(("num_features", "head_hidden_size"), inputs),
    }
    for module in list(model.modules()):
        if all(part is not old for part in module.modules()):
            continue
        for name, (before, after) in sizes.items():
            if module is not old and vars(module).get(name) == before:
                setattr(module, name, after)
        for name, child in list(module._modules.items()):
            if child is old:
                setattr(module, name, new)
