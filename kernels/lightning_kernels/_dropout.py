"""Dropout."""

import torch
from torch import Tensor


def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """See torch.nn.functional.dropout."""
    return torch.nn.functional.dropout(x, p, training, inplace)
