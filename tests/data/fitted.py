"""Preprocessing layers, and data to fit them to."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_practices.data import (
    Compose,
    MeanSubtraction,
    MinMax,
    Preprocessing,
    Standardize,
    Whiten,
)

MAKERS: dict[str, Callable[..., Preprocessing]] = {
    "center": MeanSubtraction,
    "standardize": Standardize,
    "min_max": MinMax,
    "zca": Whiten,
    "pca": lambda **options: Whiten("pca", **options),
    "shrunk": lambda **options: Whiten(shrinkage=0.3, **options),
    "both": lambda **options: Compose([Standardize(**options), MinMax((0, 1), **options)]),
}


each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def features(rows: int = 103, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    mixing = torch.tensor([[2.0, 1, 0, 0], [0, 30, 0, 0], [0, 1, 0.1, 0], [5, 0, 0, 1]]).double()
    return (x @ mixing + torch.tensor([1e3, 0, -5, 0.1])).to(dtype)


def images(count: int = 21) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    colours = torch.tensor([0.2, 1.0, 3.0]).view(3, 1, 1)
    return torch.rand(count, 3, 4, 5, generator=generator) * colours


def statistics(layer: nn.Module) -> list[Tensor]:
    return list(layer.state_dict().values())
