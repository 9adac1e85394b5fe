"""Run a model once on a batch, and leave it as it was."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lightning_practices._batches import input_of
from lightning_practices._layers import NORMS


def call(model: nn.Module, batch: Any) -> Any:
    """Call a model with a batch: a mapping by keyword, the first item of a list, or a tensor.

    Raises:
        TypeError: If the batch is none of these.
    """
    model = getattr(model, "_orig_mod", model)  # within torch.compile
    if isinstance(batch, Mapping):
        return model(**batch)
    try:
        x = input_of(batch)
    except TypeError as error:
        raise TypeError(
            f"batch has to be a tensor, a list that begins with one, or a mapping of the model's"
            f" keyword arguments, but got {type(batch).__name__}"
        ) from error
    return model(x)


@contextmanager
def unchanged(model: nn.Module, *, norms_as_they_are: bool = False) -> Iterator[None]:
    """Run the block with the model in eval mode, and restore all that a forward pass may change.

    Modes, buffers, and the states of torch's random number generators are as before on exit, also
    after an error.

    Args:
        model: The model.
        norms_as_they_are: Whether normalisation layers keep their mode, so that batch norms in
            training use the statistics of the batch.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(module, dict(module._buffers)) for module in model.modules() if module._buffers]
    copies = [
        (buffer, buffer.clone())
        for _, held in buffers
        for buffer in held.values()
        if buffer is not None and not buffer.is_meta
    ]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=[index for index in devices if index is not None]):
        try:
            for module, _ in modes:
                module.training = module.training and (
                    norms_as_they_are and isinstance(module, NORMS)
                )
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            with torch.no_grad():
                for buffer, copy in copies:
                    buffer.copy_(copy)
            for module, held in buffers:
                module._buffers.clear()
                module._buffers.update(held)
