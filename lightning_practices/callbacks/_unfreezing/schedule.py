"""Schedules of unfreezing for any model: their phases, reading, checking and writing."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from lightning_practices._arguments import check_path, check_pattern, cut, shown
from lightning_practices._names import count
from lightning_practices.callbacks._types import Mode
from lightning_practices.files import write_file

Entry = str | int
"""A name of modules or parameters, a depth, or a pattern as ``"re:..."``."""

# A path comes last: jsonargparse would take the text of a list or dict for a path.
UnfreezingSchedule = (
    str | Sequence[Mapping[str, Any]] | Mapping[str | int, Mapping[str, Any]] | PathLike[str]
)
"""``"auto"``, phases as a list or as a dict by name, or a YAML file of either."""

_PHASE = ("blocks", "freeze", "until", "lr_scale", "restore_best")
_SUFFIXES = (".yaml", ".yml")
_MOST_WRONG = 20  # problems in an error
_UNTIL = ("epoch", "step", "plateau")
PATTERN = "re:"
"""What an entry that is a regular expression begins with."""

_PLATEAU = ("monitor", "patience", "mode", "min_delta")


@dataclass(frozen=True)
class Plateau:
    """A rule that ends a phase once a logged value no longer improves.

    Attributes:
        monitor: The name of the value.
        patience: The number of checks in a row without improvement that ends the phase.
        mode: Direction in which the value improves: ``"min"`` if lower is better, ``"max"`` if
            higher is better.
        min_delta: A change counts as an improvement if it is larger than this.
    """

    monitor: str
    patience: int = 3
    mode: Mode = "min"
    min_delta: float = 0.0

    def improves(self, value: float, best: float | None) -> bool:
        """Say whether ``value`` improves on the ``best`` so far; nan never does."""
        if best is None:
            return not math.isnan(value)
        gain = best - value if self.mode == "min" else value - best
        return gain > self.min_delta


@dataclass(frozen=True)
class Phase:
    """A part of a fit in which the same blocks are trained.

    Attributes:
        name: The phase's number, from 1, or its key in the schedule.
        blocks: The blocks that are trained from this phase on.
        freeze: The blocks that are frozen again from this phase on.
        lr_scale: The factor of the rate of ``blocks``; ``None`` for the decay by depth.
        epochs: Epochs after which the phase ends.
        steps: Optimizer steps after which the phase ends.
        plateau: The plateau at which the phase ends.
        restore_best: Whether the next phase starts from the best weights of this one.
    """

    name: str
    blocks: tuple[Entry, ...]
    freeze: tuple[Entry, ...] = ()
    lr_scale: float | None = None
    epochs: int | None = None
    steps: int | None = None
    plateau: Plateau | None = None
    restore_best: bool = False

    @property
    def end(self) -> str:
        """When the phase ends, in words."""
        ends = []
        if self.epochs is not None:
            ends.append(count(self.epochs, "epoch"))
        if self.steps is not None:
            ends.append(count(self.steps, "step"))
        if self.plateau is not None:
            ends.append(f"a plateau of {self.plateau.monitor}")
        return " or ".join(ends) or "the end of the fit"


def read_schedule(schedule: UnfreezingSchedule) -> tuple[Phase, ...]:
    """Return the phases of a schedule.

    Args:
        schedule: A sequence of phases, a mapping of names to phases, or the path of a YAML file.

    Raises:
        FileNotFoundError: If the YAML file doesn't exist.
        TypeError: If the schedule is neither a path nor a list or dict.
        ValueError: If the schedule is malformed, or the file can't be read; the message lists the
            problems.
    """
    content = _loaded(schedule) if isinstance(schedule, str | PathLike) else schedule
    named = _named(content)
    wrong: list[str] = []
    last = len(named) - 1
    phases = [_phase(name, given, n == last, wrong) for n, (name, given) in enumerate(named)]
    if wrong:
        if len(wrong) > _MOST_WRONG:
            wrong[_MOST_WRONG:] = [f"and {len(wrong) - _MOST_WRONG} more"]
        raise ValueError("the schedule of unfreezing is wrong:\n- " + "\n- ".join(wrong))
    return tuple(phases)


def write_schedule(schedule: Sequence[Mapping[str, Any]], path: str | PathLike[str]) -> None:
    """Write a schedule as YAML, to be edited and given to :class:`ProgressiveUnfreezing`.

    Args:
        schedule: The schedule, as :func:`unfreezing_schedule` returns it.
        path: The path of the file, ending in ``.yaml`` or ``.yml``.

    Raises:
        ValueError: If the schedule is malformed, or the path doesn't end in ``.yaml`` or ``.yml``.
        OSError: If the file can't be written. A file that was there before is then unchanged.

    Example:
        >>> from pathlib import Path
        >>> from lightning_practices.callbacks import unfreezing_schedule, write_schedule
        >>> model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4)))
        >>> write_schedule(unfreezing_schedule(model), "schedule.yaml")
        >>> print(Path("schedule.yaml").read_text(), end="")
        - blocks: ['3']
          until: {epoch: 1}
        - blocks: ['2', '1']
          until: {epoch: 1}
        - blocks: ['0']
    """
    if check_path("path", path, ".yaml file").suffix not in _SUFFIXES:
        raise ValueError(f"path has to be that of a .yaml file, but got {shown(str(path))}")
    read_schedule(schedule)
    plain = [dict(phase) for phase in schedule]
    write_file(path, yaml.safe_dump(plain, sort_keys=False, default_flow_style=None))


def _loaded(schedule: str | PathLike[str]) -> Any:
    """Return the content of a YAML file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the name has another suffix, or the file can't be read as YAML.
    """
    path = Path(schedule)
    if path.suffix not in _SUFFIXES:
        raise ValueError(
            "schedule has to be 'auto', a list or dict of phases or the path of a .yaml file,"
            f" but got {shown(str(schedule))}"
        )
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"schedule={shown(str(schedule))} names a file that doesn't exist, seen from the folder"
            f" {Path.cwd()}: give the path of a file that write_schedule has written, or 'auto'"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(
            f"schedule={shown(str(schedule))} can't be read as a YAML file:"
            f" {type(error).__name__}: {cut(str(error))}"
        ) from error


def _named(content: Any) -> list[tuple[str, Any]]:
    if isinstance(content, Mapping):
        named = [(str(name), phase) for name, phase in content.items()]
    elif isinstance(content, Sequence) and not isinstance(content, str | bytes):
        named = [(str(number), phase) for number, phase in enumerate(content, 1)]
    else:
        raise TypeError(
            "schedule has to be a list of phases, or a dict of them by name, but got"
            f" {shown(content)}"
        )
    if not named:
        raise ValueError(
            "schedule has no phases, it is empty: list at least one, as in {blocks: [head]}"
        )
    return named


def _phase(name: str, given: Any, is_last: bool, wrong: list[str]) -> Phase:
    """Return a phase; append problems to ``wrong``."""
    place = f"phase {cut(name)}: "
    if not isinstance(given, Mapping):
        wrong.append(f"{place}it has to be a dict with the key 'blocks', but got {shown(given)}")
        return Phase(name, ())
    found = [*_unknown(given, _PHASE)]
    blocks = _entries(given, "blocks", found)
    frozen = _entries(given, "freeze", found)
    if not blocks and not frozen and not found:
        found.append("it is empty: name blocks to train")
    lr_scale = given.get("lr_scale")
    if lr_scale is not None and not (_is_number(lr_scale) and 0 < lr_scale < math.inf):
        found.append(f"lr_scale has to be a number above 0, but got {shown(lr_scale)}")
    if lr_scale is not None and not blocks:
        found.append("lr_scale is the factor of the rate of blocks, but there are no blocks")
    epochs, steps, plateau = _until(given.get("until"), is_last, found)
    restore_best = given.get("restore_best", False)
    if not isinstance(restore_best, bool):
        found.append(f"restore_best has to be true or false, but got {shown(restore_best)}")
    elif restore_best and plateau is None:
        found.append("restore_best needs a plateau in until, whose value says what is best")
    wrong += [place + what for what in found]
    return Phase(name, blocks, frozen, lr_scale, epochs, steps, plateau, restore_best is True)


def _until(
    until: Any, is_last: bool, wrong: list[str]
) -> tuple[int | None, int | None, Plateau | None]:
    """Return the epochs, steps and plateau that end a phase; append problems to ``wrong``."""
    if is_last:
        if until is not None:
            wrong.append(
                f"it is the last phase and ends with the fit, so until={shown(until)} has no"
                " meaning: leave it out, and let the Trainer's max_epochs or EarlyStopping end the"
                " fit"
            )
        return None, None, None
    if not isinstance(until, Mapping) or not until:
        wrong.append(
            "until has to say when the phase ends, as in {epoch: 1}, {step: 500} or"
            f" {{plateau: {{monitor: val_loss, patience: 2}}}}, but got {shown(until)}"
        )
        return None, None, None
    wrong += _unknown(until, _UNTIL)
    for key in ("epoch", "step"):
        if key in until and not _is_whole(until[key], 1):
            wrong.append(f"{key} has to be a whole number from 1 on, but got {shown(until[key])}")
    plateau = _plateau(until["plateau"], wrong) if "plateau" in until else None
    return until.get("epoch"), until.get("step"), plateau


def _plateau(given: Any, wrong: list[str]) -> Plateau | None:
    if not isinstance(given, Mapping) or not isinstance(given.get("monitor"), str):
        wrong.append(
            f"plateau has to name a value, as in {{monitor: val_loss}}, but got {shown(given)}"
        )
        return None
    found = [*_unknown(given, _PLATEAU)]
    plateau = Plateau(**{key: given[key] for key in _PLATEAU if key in given})
    if not _is_whole(plateau.patience, 1):
        found.append(
            f"patience has to be a whole number from 1 on, but got {shown(plateau.patience)}"
        )
    if plateau.mode not in ("min", "max"):
        found.append(f"mode has to be 'min' or 'max', but got {shown(plateau.mode)}")
    if not (_is_number(plateau.min_delta) and 0 <= plateau.min_delta < math.inf):
        found.append(f"min_delta has to be a number from 0 on, but got {shown(plateau.min_delta)}")
    wrong += found
    return None if found else plateau


def _entries(given: Mapping[str, Any], key: str, wrong: list[str]) -> tuple[Entry, ...]:
    entries = given.get(key, ())
    if isinstance(entries, str | int) and not isinstance(entries, bool):
        entries = (entries,)
    if not isinstance(entries, Sequence):
        wrong.append(f"{key} has to be a list of names and depths, but got {shown(entries)}")
        return ()
    for entry in entries:
        if isinstance(entry, str) and entry.startswith(PATTERN):
            try:
                check_pattern(key, entry.removeprefix(PATTERN))
            except ValueError as error:
                wrong.append(str(error))
        elif not _is_whole(entry, 0) and not (isinstance(entry, str) and entry):
            wrong.append(
                f"{key} has to list names, depths from 0 on and 're:...', got {shown(entry)}"
            )
    return tuple(entries)


def _unknown(given: Mapping[str, Any], known: Sequence[str]) -> Iterator[str]:
    for key in given:
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            yield f"{shown(key)} is none of {', '.join(known)}{hint}"


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
