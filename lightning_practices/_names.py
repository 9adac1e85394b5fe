"""Names of a model's modules and parameters, as the author wrote them, and words for messages."""

import re
from collections.abc import Collection, Iterator, Sequence

from torch import nn

from lightning_practices._arguments import check_instance

_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

_SHOWN = 5  # names in a message


def plain_name(name: str) -> str:
    """Return a parameter's name without the prefixes that torch's wrappers add.

    These wrappers are ``torch.compile``, FSDP1 and activation checkpointing.
    """
    return _WRAPPERS.sub("", name)


def module_name(name: str) -> str:
    """Return a module's name without the prefixes that torch's wrappers add."""
    return plain_name(f"{name}.").removesuffix(".")


def some(names: Sequence[str]) -> str:
    """Return the first names and the number of further names, as text."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def count(number: int, noun: str) -> str:
    """Return a number of things in words, as ``"1 check of x"`` or ``"2 checks of x"``."""
    thing, of, rest = noun.partition(" of ")
    return f"{number} {thing}{'s' * (number != 1)}{of}{rest}"


def check_module(model: object, name: str = "model") -> None:
    """Raise ``TypeError`` if the argument ``name`` is not a :class:`torch.nn.Module`."""
    check_instance(name, model, nn.Module, "a torch.nn.Module")


def modules_with_names(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    """Yield each module of ``model`` once, with all names that it has in ``model``.

    Raises:
        TypeError: If ``model`` is not a module.
    """
    check_module(model)
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    for module, its_names in names.items():
        yield module, tuple(its_names)


def outermost_where(names: Collection[str], chosen: Collection[str]) -> Iterator[str]:
    """Yield the modules among ``chosen`` of which no ancestor is among it."""
    chosen = set(chosen)
    for name in names:
        parts = name.split(".")
        above = {".".join(parts[:length]) for length in range(len(parts))} if name else set()
        if name in chosen and not above & chosen:
            yield name
