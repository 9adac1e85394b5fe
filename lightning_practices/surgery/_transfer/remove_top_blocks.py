"""Remove the hidden blocks next to the head."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_practices._arguments import check_whole
from lightning_practices.surgery._blocks import (
    Block,
    blocks,
    in_evaluation,
    is_list,
    is_scale,
    run,
)
from lightning_practices.surgery._transfer.heads import head_of, output_layers
from lightning_practices.surgery._transfer.output_layers import (
    Output,
    inputs_of,
    new_layer,
    outputs_of,
    swap,
)


def remove_top_blocks(model: nn.Module, n: int, example: Any) -> tuple[str, ...]:
    """Remove the top ``n`` hidden blocks in place. The block below them then feeds the head.

    Hidden blocks are the blocks of :func:`blocks` below the head. Each block to remove has to be an
    element of an ``nn.Sequential`` or ``nn.ModuleList``, like the residual blocks of ResNets and
    the layers of transformers. Later elements of the list move up, which changes their keys in
    ``state_dict``. A norm that belongs to the block but is outside of the list, such as a
    transformer's last norm, stays. If the number of features into the output layer changes, as when
    a whole stage of a ResNet is removed, the output layer is replaced by a new one with that many
    inputs. After an error the model is unchanged.

    Source: "Transfer learning", lecture S2: with little data drop the top hidden layers, one after
    another.

    Args:
        model: The model to change, before an optimizer is made or a strategy wraps it.
        n: Number of blocks to remove, at least 1. At least one hidden block must remain.
        example: A batch for ``model``, on its device. The model runs on it before and after the
            change, in eval mode and without gradients. A tuple holds several arguments, a mapping
            holds arguments by name.

    Returns:
        The names of the removed blocks, starting at the top.

    Raises:
        TypeError: If ``model`` is not a module.
        ValueError: If ``n`` is out of range. If a block is not an element of a list. If the model
            doesn't run without the blocks, or its output has another shape. Also as for
            :func:`replace_head`.

    Example:
        >>> from lightning_practices.surgery import remove_top_blocks
        >>> widths = [(8, 16), (16, 32), (32, 64)]
        >>> hidden = [nn.Sequential(nn.Linear(i, o), nn.ReLU()) for i, o in widths]
        >>> model = nn.Sequential(*hidden, nn.Linear(64, 2))
        >>> remove_top_blocks(model, 1, torch.randn(4, 8))
        ('2',)
        >>> model[-1]
        Linear(in_features=32, out_features=2, bias=True)
    """
    found = blocks(model, example=example)
    n = check_whole("n", n, None)
    if not 1 <= n <= len(found) - 2:
        raise ValueError(
            f"n has to be an integer from 1 to {max(len(found) - 2, 0)}, since"
            f" {type(model).__name__} has {len(found)} blocks and the head and one below it stay,"
            f" but got {n!r}"
        )
    dropped = found[1 : n + 1]
    places = [place for block in dropped for place in _places(model, block)]
    main: Any = model.get_submodule(output_layers(model, head_of(model, example))[-1].name)
    with _kept_on_error(model), in_evaluation(model), torch.no_grad():
        expected = _shape(run(model, example))
        _remove(places)
        try:
            features = _features_into(model, main, example)
            if features != inputs_of(main):
                swap(model, main, new_layer(main, features, outputs_of(main)))
            shape = _shape(run(model, example))
        except Exception as error:
            names = ", ".join(repr(block.name) for block in dropped)
            raise ValueError(
                f"without {names} {type(model).__name__} doesn't run: {error}"
            ) from error
        if shape != expected:
            raise ValueError(f"the output would be of shape {shape}, and not {expected} as before")
    return tuple(block.name for block in dropped)


def _places(model: nn.Module, block: Block) -> Iterator[tuple[nn.Module, str]]:
    """Yield for each element to remove its list and its key in the list."""
    for name in block.modules:
        parent_name, _, key = name.rpartition(".")
        parent, module = model.get_submodule(parent_name), model.get_submodule(name)
        if is_list(parent):
            yield parent, key
        elif is_list(module):
            for child, _ in module.named_children():
                yield module, child
        elif not is_scale(module):
            raise ValueError(
                f"the block {block.name!r} can't be dropped: {name!r} is not an element of an"
                f" nn.Sequential or nn.ModuleList but a child of {type(parent).__name__}, whose"
                " forward calls it by name"
            )


def _remove(places: list[tuple[nn.Module, str]]) -> None:
    lists = {parent: [key for p, key in places if p is parent] for parent, _ in places}
    for parent, keys in lists.items():
        kept = {key: child for key, child in parent._modules.items() if key not in keys}
        if all(key.isdigit() for key in parent._modules):
            kept = {str(i): child for i, child in enumerate(kept.values())}
        parent._modules = kept


class _ReachedError(Exception):
    """Stops the forward pass as soon as the number of features into the head is known."""


def _features_into(model: nn.Module, layer: Output, example: Any) -> int:
    features: list[int] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        dimension = -1 if isinstance(layer, nn.Linear) else -len(layer.kernel_size) - 1
        features.append(inputs[0].shape[dimension])
        raise _ReachedError

    handle = layer.register_forward_pre_hook(look)
    try:
        run(model, example)
    except _ReachedError:
        return features[0]
    finally:
        handle.remove()
    raise ValueError("no output reaches the head")


@contextmanager
def _kept_on_error(model: nn.Module) -> Iterator[None]:
    """After an error, undo all changes of modules and their attributes."""
    saved = [(module, dict(vars(module)), dict(module._modules)) for module in model.modules()]
    try:
        yield
    except BaseException:
        for module, attributes, children in saved:
            module.__dict__.update(attributes)
            module._modules.clear()
            module._modules.update(children)
        raise


def _shape(output: Any) -> Any:
    if isinstance(output, Tensor):
        return tuple(output.shape)
    if isinstance(output, dict):
        return {key: _shape(value) for key, value in output.items()}
    if isinstance(output, list | tuple):
        return [_shape(value) for value in output]
    return type(output).__name__
