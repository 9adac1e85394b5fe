"""Find the model's input in a batch."""

from typing import Any

from torch import Tensor


def input_of(batch: Any) -> Tensor:
    """Return the batch itself if it is a tensor, or the first item of a list or tuple.

    Raises:
        TypeError: If the batch, or its first item, is not a tensor.
    """
    first = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if not isinstance(first, Tensor):
        within = "" if first is batch else f" that begins with {type(first).__name__}"
        raise TypeError(
            f"got a batch of type {type(batch).__name__}{within}, which doesn't tell the model's"
            " input: give it, as in forward=lambda model, batch: model(batch['image'])"
        )
    return first
