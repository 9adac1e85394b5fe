"""Run a model on an example, to see in which order it uses its layers."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


def first_uses(model: nn.Module, example: Any) -> dict[nn.Module, int]:
    """Return the places of all modules that run, in the order of their first calls.

    Raises:
        ValueError: If the model doesn't run on the example.
    """
    uses: dict[nn.Module, int] = {}

    def look(module: nn.Module, arguments: Any) -> None:
        uses.setdefault(module, len(uses))

    with ExitStack() as stack:
        for module in model.modules():
            handle = module.register_forward_pre_hook(look)
            stack.callback(handle.remove)
        stack.enter_context(in_evaluation(model))
        stack.enter_context(torch.no_grad())
        try:
            run(model, example)
        except Exception as error:
            raise ValueError(
                f"{type(model).__name__} doesn't run on the example: {error}"
            ) from error
    return uses


def run(model: nn.Module, example: Any) -> Any:
    """Call ``model`` with an example: a tuple holds arguments, a mapping those with names."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Set all modules to eval mode. Afterwards each has the mode that it had before."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:  # without `eval`, which frozen modules note as a wish of the user
            module.training = False
        yield
    finally:
        for module in [*model.modules(), *modes]:
            module.training = modes.get(module, modes[model])
