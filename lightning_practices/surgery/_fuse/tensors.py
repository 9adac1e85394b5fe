"""The tensors in the arguments and results of a call, and their device."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors in nested lists, tuples, mappings and other containers known to torch."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def device_of(module: nn.Module, arguments: Any = ()) -> torch.device:
    """Return the device of the first tensor in a call of ``module``, or else of its parameters."""
    tensors = (*tensors_in(arguments), *module.parameters())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))
