"""Nonsense for each argument of each function: an error names the argument.

The arguments are found by introspection, so those of a new function are tested without a further
line. Flags are left out: as in torch's functions, any object counts as true or false.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_type_hints

import pytest
import torch
from torch import Tensor

import lightning_kernels

pytestmark = pytest.mark.plain


class Strange:
    """An object of no use."""


NUMBERS = [float("nan"), 10**400]
OBJECTS: list[Any] = ["0.5", b"x", [Strange()], {5: 5}, Strange(), Strange]
ERRORS = (TypeError, ValueError, RuntimeError, NotImplementedError)
TAKEN: dict[str, list[Any]] = {
    "drop_block2d.block_size": [10**400],  # a larger block than the map is cut
    "drop_block3d.block_size": [10**400],
    "clip_grad_adaptive_.exclude": [[OBJECTS[2][0]], {5: 5}],  # excludes none of the parameters
}


def parameters() -> list[torch.nn.Parameter]:
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    return [p]


NEEDED: dict[str, Callable[[int], Any]] = {
    "calls": lambda dims: set(),
    "activation": lambda dims: "relu",
    "block_size": lambda dims: 2,
    "clip_value": lambda dims: 0.1,
    "input": lambda dims: torch.ones(2, 4, *[8] * dims),
    "max_norm": lambda dims: 0.1,
    "mode": lambda dims: "row",
    "norms": lambda dims: "kernels",
    "policy": lambda dims: "auto",
    "normalized_shape": lambda dims: (8,),
    "num_groups": lambda dims: 2,
    "p": lambda dims: 0.5,
    "parameters": lambda dims: parameters(),
    "residual": lambda dims: None,
    "running_mean": lambda dims: torch.zeros(4),
    "running_var": lambda dims: torch.ones(4),
    "total_norm": lambda dims: torch.tensor(2.0),
    "x": lambda dims: torch.ones(4, 8),
}


class Argument(NamedTuple):
    """An argument of a function."""

    function: Callable[..., Any]
    name: str
    hint: Any

    @property
    def key(self) -> str:
        return f"{self.function.__name__}.{self.name}"


def arguments() -> Iterator[Argument]:
    for owner in lightning_kernels.__all__:
        function = getattr(lightning_kernels, owner)
        if inspect.isfunction(function):
            for name, hint in get_type_hints(function).items():
                if name != "return" and hint not in (bool, Any):
                    yield Argument(function, name, hint)


ARGUMENTS = list(arguments())


@pytest.mark.parametrize("argument", ARGUMENTS, ids=[one.key for one in ARGUMENTS])
def test_nonsense_is_an_error_that_names_the_argument(argument: Argument) -> None:
    function, name, _ = argument
    dims = int("".join(re.findall(r"(\d)d$", function.__name__)) or 1)
    given = {
        key: NEEDED[key](dims)
        for key, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty
    }
    taken = [repr(value) for value in TAKEN.get(argument.key, ())]
    for value in [*NUMBERS, *OBJECTS]:
        if repr(value) in taken:
            continue
        with pytest.raises(ERRORS) as caught:
            function(**{**given, name: value})
        names = rf"\b{name}\b" if name not in ("input", "x") else r"\binput\b|\bx\b"
        assert re.search(names, str(caught.value)), f"{value!r:.60}: {caught.value!r:.300}"
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("eps", [float("nan"), -1.0, float("inf"), "0.1"])
def test_an_eps_that_no_norm_can_have(eps: Any) -> None:
    x = torch.ones(2, 4)
    calls: list[Callable[[], object]] = [
        lambda: lightning_kernels.add_dropout_layer_norm(x, None, (4,), eps=eps),
        lambda: lightning_kernels.add_dropout_rms_norm(x, None, (4,), eps=eps),
        lambda: lightning_kernels.batch_norm(x, None, None, training=True, eps=eps),
    ]
    for call in calls:
        with pytest.raises((TypeError, ValueError), match=r"expects .*eps"):
            call()


def test_a_tensor_is_no_number() -> None:
    values: list[Tensor] = [torch.zeros(2, 2), torch.zeros(2, dtype=torch.complex64)]
    for value in values:
        with pytest.raises(TypeError, match="expects eps as a number"):
            lightning_kernels.layer_norm(torch.ones(2, 4), (4,), eps=value)  # type: ignore[arg-type]
