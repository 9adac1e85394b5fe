"""Find modules and parameters by the user's names."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from torch import nn

from lightning_practices._arguments import check_listed, shown
from lightning_practices._names import check_module, module_name, plain_name
from lightning_practices.surgery._blocks.block import Block

_SHOWN = 5  # the most names in an error message


def found(
    model: nn.Module, where: Iterable[str | Block]
) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """Return the modules and the parameters that ``where`` lists.

    Args:
        model: The model.
        where: Blocks, or names as in ``named_modules()`` and ``named_parameters()``, with or
            without the prefixes that torch's wrappers add.

    Raises:
        TypeError: If ``model`` is not a module, or ``where`` is a single name or block.
        ValueError: If the model has no module or parameter with a given name.
    """
    check_module(model)
    modules: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        modules.setdefault(module_name(name), module)
        modules.setdefault(name, module)
    parameters: dict[str, nn.Parameter] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        parameters.setdefault(plain_name(name), p)
        parameters.setdefault(name, p)
    chosen: list[nn.Module] = []
    alone: list[nn.Parameter] = []
    for name in names_of(where):
        if name in modules:
            chosen.append(modules[name])
        elif name in parameters:
            alone.append(parameters[name])
        else:
            raise ValueError(unknown("where", name, [*modules, *parameters]))
    return chosen, alone


def is_within(name: str, module: str) -> bool:
    """Return whether ``name`` is the name of ``module``, or of a module or parameter in it."""
    return module in ("", name) or name.startswith(f"{module}.")


def unknown(argument: str, name: str, there: Sequence[str]) -> str:
    """Return an error message that suggests similar names, or else the outermost names."""
    start = f"{argument}: no module or parameter is called {shown(name)}"
    near = get_close_matches(name, dict.fromkeys(there), _SHOWN, 0.5)
    if near:
        return f"{start}; near it: {', '.join(map(repr, near))}"
    first = [known for known in dict.fromkeys(there) if known and "." not in known][:_SHOWN]
    return f"{start}; there are: {', '.join(map(repr, first))}"


def names_of(where: Iterable[str | Block]) -> list[str]:
    """Return the names in ``where``, with each block replaced by its modules and parameters.

    Raises:
        TypeError: If ``where`` is a single name or block, or an item is neither name nor block.
    """
    names: list[str] = []
    for entry in check_listed("where", where, "a sequence of names or blocks, as in ['layer4']"):
        if isinstance(entry, Block):
            names += [*entry.modules, *entry.parameters]
        elif isinstance(entry, str):
            names.append(entry)
        else:
            raise TypeError(f"where has to hold names or blocks, but got {shown(entry)}")
    return list(dict.fromkeys(names))
