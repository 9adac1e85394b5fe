"""Find the blocks of a network, by default or by the user's names."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.nn.parameter import UninitializedParameter, is_lazy

from lightning_practices._arguments import check_blocks_by, check_pattern, shown
from lightning_practices._names import check_module, module_name, plain_name
from lightning_practices.surgery._blocks.block import Block
from lightning_practices.surgery._blocks.division import Division, divide
from lightning_practices.surgery._blocks.libraries import auxiliary_in
from lightning_practices.surgery._blocks.modules import modules_by_block
from lightning_practices.surgery._blocks.names import is_within, unknown
from lightning_practices.surgery._blocks.order import first_uses
from lightning_practices.surgery._blocks.table import Blocks

REST, WHOLE = "rest", "model"  # names of the block given by "" and of a block of the whole model
_SHOWN = 5  # the most names in an error message


def blocks(
    model: nn.Module,
    by: str | Sequence[str | Sequence[str]] | None = None,
    *,
    example: Any = None,
) -> Blocks:
    r"""Return the blocks of ``model`` by depth, the head first.

    ::

        print(blocks(model))                        # a table of depths, names and parameters
        freeze(model, blocks(model)[3:])            # all but the head and the two blocks below it
        blocks(model, example=batch)                # in the order in which layers run on a batch
        blocks(model, r"layer\d\.\d|conv1|bn1|fc")  # by a regular expression
        blocks(model, ["fc", "layer4", ""])         # by names

    Each parameter is in exactly one block. A parameter that several modules share is in that one of
    their blocks that is nearest to the head. Without ``by`` the blocks are

    - in a timm model, the groups of its ``group_matcher``;
    - in a torchvision model, its residual blocks, encoder layers, dense layers and so on. The
      predictors of a detector are its head;
    - in a transformers model, the layers of its backbone (``base_model_prefix``), those of the
      encoder below those of the decoder. Children outside of the backbone are above it. Embeddings
      of tokens are one block, the deepest;
    - in an ``nn.Sequential`` or ``nn.ModuleList``, its elements, including those of nested lists;
    - in any other module, its children in the order of their registration. A child of one of the
      kinds above is divided in the same way, and so is a child that mostly consists of lists of
      layers of one class, such as an ``nn.TransformerEncoder`` or the trunk of your own network.
      Embeddings don't count there, nor do stages of different widths, which are divided in turn. A
      module with a single child, such as a ``LightningModule`` around a network, is skipped: the
      blocks are those of the child. Several heads side by side are one block.

    A module that only scales and shifts (norm, layer scale, ``PReLU``) is in the block of the layer
    before it. If it comes first, it is in the block of the layer after it. Parameters that a module
    itself owns, such as position embeddings, are in the first block of this module. Auxiliary
    classifiers, as those of Inception and UPerNet, are in the head. A module without parameters is
    in the block after it, or if it has buffers, in the block before it. Layers that share their
    parameters are one block, and the table says so. If layers don't run in the order of their
    registration, give ``example``. If they run in parallel, give ``by``.

    Args:
        model: The network.
        by: The blocks, either as a list or as a regular expression. In a list the head comes first,
            and each block is a name of a module or parameter, or a list of names. A name takes all
            parameters below it, except those that a longer name takes; ``""`` takes the rest. A
            regular expression is matched from the start of parameters' names. A block's name is the
            first group, or the whole match if there is no group. These blocks are in the order of
            the default blocks of their first parameters.
        example: A batch for ``model``, on its device. The model runs on it in eval mode and without
            gradients, and the blocks are in the order in which the model first uses them. A tuple
            holds several arguments, a mapping holds arguments by name.

    Returns:
        The blocks, at depths 0, 1, 2, ...

    Raises:
        TypeError: If ``model`` is not a module, or ``by`` neither a string nor a list of names.
        ValueError: If the model has no parameters, or lazy parameters. If a child that is not the
            last seems to be the head, and neither a list ``by`` nor ``example`` is given. If the
            model doesn't run on ``example``. If a name or the expression matches nothing. If a
            parameter is in no block, or a block has no parameters. If ``example`` is given with a
            list, which holds the order already.

    Example:
        >>> import torchvision
        >>> from lightning_practices.surgery import blocks
        >>> model = torchvision.models.resnet18()
        >>> [block.name for block in blocks(model)[:3]]
        ['fc', 'layer4.1', 'layer4.0']
        >>> [block.name for block in blocks(model, ["fc", "layer4", ""])]
        ['fc', 'layer4', 'rest']
    """
    check_module(model)
    if by is not None:
        check_blocks_by("by", by)
    _check_parameters(model)
    if by is not None and not isinstance(by, str):
        if example is not None:
            raise ValueError(f"by={shown(by)} holds the order of the blocks: leave out example")
        return _blocks(model, _by_names(model, by))
    division = divide(model, None if example is None else first_uses(model, example))
    if division.doubts:
        found = _blocks(model, _by_layers(division))
        raise ValueError(
            f"the order of the blocks of {type(model).__name__} is not clear:"
            f" {'; '.join(division.doubts)}. Give a batch as example=, or the names of the blocks"
            f" by=[...], the head first. In the order of registration they are\n{found}"
        )
    if isinstance(by, str):
        return _blocks(model, _by_names(model, by, _by_layers(division).of))
    return _blocks(model, _by_layers(division), division.notes)


def _blocks(model: nn.Module, assigned: "_Assigned", notes: Sequence[str] = ()) -> Blocks:
    inside = modules_by_block(model, assigned.of, assigned.place)
    parameters: list[dict[str, int]] = [{} for _ in assigned.names]
    for name, p in model.named_parameters():
        parameters[assigned.of[id(p)]][name] = p.numel()
    found: list[Block] = []
    for index in reversed(range(len(parameters))):
        modules, sizes = tuple(inside[index]), parameters[index]
        label = assigned.names[index] or _label(model, modules, sizes, is_head=not found)
        found.append(Block(len(found), label, modules, tuple(sizes)))
    return Blocks(found, [sum(sizes.values()) for sizes in reversed(parameters)], notes)


class _Assigned(NamedTuple):
    """The block of each parameter, as an index that counts from the input.

    Attributes:
        of: Index of the block, by the parameter's id.
        names: Name of each block; ``""`` if the user gave no name.
        place: Function from a module's or parameter's name to the index of its block, or ``None``
            if the name doesn't determine it.
    """

    of: dict[int, int]
    names: list[str]
    place: Callable[[str], int | None]


def _by_layers(division: Division) -> _Assigned:
    last = {id(p): index for index, layer in enumerate(division.layers) for p in layer}
    return _filled(_Assigned(last, [""] * len(division.layers), lambda name: None))


def _filled(assigned: _Assigned) -> _Assigned:
    """Remove blocks whose parameters all belong to later blocks too."""
    used = sorted(set(assigned.of.values()))
    of = {key: used.index(index) for key, index in assigned.of.items()}
    names = [assigned.names[index] for index in used]

    def place(name: str) -> int | None:
        index = assigned.place(name)
        return used.index(index) if index in used else None

    return _Assigned(of, names, place)


def _by_names(
    model: nn.Module,
    by: str | Sequence[str | Sequence[str]],
    order: Mapping[int, int] | None = None,
) -> _Assigned:
    names = {id(p): plain_name(name) for name, p in model.named_parameters()}
    places = [(plain_name(name), p) for name, p in model.named_parameters(remove_duplicate=False)]
    if isinstance(by, str):
        if order is not None:
            places.sort(key=lambda place: order[id(place[1])])
        assigned = _by_pattern(by, [name for name, _ in places])
    else:
        assigned = _by_list(model, by)
    for name, p in places:
        if (index := assigned.place(name)) is not None:
            assigned.of[id(p)] = max(index, assigned.of.get(id(p), 0))
    if outside := [name for key, name in names.items() if key not in assigned.of]:
        raise ValueError(
            f"by={shown(by)} leaves out {_some(outside)}: name these too, or add '' for all"
            " the rest"
        )
    if isinstance(by, str):
        return _filled(assigned)
    filled = set(assigned.of.values())
    if empty := [name for index, name in enumerate(assigned.names) if index not in filled]:
        raise ValueError(
            f"{_some(empty)} of {shown(by)} would be blocks without parameters: they have none, or"
            " other names take all of them"
        )
    return assigned


def _by_pattern(pattern: str, names: Iterable[str]) -> _Assigned:
    compiled = check_pattern("by", pattern)

    def key_of(name: str) -> str | None:
        match = compiled.match(name)
        if match is None:
            return None
        key: str | None = match[1] if compiled.groups else None
        return match[0] if key is None else key

    keys = list(dict.fromkeys(key for name in names if (key := key_of(name)) is not None))
    if not keys:
        raise ValueError(
            f"by={shown(pattern)} matches no parameter's name; there are: {_some(names)}"
        )

    def place(name: str) -> int | None:
        key = key_of(name)
        return keys.index(key) if key in keys else None

    return _Assigned({}, [key or REST for key in keys], place)


def _by_list(model: nn.Module, by: Sequence[str | Sequence[str]]) -> _Assigned:
    entries = [[entry] if isinstance(entry, str) else entry for entry in reversed(by)]
    index_of: dict[str, int] = {}
    there = [module_name(name) for name, _ in model.named_modules(remove_duplicate=False)]
    there += [plain_name(name) for name, _ in model.named_parameters(remove_duplicate=False)]
    for index, entry in enumerate(entries):
        for name in entry:
            if name not in there:
                raise ValueError(unknown("by", name, there))
            if name in index_of:
                raise ValueError(f"{shown(name)} is in by={shown(by)} twice")
            index_of[name] = index

    def place(name: str) -> int | None:
        fitting = [prefix for prefix in index_of if is_within(name, prefix)]
        return index_of[max(fitting, key=len)] if fitting else None

    return _Assigned({}, [entry[0] or REST for entry in entries], place)


def _label(
    model: nn.Module, modules: Sequence[str], sizes: dict[str, int], *, is_head: bool
) -> str:
    """Return a block's name: its largest module, the head's last module, or else a parameter."""
    within = {
        name: sum(p.numel() for p in model.get_submodule(name).parameters()) for name in modules
    }
    filled = [name for name, size in within.items() if size]
    second = auxiliary_in(model) if is_head else []
    filled = [name for name in filled if name not in second] or filled
    if filled:
        chosen = filled[-1] if is_head else max(filled, key=lambda name: within[name])
        return module_name(chosen) or WHOLE
    return plain_name(max(sizes, key=lambda name: sizes[name]))


def _check_parameters(model: nn.Module) -> None:
    parameters = dict(model.named_parameters())
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no parameters")
    for name, p in parameters.items():
        if is_lazy(p):
            raise ValueError(
                f"{name} of {type(model).__name__} has no shape yet"
                f" ({UninitializedParameter.__name__}): run a batch through the model first"
            )


def _some(names: Iterable[str]) -> str:
    known = list(names)
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return ", ".join(map(repr, known[:_SHOWN])) + more
