"""Arguments have the names, the order and the defaults of the functions and classes replaced."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torchvision import ops
from torchvision.models import convnext, vision_transformer

import lightning_kernels
import lightning_practices.nn

pytestmark = pytest.mark.plain

_HOMES: tuple[Any, ...] = (nn, F, ops, convnext, vision_transformer, nn.utils)
# These choose an implementation of torch's.
_LEFT_OUT = {"foreach"}


def _replaced(name: str) -> Any:
    return next((getattr(home, name) for home in _HOMES if hasattr(home, name)), None)


def _pairs() -> list[tuple[Callable[..., Any], Callable[..., Any]]]:
    """Return the functions, classes and ``forward`` methods of this package, and those replaced."""
    found = []
    for package in (lightning_kernels, lightning_practices.nn):
        for name in package.__all__:
            ours, theirs = getattr(package, name), _replaced(name)
            if theirs is not None:
                found.append((ours, theirs))
            if theirs is not None and isinstance(ours, type):
                found.append((ours.forward, theirs.forward))  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(("ours", "theirs"), _pairs(), ids=lambda f: f.__qualname__)
def test_arguments_are_those_of_the_replaced(
    ours: Callable[..., Any], theirs: Callable[..., Any]
) -> None:
    mine = inspect.signature(ours).parameters
    expected = inspect.signature(theirs).parameters
    common = [p for p in expected.values() if p.name not in _LEFT_OUT]
    positional = [p for p in common if p.kind is p.POSITIONAL_OR_KEYWORD]
    for got, wanted in zip([*mine.values()], positional, strict=False):
        assert (got.name, got.default, got.kind) == (wanted.name, wanted.default, wanted.kind)
    assert len(mine) >= len(common)
    for wanted in common:
        assert mine[wanted.name].default == wanted.default
    assert not [p for p in mine.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def test_most_functions_and_classes_have_a_counterpart() -> None:
    assert len(_pairs()) >= 60
