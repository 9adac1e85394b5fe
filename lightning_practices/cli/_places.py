"""Find classes and models by the names that users give."""

import importlib
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

from lightning_practices.cli._main import UsageError


def class_path(name: str) -> str:
    """Return the class path of a name: ``"package.Class"``, or ``"file.py:Class"``.

    The folder of a file is added to the places from which Python imports.
    """
    file, _, inside = name.rpartition(":")
    if name.endswith(".py"):
        raise UsageError(f"{name} names a file and no class: give {name}:Net for its class Net")
    if not file.endswith(".py"):
        return name
    path = Path(file).resolve()
    if not path.is_file():
        near = get_close_matches(path.name, [one.name for one in path.parent.glob("*.py")], 1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise UsageError(f"there is no file {file}{hint}")
    sys.path.insert(0, str(path.parent))
    return f"{path.stem}.{inside}"


def imported(name: str) -> Any:
    """Return the object of a class path."""
    module, _, inside = class_path(name).rpartition(".")
    if not module:
        raise UsageError(f"{name!r} names no module: give package.Class, or file.py:Class")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise UsageError(f"there is no module {error.name!r}, of {name!r}") from error
    if not hasattr(found, inside):
        near = get_close_matches(inside, dir(found), 1)
        raise UsageError(
            f"{module} has no {inside}" + (f": did you mean {near[0]}?" if near else "")
        )
    return getattr(found, inside)


def model_of(name: str) -> nn.Module:
    """Return a model with random weights.

    Args:
        name: A class path or a function's path whose call without arguments returns a model, or the
            name of a model of torchvision or timm; ``"timm:NAME"`` for a name that both know.
    """
    library, _, own = name.rpartition(":")
    if library not in ("", "timm", "torchvision") or ("." in own and not library):
        try:
            found = imported(name)
        except UsageError:
            if library or own not in _timms():
                raise
        else:
            return _made(name, found)
    if library != "timm":
        from torchvision.models import get_model, list_models

        if own in list_models():
            known: nn.Module = get_model(own)
            return known
    if library != "torchvision" and own in _timms():
        import timm

        made: nn.Module = timm.create_model(own)
        return made
    raise UsageError(_unknown(name))


def _made(name: str, found: Any) -> nn.Module:
    made = found() if callable(found) and not isinstance(found, nn.Module) else found
    if not isinstance(made, nn.Module):
        raise UsageError(f"{name} makes a {type(made).__name__}, and no torch.nn.Module")
    return made


def _timms() -> list[str]:
    try:
        import timm
    except ModuleNotFoundError:
        return []
    return [*timm.list_models(), *timm.list_pretrained()]


def _unknown(name: str) -> str:
    from torchvision.models import list_models

    near = get_close_matches(name.rpartition(":")[2], {*list_models(), *_timms()}, 3)
    hint = f"did you mean {' or '.join(near)}" if near else "give package.Class for one of yours"
    return f"there is no model {name!r} in torchvision or timm: {hint}"
