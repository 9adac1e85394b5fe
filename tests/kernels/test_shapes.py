"""Functions that torch has, too, take and refuse the shapes that torch's function does."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import lightning_kernels as lk
from tests.kernels.torch_cases import SHAPES, mapped, outcome

_DROPOUTS = (
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
)  # fmt: skip

# torch's warnings of numbers of dimensions
pytestmark = pytest.mark.filterwarnings("ignore:dropout")


def _arguments(name: str, shape: tuple[int, ...]) -> Iterator[tuple[Any, ...]]:
    """Yield arguments after the input, right ones and wrong ones."""
    if name in _DROPOUTS:
        yield from itertools.product((0.0, 0.5, 1.0), (True, False), (True, False))
    elif name in ("layer_norm", "rms_norm"):
        for size in {shape[place:] for place in range(-2, 1)} | {(0,), (2,), (2, 2), ()}:
            yield (size,)
            yield size, torch.full(size, 2.0)
    elif name == "group_norm":
        for groups in (-1, 0, 1, 2):
            yield (groups,)
            yield groups, torch.full((2,), 2.0), torch.ones(2)
    else:
        for mode in (True, False):
            yield None, None, None, None, mode
            for channels in (0, 1, 2):
                one = torch.ones(channels)
                yield 0.3 * one, one.clone(), None, None, mode
                yield 0.3 * one, one.clone(), 2 * one, one, mode
                yield None, None, 2 * one, one, mode


def _draws(name: str, x: Tensor, arguments: tuple[Any, ...]) -> bool:
    """Return whether a kernel draws a mask, which can't be the mask of torch."""
    return name in _DROPOUTS and arguments[:2] == (0.5, True) and lk.route(x) != "aten"


def _is_apart(name: str, x: Tensor, theirs: Tensor | Exception) -> bool:
    """Return whether instance norm of no samples is right here and wrong in torch.

    With a weight torch raises an IndexError. Running statistics become nan, and for one channel
    torch fills statistics of any shape.
    """
    if name != "instance_norm" or x.dim() < 2 or x.shape[0] > 0:
        return False
    return isinstance(theirs, IndexError) or x.shape[1] == 1


@pytest.mark.parametrize(
    "name", ["batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm", *_DROPOUTS]
)
def test_shapes_are_taken_and_refused_as_by_torch(name: str, device: str) -> None:
    returned = raised = 0
    for shape in SHAPES:
        x = torch.linspace(-1, 2, torch.Size(shape).numel()).reshape(shape)
        for given in _arguments(name, shape):
            theirs, ours = (
                outcome(getattr(module, name), *mapped(lambda t: t.to(device).clone(), (x, *given)))
                for module in (F, lk)
            )
            where = name, shape, given, ours, theirs
            if _is_apart(name, x, theirs):
                assert not isinstance(ours, Tensor) or ours.shape == x.shape, where
            elif isinstance(theirs, Tensor):
                returned += 1
                assert isinstance(ours, Tensor), where
                assert ours.shape == theirs.shape, where
                if not _draws(name, ours, given) and not torch.equal(ours, theirs):
                    torch.testing.assert_close(ours, theirs, equal_nan=True)
            else:
                raised += 1
                kinds = (ValueError, RuntimeError, NotImplementedError, type(theirs))
                assert isinstance(ours, kinds), where
    assert returned > 0
    assert (raised > 0) == (name not in ("dropout", "alpha_dropout"))
