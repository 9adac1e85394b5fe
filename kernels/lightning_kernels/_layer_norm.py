"""Layer norm."""

from collections.abc import Sequence

import torch
from torch import Tensor


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """See torch.nn.functional.layer_norm."""
    return torch.nn.functional.layer_norm(input, list(normalized_shape), weight, bias, eps)
