"""Inputs that are no floating-point tensors: torch's result, or torch's class of error."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import lightning_kernels as lk

DTYPES = (torch.int64, torch.uint8, torch.bool, torch.complex64)
_DROPOUTS = (
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
)  # fmt: skip


def _calls() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield the names of functions that torch has, too, and the arguments after the input."""
    yield "batch_norm", (None, None, None, None, True)
    yield "batch_norm", (torch.zeros(3), torch.ones(3))
    yield "layer_norm", ((4,),)
    yield "rms_norm", ((4,),)
    yield "group_norm", (3,)
    yield "instance_norm", ()
    for name in _DROPOUTS:
        for p in (0.0, 0.5, 1.0):
            yield from ((name, (p, training)) for training in (True, False))


def _outcome(function: Callable[..., Tensor], *args: Any) -> Tensor | Exception:
    try:
        return function(*args)
    except Exception as error:
        return error


@pytest.mark.plain
@pytest.mark.parametrize(("name", "others"), list(_calls()), ids=str)
@pytest.mark.filterwarnings("ignore:dropout")
def test_other_dtypes_are_treated_as_torch_does(name: str, others: tuple[Any, ...]) -> None:
    for dtype in DTYPES:
        x = torch.ones(2, 3, 4, dtype=dtype)
        theirs = _outcome(getattr(F, name), x.clone(), *others)
        ours = _outcome(getattr(lk, name), x.clone(), *others)
        if isinstance(theirs, Tensor):
            assert isinstance(ours, Tensor)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        else:
            assert isinstance(ours, type(theirs)), (dtype, ours, theirs)
            assert any(str(dtype) in note for note in ours.__notes__)


@pytest.mark.plain
def test_gradients_of_complex_numbers_by_rms_norm() -> None:
    x = torch.randn(5, 4, dtype=torch.complex64, requires_grad=True)
    w = torch.randn(4, dtype=torch.complex64, requires_grad=True)
    y = lk.rms_norm(x, (4,), w)
    expected = F.rms_norm(x, (4,), w)
    assert torch.equal(y, expected)
    grad = torch.randn_like(y)
    for mine, theirs in zip(
        torch.autograd.grad(y, (x, w), grad), torch.autograd.grad(expected, (x, w), grad),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("got", [None, 1.5, "x", [1.0]], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_an_input_that_is_no_tensor(got: Any, training: bool) -> None:
    rest: dict[str, tuple[Any, ...]] = dict(_calls())
    rest |= {
        "drop_block2d": (0.1, 3), "drop_block3d": (0.1, 3), "stochastic_depth": (0.1, "row"),
        "dropout_activation": ("relu",), "add_dropout_layer_norm": (None, (4,)),
        "add_dropout_rms_norm": (None, (4,)),
    }  # fmt: skip
    rest |= dict.fromkeys(_DROPOUTS, (0.5, training))
    for name, others in rest.items():
        with pytest.raises(TypeError, match=f"{name} expects the input as a torch.Tensor"):
            getattr(lk, name)(got, *others)


def test_another_argument_that_is_no_tensor(device: str) -> None:
    x: Any = torch.ones(2, 4, 4, 4, device=device)
    calls: dict[str, Callable[[Any], Any]] = {
        "layer_norm expects weight": lambda bad: lk.layer_norm(x, (4,), bad),
        "rms_norm expects weight": lambda bad: lk.rms_norm(x, (4,), bad),
        "batch_norm expects running_mean": lambda bad: lk.batch_norm(x, bad, bad),
        "batch_norm expects residual": lambda bad: lk.batch_norm(
            x, None, None, training=True, residual=bad
        ),
        "group_norm expects bias": lambda bad: lk.group_norm(x, 2, None, bad),
        "instance_norm expects weight": lambda bad: lk.instance_norm(x, weight=bad),
        "dropout_activation expects bias": lambda bad: lk.dropout_activation(x, None, bias=bad),
        "stochastic_depth expects layer_scale": lambda bad: lk.stochastic_depth(
            x, 0.1, "row", layer_scale=bad
        ),
        "add_dropout_layer_norm expects residual": lambda bad: lk.add_dropout_layer_norm(
            x, bad, (4,)
        ),
    }
    for message, call in calls.items():
        name, argument = message.split(" expects ")
        with pytest.raises(TypeError, match=f"{name}.*{argument}.*Tensor.*float"):
            call(1.5)
