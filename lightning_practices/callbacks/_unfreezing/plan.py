"""A schedule of unfreezing of a model: which parameters each phase trains, and how fast."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import nn

from lightning_practices._names import plain_name
from lightning_practices.callbacks._unfreezing.schedule import Entry, Phase, read_schedule
from lightning_practices.surgery import Block, Blocks, blocks

BlocksBy = str | Sequence[str | Sequence[str]]

_PATTERN = "re:"
_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Share:
    """How a parameter learns.

    Attributes:
        block: The block that it is in.
        scale: What the rate of its group is multiplied by.
        is_default: Whether that is the decay by depth.
        phase: The first phase that trains it, from 0; ``None`` for one that none does.
    """

    block: Block
    scale: float
    is_default: bool
    phase: int | None


@dataclass(frozen=True)
class Plan:
    """Phases of a model.

    Attributes:
        phases: As they are scheduled.
        blocks: Of the model, head first.
        trainable: For each phase the names of all parameters that it trains.
        shares: Of each parameter, by name.
        theirs: Names of the parameters that the model's author has frozen.
    """

    phases: tuple[Phase, ...]
    blocks: Blocks
    trainable: tuple[frozenset[str], ...]
    shares: Mapping[str, Share]
    theirs: frozenset[str]


def unfreezing_schedule(
    model: nn.Module, by: BlocksBy | None = None, *, at_once: int = 2, epochs: int = 1
) -> list[dict[str, Any]]:
    """Return a schedule of progressive unfreezing: the head, then the top blocks, then those below.

    What ``ProgressiveUnfreezing("auto")`` follows. Write it by :func:`write_schedule`, edit it and
    give the file to :class:`ProgressiveUnfreezing`. Where an epoch has few steps, phases of one are
    nearly fine-tuning at once: give more ``epochs``.

    Source: "Transfer learning", lecture S2: the head alone first, then the top one or two layers.

    Args:
        model: The module that is to be trained.
        by: What the blocks are, see :func:`~lightning_practices.surgery.blocks`.
        at_once: How many blocks a phase after the first unfreezes.
        epochs: Length of each phase but the last.

    Raises:
        ValueError: If the model is one block, or ``at_once`` or ``epochs`` are below 1.
    """
    if at_once < 1 or epochs < 1:
        raise ValueError(f"at_once and epochs have to be 1 or more, got {at_once} and {epochs}")
    names = [block.name for block in blocks(model, by)]
    if len(names) < 2:
        raise ValueError(
            f"{type(model).__name__} is one block, {', '.join(names)}, of which nothing can be"
            " frozen first: say by `by` what its blocks are"
        )
    parts = [names[:1], *(names[i : i + at_once] for i in range(1, len(names), at_once))]
    schedule: list[dict[str, Any]] = [
        {"blocks": part, "until": {"epoch": epochs}} for part in parts
    ]
    del schedule[-1]["until"]
    return schedule


def make_plan(
    model: nn.Module, phases: tuple[Phase, ...] | None, by: BlocksBy | None, decay: float
) -> Plan:
    """Return what ``phases`` mean for ``model``.

    Args:
        model: The model, none of whose parameters the phases have frozen yet.
        phases: They, or ``None`` for those of :func:`unfreezing_schedule`.
        by: See there.
        decay: Of rates, from block to block.

    Raises:
        ValueError: If they don't fit the model; all that is wrong is named.
    """
    if phases is None:
        phases = read_schedule(unfreezing_schedule(model, by))
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
    return Plan(phases, found, tuple(trainable), shares, places.theirs)


def shown(names: Sequence[str]) -> str:
    """Return the first of some names."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


class _Places:
    """Parameters by what entries may call them."""

    def __init__(self, model: nn.Module, found: Blocks) -> None:
        first = {id(p): plain_name(name) for name, p in model.named_parameters()}
        places = model.named_parameters(remove_duplicate=False)
        self._names = [(plain_name(name), first[id(p)]) for name, p in places]
        self._modules = {plain_name(name) for name, _ in model.named_modules() if name}
        self._blocks = found
        frozen = (name for name, p in model.named_parameters() if not p.requires_grad)
        self.theirs = frozenset(map(plain_name, frozen))

    def of(self, entry: Entry) -> list[str] | str:
        """Return the names of parameters that an entry is about, or what is wrong with it."""
        if isinstance(entry, int):
            if entry >= len(self._blocks):
                last = len(self._blocks) - 1
                return f"there is no depth {entry}: the deepest block, {last}, is the last"
            return [plain_name(name) for name in self._blocks[entry].parameters]
        if entry.startswith(_PATTERN):
            try:
                pattern = re.compile(entry.removeprefix(_PATTERN))
            except re.error as error:
                return f"{entry!r} is no regular expression: {error}"
            names = [own for name, own in self._names if pattern.search(name)]
            return [*dict.fromkeys(names)] or f"{entry!r} matches no parameter's name"
        for block in self._blocks:
            if block.name == entry:
                return [plain_name(name) for name in block.parameters]
        names = [own for name, own in self._names if f"{name}.".startswith(f"{entry}.")]
        return [*dict.fromkeys(names)] or self._unknown(entry)

    def _unknown(self, entry: str) -> str:
        if entry in self._modules:
            return f"{entry!r} has no parameters"
        known = [*(block.name for block in self._blocks), *sorted(self._modules)]
        near = get_close_matches(entry, known) or known[:_SHOWN]
        return f"there is no block, module or parameter {entry!r}; near it: {', '.join(near)}"


def _frozen(phase: Phase, places: _Places, now: set[str], wrong: list[str]) -> set[str]:
    """Return what a phase freezes again, of what is trained ``now``."""
    frozen: set[str] = set()
    for entry, names in _named(phase.freeze, places, wrong):
        if not now & {*names}:
            wrong.append(f"freeze: {entry!r} isn't trained before, so that it can't be frozen")
        frozen |= now & {*names}
    return frozen


def _added(phase: Phase, places: _Places, now: set[str], wrong: list[str]) -> set[str]:
    """Return what a phase trains beside what is trained ``now``."""
    new: set[str] = set()
    for entry, names in _named(phase.blocks, places, wrong):
        both = [name for name in names if name in now or name in new]
        if both:
            where = "by an earlier phase" if now & {*both} else "by another entry"
            wrong.append(f"{entry!r} overlaps what is trained {where} already: {shown(both)}")
        own = [name for name in names if name not in places.theirs]
        if not own:
            wrong.append(
                f"{entry!r} is empty: the model itself has frozen all of it, {shown(names)}"
            )
        new.update(own)
    return new


def _named(
    entries: Sequence[Entry], places: _Places, wrong: list[str]
) -> Iterator[tuple[Entry, list[str]]]:
    for entry in entries:
        names = places.of(entry)
        if isinstance(names, str):
            wrong.append(names)
        else:
            yield entry, names
