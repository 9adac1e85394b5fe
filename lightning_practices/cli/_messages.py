"""Short messages in place of jsonargparse's, which list every type that a value isn't."""

import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches

from lightning.pytorch.cli import LightningArgumentParser

from lightning_practices.cli._places import imported

_CLASS = re.compile(r"Problem with given class_path '([\w.]+)'")
_UNION, _OTHER_TYPE = "Does not validate against any", "Expected a "  # begin messages about types
_KEY = re.compile(r'Parser key "([\w.]+)"')


def short_message(message: str, options: Sequence[str], command: str) -> str:
    """Return the reason in a message of jsonargparse, with the nearest name that would be right.

    Args:
        message: The message. One of an unknown form is returned as it is.
        options: All options of the parser, such as ``"--trainer.max_epochs"``.
        command: The command, for the calls that the message advises.
    """
    for pattern, explain in _REASONS:
        if found := re.search(pattern, message):
            return explain(found, message[: found.start()], options, command)
    return message


def error_of_constructor(error: Exception) -> BaseException | None:
    """Return the error that a class raised when it was made; ``None`` if that isn't known.

    jsonargparse takes any error of a class for a sign that the value is of another type, and raises
    one that lists all types.
    """
    first: BaseException = error
    while first.__cause__ is not None and str(first).startswith(_UNION):
        first = first.__cause__
    return None if str(first).startswith((_UNION, _OTHER_TYPE)) else first


def is_of_this_package(error: BaseException) -> bool:
    """Say whether an error was raised by code of this package."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    raised_in = "" if place is None else str(place.tb_frame.f_globals.get("__name__", ""))
    return raised_in.startswith("lightning_practices.")


def is_of_configuration(error: BaseException) -> bool:
    """Say whether an error is about what was given to Lightning, and not raised below user's code.

    The traceback of such an error shows only code of Lightning and of this package.
    """
    place = error.__traceback__
    while place is not None:
        module = str(place.tb_frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in ("lightning", "lightning_practices", "contextlib"):
            return False
        place = place.tb_next
    return True


def reason_of(error: Exception) -> str:
    """Return the reason in an error that lists why a value is of none of several types."""
    listed: list[str] = re.findall(r"^ *- (.*)", str(error), re.MULTILINE)
    reasons = [one for one in listed if not one.startswith((_UNION, _OTHER_TYPE))]
    return reasons[0] if reasons else str(error)


def _unknown_option(found: re.Match[str], before: str, _: Sequence[str], command: str) -> str:
    bad, classes = found[1], _CLASS.findall(before)
    if not classes:
        return found[0]
    if classes[-1].startswith("lightning.") and classes[-1].endswith("Module"):
        option = "--data" if classes[-1].endswith("DataModule") else "--model"
        return f"{option}.{bad} comes without a class: give {option} CLASS, such as train.py:Net"
    parser = LightningArgumentParser(exit_on_error=False)
    known = parser.add_class_arguments(imported(classes[-1]), sub_configs=True)
    remedy = f"lightning-practices {command} --model.help {classes[-1]} lists its arguments"
    return f"{classes[-1]} has no argument '{bad}'{_near(bad, known, remedy)}"


def _unknown_class(found: re.Match[str], *_: object) -> str:
    module, bad = found[1], found[2]
    known = [name for name in dir(importlib.import_module(module)) if not name.startswith("_")]
    return f"{module} has no class '{bad}'{_near(bad, known)}"


def _unknown_module(found: re.Match[str], *_: object) -> str:
    return (
        f"there is no module '{found[1]}': give package.Class for a class that Python can import,"
        " or file.py:Class"
    )


def _unknown_argument(found: re.Match[str], _: str, options: Sequence[str], command: str) -> str:
    bad = found[1].partition("=")[0]
    remedy = f"lightning-practices {command} --help all lists the options"
    return f"there is no option '{bad}'{_near(bad, options, remedy)}"


def _unknown_key(found: re.Match[str], _: str, options: Sequence[str], command: str) -> str:
    known = [one.removeprefix("--") for one in options]
    remedy = f"lightning-practices {command} --help all lists the settings"
    return f"there is no setting '{found[1]}'{_near(found[1], known, remedy)}"


def _missing(found: re.Match[str], _: str, __: Sequence[str], command: str) -> str:
    name = found[1].rpartition(".")[2]
    return (
        f"a {name} is missing: give --{name} train.py:Net with the name of your file and class, or"
        f" a file or recipe, as in lightning-practices {command} --config digits"
    )


def _wrong_choice(found: re.Match[str], before: str, *_: object) -> str:
    choices, bad = re.findall(r"'([^']*)'", found[1]), found[2]
    near = _near(bad, choices, f"choose {', '.join(choices)}, or an object, or null")
    return f"{_key(before)} can't be '{bad}'{near}"


def _wrong_type(found: re.Match[str], before: str, *_: object) -> str:
    types = re.findall(r"<class '([\w.]+)'>|typing\.(\w+)", found[1])
    names = [(one or other).rpartition(".")[2] for one, other in types]
    names = ["null" if name == "NoneType" else name for name in names]
    return f"{_key(before)} has to be {' or '.join(names)}, but got '{found[2]}'"


def _wrong_value(found: re.Match[str], before: str, *_: object) -> str:
    return f"{_key(before)} has to be {found[1].rpartition('.')[2]}, but got '{found[2]}'"


def _no_class_path(found: re.Match[str], *_: object) -> str:
    *module, inside = found[1].rsplit(":", 1)
    remedy = f"{module[0]}.{inside}, or {module[0]}.py:{inside}" if module else "package.Class"
    return f"{found[1]} is no class: give {remedy} for a class in a file"


def _wrong_base(found: re.Match[str], *_: object) -> str:
    return f"{found[2]} is no {found[1]}, which is expected here"


def _key(before: str) -> str:
    """Return the option that a message is about, from the keys of each level in it."""
    return "--" + ".".join(_KEY.findall(before))


def _near(bad: str, known: Iterable[str], otherwise: str = "") -> str:
    near = get_close_matches(bad, list(known), 1)
    if near:
        return f" (did you mean '{near[0]}'?)"
    return f": {otherwise}" if otherwise else ""


_Explain = Callable[[re.Match[str], str, Sequence[str], str], str]
# The first that is found is the reason. All else in a message is about types that a value isn't.
_REASONS: list[tuple[str, _Explain]] = [
    (r"Option '([\w.]+)' is not accepted", _unknown_option),
    (r"[Mm]odule '([\w.]+)' has no attribute '(\w+)'", _unknown_class),
    (r"No module named '([\w.]+)'", _unknown_module),
    (r"unrecognized arguments: (\S+)", _unknown_argument),
    (r"Key '([\w.]+)' is not expected", _unknown_key),
    (r"does not accept option '([\w.]+)'", _unknown_key),
    (r"following arguments are required: ([\w.]+)", _missing),
    (r"(?s)Expected a typing\.Literal\[([^\]]*)\].*?Given value: ([^\n]*)", _wrong_choice),
    (r"Subtypes: \[((?:<class '(?:int|float|bool|str|NoneType)'>(?:, )?)+)\](?s:.*?)"
     r"Given value: ([^\n]*)", _wrong_type),
    (r"Expected a dot import path string: (\S+)", _no_class_path),
    (r"does not correspond to a subclass of (\w+)(?s:.*?)Given value: ([^\n]*)", _wrong_base),
    (r"Expected a <class '([\w.]+)'>\. Got value: ([^\n]*)", _wrong_value),
]  # fmt: skip
