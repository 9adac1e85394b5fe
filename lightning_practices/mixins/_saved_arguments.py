"""Arguments of a module in checkpoints: those of its own class, and those of the next class.

A mixin stands between a module's own class and the class that it extends, the *next class*. A
checkpoint holds the arguments of the call of the own class under ``OWN_KEY``, and under Lightning's
``hyper_parameters`` those that a checkpoint of the next class alone would hold. So either class
loads the checkpoint. A hyperparameter that has changed since construction, such as a found learning
rate, is an argument under ``OWN_KEY`` even if the call left it at its default.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Any, TypeVar

import torch
from lightning.fabric.utilities.cloud_io import _load
from lightning.pytorch import LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.core.saving import (
    _convert_loaded_hparams,
    load_hparams_from_tags_csv,
    load_hparams_from_yaml,
)
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.parsing import AttributeDict

from lightning_practices.mixins._signatures import (
    arguments_at_default,
    arguments_until,
    call_takes,
    mixin_arguments,
    named,
    shared_arguments,
    unknown_arguments,
)

_Value = TypeVar("_Value")

OWN_KEY = "lightning_practices_arguments"
LEFT_OUT_KEY = "lightning_practices_left_out"  # names of arguments
_KEY = LightningModule.CHECKPOINT_HYPER_PARAMS_KEY
_NO_KEY = "lightning_practices_no_arguments"  # no checkpoint has it
_BY_NAME = (None, "kwargs")  # Lightning's names of hyperparameters that are several arguments
_OF_COMMAND_LINE = ("_class_path", "_instantiator")  # what LightningCLI adds to the arguments
_LOADER = ("map_location", "hparams_file", "strict", "weights_only")  # load_from_checkpoint's

_key: ContextVar[str] = ContextVar("_key", default=_KEY)
_given_to_next: ContextVar[tuple[type | None, Mapping[str, Any]]] = ContextVar(
    "_given_to_next", default=(None, {})
)


class ArgumentsKey:
    """The key in a checkpoint under which Lightning looks for a class's arguments.

    Lightning asks the class when it loads a checkpoint, and the module when it saves one.
    """

    def __get__(self, module: Any, kind: type | None = None) -> str:
        return _key.get() if module is None else _KEY


@dataclass
class SavedArguments:
    """What a checkpoint has to hold of a module's arguments.

    Attributes:
        own: Names of the arguments in the call of the module's own class.
        others: Names of the arguments that no next class takes.
        theirs: Names of the arguments that the next class got or has saved.
        beside: The own arguments, if the hyperparameters are one argument of the next class.
        defaults: Names of the arguments that the call left at the default.
        changed: The values of those that the constructor has changed since it saved them.
        values: The values of the own and of the next class, for a name that both have.
    """

    own: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()
    theirs: frozenset[str] = frozenset()
    beside: dict[str, Any] = field(default_factory=dict)
    defaults: frozenset[str] = frozenset()
    changed: dict[str, Any] = field(default_factory=dict)
    values: dict[str, tuple[Any, Any]] = field(default_factory=dict)


def hyperparameters_of_next_class(got: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Leave out arguments of the own class from those that LightningCLI gives as hyperparameters.

    Args:
        got: The arguments that the next class gets.
    """
    variable = _of_command_line()
    given = variable.get()
    kept = {*got, *_OF_COMMAND_LINE}
    theirs = None if given is None else {n: v for n, v in given.items() if n in kept}
    return _holding(variable, theirs)


def noted(
    module: LightningModule, mixin: type, own: dict[str, Any], got: dict[str, Any]
) -> SavedArguments:
    """Return what checkpoints have to hold, after the constructor of the next class has run.

    If it has saved hyperparameters, the arguments of the own class are added to them.

    Args:
        module: The module.
        mixin: The last mixin.
        own: The arguments in the call of the module's own class.
        got: The arguments that the next class got.
    """
    given = _of_command_line().get() or {}  # by LightningCLI, as they are in a file
    own = {name: given.get(name, value) for name, value in own.items()}
    hparams: Any = module.hparams
    defaults = arguments_at_default(type(module), mixin, own, got)
    is_whole = vars(module).get("_hparams_name") not in _BY_NAME
    if not hparams or is_whole or not isinstance(hparams, dict):
        beside = {name: value for name, value in own.items() if hparams and name not in got}
        return SavedArguments(
            frozenset(own), theirs=frozenset(got), beside=beside, defaults=defaults
        )
    theirs = frozenset(hparams) | frozenset(got)
    values = {
        name: (value, hparams[name])
        for name, value in own.items()
        if name in hparams and value is not hparams[name]
    }
    # The next class may have got an argument, and left it out.
    added = {name: value for name, value in own.items() if name not in theirs}
    hparams.update(added)
    initial = vars(module).get("_hparams_initial")  # for loggers
    if initial is not None:
        initial.update(deepcopy(added))
    changed = {name: hparams[name] for name in _changed(module, defaults)}
    return SavedArguments(frozenset(own), frozenset(), theirs, {}, defaults, changed, values)


def split(module: LightningModule, checkpoint: dict[str, Any], saved: SavedArguments) -> None:
    """Write the arguments of the own class and of the next class to a checkpoint.

    Args:
        module: The module.
        checkpoint: The checkpoint, with all hyperparameters of the module.
        saved: Names of the arguments.
    """
    hparams = checkpoint.get(_KEY)
    whole = checkpoint.get(module.CHECKPOINT_HYPER_PARAMS_NAME)
    if hparams and whole not in _BY_NAME:
        checkpoint[OWN_KEY] = dict(saved.beside)
    if not hparams or not isinstance(hparams, dict) or whole not in _BY_NAME:
        return
    kept = {*saved.own, *_OF_COMMAND_LINE}
    own = {name: value for name, value in hparams.items() if name in kept}
    for name in _changed(module, saved.defaults):
        if name not in saved.changed or not _same(hparams[name], saved.changed[name]):
            own[name] = hparams[name]
    theirs = {
        name: value
        for name, value in hparams.items()
        if name in saved.theirs or name not in saved.others
    }
    for name, (mine, other) in saved.values.items():
        if name not in hparams:
            continue
        # A value that has changed since, such as a found learning rate, is the value of both.
        own[name] = mine if _same(hparams[name], other) else hparams[name]
        theirs[name] = other if _same(hparams[name], mine) else hparams[name]
    for name in saved.others & own.keys():
        if isinstance(own[name], PathLike):
            own[name] = fspath(own[name])
    checkpoint[OWN_KEY] = own
    checkpoint[module.CHECKPOINT_HYPER_PARAMS_NAME] = "kwargs"
    # With the path of the own class, Lightning builds that class, which needs its own arguments.
    checkpoint[_KEY] = {**hparams, **own} if "_class_path" in hparams else theirs


def load(
    module: type,
    mixin: type,
    load_from_checkpoint: Callable[..., Any],
    path: Any,
    options: dict[str, Any],
) -> Any:
    """Load a module from a checkpoint of its own class or of the next class.

    Args:
        module: The module's class.
        mixin: The last mixin.
        load_from_checkpoint: Lightning's method of this class.
        path: The checkpoint.
        options: The keyword arguments of the method.
    """
    begin = path.tell() if hasattr(path, "seek") else None

    def read(**given: Any) -> Any:
        if begin is not None:
            path.seek(begin)  # the file has been read before
        # Lightning passes the arguments on to a function with a parameter named `checkpoint`.
        names = {"checkpoint"} & given.keys() if hasattr(module, "set_checkpoint") else set()
        apart = {name: given.pop(name) for name in names}
        made = load_from_checkpoint(path, **given)
        if apart:
            made.set_checkpoint(**apart)
        _warn_of_objects(module, [n for n in held.get(LEFT_OUT_KEY, ()) if n not in options])
        return made

    file, held = options.get("hparams_file"), _held(path, options.get("weights_only"))
    found = dict(held.get(_KEY) or {} if file is None else _of_file(file))
    name = held.get(LightningModule.CHECKPOINT_HYPER_PARAMS_NAME)
    if name not in _BY_NAME:
        return _load_whole(module, mixin, read, options, held, {name: found})
    shared = shared_arguments(module, mixin)
    ours = mixin_arguments(module, mixin).keys() - shared
    if file is None and OWN_KEY not in held and not ours.isdisjoint(found):
        shared = {}  # an old checkpoint, whose hyper_parameters hold the arguments of the mixins
    theirs = {name: found.pop(name) for name in shared if name in found}
    own = held.get(OWN_KEY) if file is None else None
    if own is not None:
        # The class takes none of its own, and the call of the next class leaves it at the default.
        kept = [n for n in own if n not in _OF_COMMAND_LINE and not call_takes(module, n)]
        theirs |= {name: own[name] for name in kept}
    with _holding(_given_to_next, (module, theirs)):
        if own is not None:
            with _holding(_key, OWN_KEY):
                return _load_without(None, read, options, own)
        return _load_found(module, mixin, read, options, found, theirs)


def _warn_of_objects(module: type, names: list[str]) -> None:
    """Warn of arguments that a checkpoint leaves out, and that aren't given again."""
    if names:
        again = ", ".join(f"{name}=..." for name in names)
        rank_zero_warn(
            f"the checkpoint leaves out {' and '.join(names)} of {module.__name__}, as checkpoints"
            " hold no objects of practices, so that the default is used: give what the module was"
            f" made with again, as in {module.__name__}.load_from_checkpoint(path, {again})"
        )


def _load_whole(
    module: type,
    mixin: type,
    read: Callable[..., Any],
    options: Mapping[str, Any],
    held: Mapping[str, Any],
    whole: Mapping[str, Any],
) -> Any:
    """Load a module from hyperparameters that are one argument, of its class or the next class."""
    beside = held.get(OWN_KEY) if options.get("hparams_file") is None else None
    if not beside and not whole.keys().isdisjoint(named(module)):
        return read(**options)  # Lightning finds the argument in the class's own __init__
    unknown = {*unknown_arguments(module, mixin, whole)} - arguments_until(module, mixin).keys()
    # The class that was saved may have been given a Namespace, whose attributes this dict has too.
    kind = held.get(LightningModule.CHECKPOINT_HYPER_PARAMS_TYPE, AttributeDict)
    config = {name: _convert_loaded_hparams(value, kind) for name, value in whole.items()}
    return _load_without(unknown, read, options, {**(beside or {}), **config})


def _load_found(
    module: type,
    mixin: type,
    read: Callable[..., Any],
    options: dict[str, Any],
    found: dict[str, Any],
    dropped: Iterable[str],
) -> Any:
    """Load a module with the arguments that were found, except for those that no class takes."""
    dropped = {*dropped}
    before = arguments_until(module, mixin)
    unknown = unknown_arguments(module, mixin, [name for name in found if name not in before])
    dropped.update(name for name in unknown if name not in {*options, *_OF_COMMAND_LINE})
    if found.get("_class_path") in {f"{b.__module__}.{b.__qualname__}" for b in module.__mro__[1:]}:
        dropped.add("_class_path")
    return _load_without(dropped or None, read, options, found)


def _load_without(
    dropped: set[str] | None,
    read: Callable[..., Any],
    options: Mapping[str, Any],
    found: Mapping[str, Any],
) -> Any:
    """Load a module with the arguments that were found, except for some.

    With ``dropped=None`` Lightning finds them itself.
    """
    while True:
        try:
            if dropped is None:
                return read(**options)
            left = {n: v for n, v in found.items() if n not in {*dropped, *_LOADER}}
            with _holding(_key, _NO_KEY):
                return read(**{**left, **options, "hparams_file": None})
        except TypeError as error:
            # The own class gives this argument to the next class itself.
            twice = re.search(r"multiple values for (?:keyword )?argument '(\w+)'", str(error))
            dropped = dropped or set()
            if twice is None or twice[1] in dropped or twice[1] not in found.keys() - options:
                raise
            dropped = {*dropped, twice[1]}


def for_next_class(module: type) -> Mapping[str, Any]:
    """Return arguments for the next class that a mixin would take, from the file that is loaded."""
    kind, given = _given_to_next.get()
    if kind is not module:
        return {}
    _given_to_next.set((None, {}))  # the constructor may make further modules of this class
    return given


def _of_command_line() -> ContextVar[Any]:
    """Return the variable in which LightningCLI, of either package, gives hyperparameters."""
    twin: Any = sys.modules.get("pytorch_lightning.core.mixins.hparams_mixin")
    if twin is not None and twin._given_hyperparameters.get() is not None:
        return twin._given_hyperparameters  # type: ignore[no-any-return]
    return _given_hyperparameters


@contextmanager
def _holding(variable: ContextVar[_Value], value: _Value) -> Iterator[None]:
    """Give a variable a value for a while."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def _held(path: Any, weights_only: bool | None) -> Mapping[str, Any]:
    """Return a checkpoint whose weights are not read, if it is a file; empty if it can't be read.

    Lightning then reads the checkpoint, and raises the error.
    """
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": weights_only}
    try:
        try:
            is_file = isinstance(path, str | PathLike) and os.path.isfile(path)
            if is_file:
                read: Any = torch.load(path, mmap=True, **options)
            else:
                read = _load(path, **options)
        except RuntimeError:  # a format that can't be mapped
            read = _load(path, **options)
    except Exception:
        return {}
    return read if isinstance(read, Mapping) else {}


def _of_file(file: Any) -> Mapping[str, Any]:
    """Return the hyperparameters in a file; empty for a file that Lightning refuses."""
    ending = str(file).rpartition(".")[2].lower()
    if ending == "csv":
        return load_hparams_from_tags_csv(file)
    return load_hparams_from_yaml(file) if ending in ("yml", "yaml") else {}


def _changed(module: LightningModule, names: Iterable[str]) -> list[str]:
    """Return the names of hyperparameters that have changed since they were saved."""
    hparams: Any = module.hparams
    initial = vars(module).get("_hparams_initial", {})  # a deep copy
    return [
        name
        for name in names
        if name in hparams and not (name in initial and _equal(hparams[name], initial[name]))
    ]


def _equal(value: Any, other: Any) -> bool:
    try:
        return type(value) is type(other) and bool(value == other)
    except Exception:  # such as that of tensors
        return False


def _same(value: Any, other: Any) -> bool:
    plain = (bool, int, float, str)  # these may be equal copies, after a module was pickled
    equal = isinstance(value, plain) and type(value) is type(other) and value == other
    return value is other or equal
