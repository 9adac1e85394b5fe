"""The phases applied to a model: which parameters each phase trains, at which rates."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import nn

from lightning_practices._arguments import check_whole, shown
from lightning_practices._names import plain_name, some
from lightning_practices.callbacks._unfreezing.schedule import PATTERN, Entry, Phase
from lightning_practices.surgery import Block, Blocks, blocks

BlocksBy = str | Sequence[str | Sequence[str]]
"""How to divide a model into blocks, see :func:`~lightning_practices.surgery.blocks`."""

_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Share:
    """How a parameter is trained.

    Attributes:
        block: The block that the parameter is in.
        scale: The factor that multiplies the learning rate.
        is_default: Whether the factor is the decay by depth, and not a phase's ``lr_scale``.
        phase: The index of the first phase that trains it; ``None`` if no phase does.
    """

    block: Block
    scale: float
    is_default: bool
    phase: int | None


@dataclass(frozen=True)
class Plan:
    """The phases of a schedule, applied to a model.

    Attributes:
        phases: The phases of the schedule.
        blocks: The blocks of the model, the head first.
        trainable: For each phase the names of all parameters that it trains.
        shares: How each parameter is trained, by its name.
        names: The names of all parameters, in the order of the model.
        frozen_by_author: The names of the parameters that were frozen before the fit.
    """

    phases: tuple[Phase, ...]
    blocks: Blocks
    trainable: tuple[frozenset[str], ...]
    shares: Mapping[str, Share]
    names: tuple[str, ...]
    frozen_by_author: frozenset[str]


def unfreezing_schedule(
    model: nn.Module, by: BlocksBy | None = None, *, at_once: int = 2, epochs: int = 1
) -> list[dict[str, Any]]:
    """Return a schedule of progressive unfreezing: the head, then the blocks from the top down.

    ``ProgressiveUnfreezing("auto")`` follows this schedule, with ``epochs`` chosen from the length
    of the fit. To change the schedule, save it by :func:`write_schedule`, edit the file and give
    its path to :class:`ProgressiveUnfreezing`. If an epoch has few steps, phases of one epoch are
    nearly the same as training all blocks at once: give more ``epochs``.

    Source: "Transfer learning", lecture S2: the head alone first, then the top one or two layers.

    Args:
        model: The module to train.
        by: How to divide the model into blocks, see :func:`~lightning_practices.surgery.blocks`.
        at_once: How many blocks each phase after the first one unfreezes.
        epochs: The number of epochs of each phase but the last.

    Returns:
        A list of phases, in the form that :class:`ProgressiveUnfreezing` takes.

    Raises:
        ValueError: If the model is one block, or ``at_once`` or ``epochs`` is below 1.

    Example:
        >>> from lightning_practices.callbacks import unfreezing_schedule
        >>> model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4)))
        >>> for phase in unfreezing_schedule(model):
        ...     print(phase)
        {'blocks': ['3'], 'until': {'epoch': 1}}
        {'blocks': ['2', '1'], 'until': {'epoch': 1}}
        {'blocks': ['0']}
    """
    at_once = check_whole("at_once", at_once, 1)
    epochs = check_whole("epochs", epochs, 1)
    names = [block.name for block in blocks(model, by)]
    if len(names) < 2:
        raise ValueError(
            f"{type(model).__name__} is one block, {', '.join(names)}, so that there is nothing to"
            " freeze while the head is trained: name its blocks by `by`"
        )
    parts = [names[:1], *(names[i : i + at_once] for i in range(1, len(names), at_once))]
    schedule: list[dict[str, Any]] = [
        {"blocks": part, "until": {"epoch": epochs}} for part in parts
    ]
    del schedule[-1]["until"]
    return schedule


def head_and_blocks(model: nn.Module, backbone: str, head: str) -> list[list[str]]:
    """Return a head and the blocks of a backbone, by names.

    The result is the ``by`` of :func:`~lightning_practices.surgery.blocks`, with the head first.

    Raises:
        ValueError: If the model has no module named ``backbone``, or none named ``head``.
    """
    there = dict(model.named_modules())
    for what, name in (("backbone", backbone), ("head", head)):
        if name not in there or not name:
            children = ", ".join(repr(child) for child, _ in model.named_children())
            raise ValueError(
                f"{what}={shown(name)} names no module of {type(model).__name__}, which has"
                f" {children or 'none'}: name one of these, or one below them"
            )
    parts = [[head]]
    for block in blocks(there[backbone]):
        # The first name is that of the block. The parameters tell it from a head within its module.
        own = f"{backbone}.{block.name}" if block.modules != ("",) else backbone
        names = [f"{backbone}.{name}" for name in block.parameters]
        names = [name for name in names if not f"{name}.".startswith(f"{head}.")]
        if names:
            is_head = f"{own}.".startswith(f"{head}.")
            parts.append(names if is_head else [*dict.fromkeys([own, *names])])
    return parts


def make_plan(
    model: nn.Module, phases: tuple[Phase, ...], by: BlocksBy | None, decay: float
) -> Plan:
    """Apply the phases of a schedule to a model.

    Args:
        model: The model, before any phase has frozen parameters.
        phases: The phases of the schedule.
        by: How to divide the model into blocks, see :func:`~lightning_practices.surgery.blocks`.
        decay: The learning rate of a block, divided by that of the block above it.

    Raises:
        ValueError: If the phases don't fit the model; the message lists all problems.
    """
    found = blocks(model, by)
    places = _Places(model, found)
    wrong: list[str] = []
    trainable: list[frozenset[str]] = []
    first: dict[str, int] = {}
    scales: dict[str, float | None] = {}
    now: set[str] = set()
    for number, phase in enumerate(phases):
        problems: list[str] = []
        now -= _frozen(phase, places, now, problems)
        new = _added(phase, places, now, problems)
        for name in new:
            first.setdefault(name, number)
            scale = scales.setdefault(name, phase.lr_scale)
            if phase.lr_scale not in (None, scale):
                problems.append(f"lr_scale of {name} was {scale} when it was first trained")
        now |= new
        if not now and not problems:
            problems.append("nothing is trained")
        trainable.append(frozenset(now))
        wrong += [f"phase {phase.name}: {problem}" for problem in problems]
    if wrong:
        name = type(model).__name__
        raise ValueError(f"the schedule doesn't fit {name}:\n- " + "\n- ".join(wrong))
    shares = {}
    for block in found:
        for name in map(plain_name, block.parameters):
            scale = scales.get(name)
            own = decay**block.depth if scale is None else scale
            shares[name] = Share(block, own, scale is None, first.get(name))
    return Plan(phases, found, tuple(trainable), shares, places.all, places.frozen_by_author)


class _Places:
    """Finds the parameters that an entry of a schedule names in a model."""

    def __init__(self, model: nn.Module, found: Blocks) -> None:
        first = {id(p): plain_name(name) for name, p in model.named_parameters()}
        places = model.named_parameters(remove_duplicate=False)
        self.all = tuple(first.values())
        self._names = [(plain_name(name), first[id(p)]) for name, p in places]
        self._modules = {plain_name(name) for name, _ in model.named_modules() if name}
        self._blocks = found
        frozen = (name for name, p in model.named_parameters() if not p.requires_grad)
        self.frozen_by_author = frozenset(map(plain_name, frozen))

    def of(self, entry: Entry) -> list[str] | str:
        """Return the names of an entry's parameters, or an error message if it has none."""
        if isinstance(entry, int):
            if entry >= len(self._blocks):
                last = len(self._blocks) - 1
                return f"there is no depth {entry}: the deepest block, {last}, is the last"
            return [plain_name(name) for name in self._blocks[entry].parameters]
        if entry.startswith(PATTERN):
            pattern = re.compile(entry.removeprefix(PATTERN))
            names = [own for name, own in self._names if pattern.search(name)]
            return [*dict.fromkeys(names)] or f"{shown(entry)} matches no parameter's name"
        for block in self._blocks:
            if block.name == entry:
                return [plain_name(name) for name in block.parameters]
        names = [own for name, own in self._names if f"{name}.".startswith(f"{entry}.")]
        return [*dict.fromkeys(names)] or self._unknown(entry)

    def _unknown(self, entry: str) -> str:
        if entry in self._modules:
            return f"{shown(entry)} has no parameters"
        known = [*dict.fromkeys([*(block.name for block in self._blocks), *sorted(self._modules)])]
        near = get_close_matches(entry, known) or known[:_SHOWN]
        return f"there is no block, module or parameter {shown(entry)}; near it: {', '.join(near)}"


def _frozen(phase: Phase, places: _Places, now: set[str], wrong: list[str]) -> set[str]:
    """Return the parameters that a phase freezes; ``now`` are the parameters trained before."""
    frozen: set[str] = set()
    for entry, names in _named(phase.freeze, places, wrong):
        if not now & {*names}:
            wrong.append(f"freeze: {shown(entry)} isn't trained before, so it can't be frozen")
        frozen |= now & {*names}
    return frozen


def _added(phase: Phase, places: _Places, now: set[str], wrong: list[str]) -> set[str]:
    """Return the parameters that a phase adds to ``now``, the parameters trained before."""
    new: set[str] = set()
    for entry, names in _named(phase.blocks, places, wrong):
        both = [name for name in names if name in now or name in new]
        if both:
            where = "by an earlier phase" if now & {*both} else "by another entry"
            wrong.append(f"{shown(entry)} overlaps what is trained {where} already: {some(both)}")
        own = [name for name in names if name not in places.frozen_by_author]
        if not own:
            wrong.append(
                f"{shown(entry)} is empty: the model itself has frozen all of it, {some(names)}"
            )
        new.update(own)
    return new


def _named(
    entries: Sequence[Entry], places: _Places, wrong: list[str]
) -> Iterator[tuple[Entry, list[str]]]:
    """Yield each entry with the parameters that it names; append problems to ``wrong``."""
    for entry in entries:
        names = places.of(entry)
        if isinstance(names, str):
            wrong.append(names)
        else:
            yield entry, names
