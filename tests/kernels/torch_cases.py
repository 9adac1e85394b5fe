"""PyTorch's own test cases of its norms and dropouts.

``torch.testing._internal`` forbids changes of ``torch.backends`` in the process that imports it,
and Lightning's Trainer makes such changes. So another process, which runs this file, imports it and
writes the cases to a file.
"""

import contextlib
import functools
import itertools
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

FUNCTIONS = (
    "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "dropout", "dropout2d",
    "dropout3d", "alpha_dropout", "feature_alpha_dropout",
)  # fmt: skip
MODULES = (
    "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LayerNorm", "GroupNorm", "RMSNorm",
    "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d",
)  # fmt: skip
LAYOUTS: tuple[str, ...] = ("contiguous", "strided", "expanded")
# Shapes of up to five dimensions, many with a size of 0. From four dimensions on the last are 2.
SHAPES = [
    (*sizes, *(2,) * (rank - 3))
    for rank in range(6)
    for sizes in itertools.product((0, 1, 2) if rank < 4 else (0, 2), repeat=min(rank, 3))
]
INTERPRETED_SHARE = 10  # the interpreter is slow: it computes every tenth case,
INTERPRETED_SAMPLES = 3  # and of its input so many samples, each of which takes a program

Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments


class Case(NamedTuple):
    """One call, and the memory layout of its gradient.

    Attributes:
        where: Dtype and number of the case.
        call: The arguments of the function, or of the layer's ``forward``.
        made: The arguments of the layer's constructor, and whether it trains.
        layout: One of ``LAYOUTS``.
    """

    where: str
    call: Call
    made: tuple[Call, bool] | None
    layout: str


def cases(kind: str, name: str, interpreted: bool) -> Iterator[Case]:
    """Yield PyTorch's cases of a function or module, in each layout of the gradient.

    Args:
        kind: ``"functions"`` or ``"modules"``.
        name: Name of the function or of the class.
        interpreted: Whether to return every tenth case alone, in the layouts by turns, with the
            first samples of its input alone.
    """
    drawn = _drawn()[kind]
    number = 0
    for each in drawn:
        for where, call, made in drawn[each]:
            number += 1
            turn, rest = divmod(number, INTERPRETED_SHARE)
            layouts = LAYOUTS
            if interpreted:
                layouts = LAYOUTS[turn % 3 :][:1] if rest == 0 else ()
                call = _of_few_samples(call)
            if each == name:
                for layout in layouts:
                    yield Case(f"{where}, {layout}", call, made, layout)


def _of_few_samples(call: Call) -> Call:
    (x, *others), keywords = call
    few = x[:INTERPRETED_SAMPLES] if x.dim() > 1 else x
    return (few.detach().requires_grad_(x.requires_grad), *others), keywords


def errors(kind: str) -> list[tuple[str, Call, Any]]:
    """Return PyTorch's erroneous calls: name, arguments and the class of the error.

    For modules the calls are those of the constructor, and the third entry is a tuple of the class
    and the arguments of ``forward``, or ``None`` if the constructor raises.
    """
    found: list[tuple[str, Call, Any]] = _drawn()[f"errors of {kind}"]
    return found


def laid_out(x: Tensor, layout: str) -> Tensor:
    """Return ``x``, or a tensor of its shape and dtype in another memory layout.

    ``"strided"``: every second element of memory. ``"expanded"``: the first dimension has stride 0.
    """
    if layout == "contiguous" or (x.dim() == 0 and layout == "expanded"):
        return x
    if layout == "expanded":
        return x[:1].expand(x.shape)
    return torch.stack([x, torch.ones_like(x)], -1)[..., 0]


def outcome(function: Callable[..., Tensor], *args: Any) -> Tensor | Exception:
    """Return the result of a call or its error, from the first random numbers on."""
    torch.manual_seed(0)
    try:
        return function(*args)
    except Exception as error:
        return error


@contextlib.contextmanager
def naming(case: Case) -> Iterator[None]:
    """Add the name of the case to an error."""
    try:
        yield
    except Exception as error:
        error.add_note(f"PyTorch's case {case.where}")
        raise


@functools.cache
def _drawn() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cases.pt")
        done = subprocess.run(
            [sys.executable, __file__, str(path)], capture_output=True, text=True, check=False
        )
        if "No module named 'expecttest'" in done.stderr:
            pytest.skip("torch.testing._internal needs expecttest, which is in the extra `dev`")
        assert done.returncode == 0, done.stderr
        drawn: dict[str, Any] = torch.load(path, weights_only=False)
        return drawn


def _of_functions(op_db: Any) -> tuple[dict[str, Any], list[Any]]:
    """Return the cases of each function, and the erroneous calls."""
    drawn: dict[str, list[Any]] = {name: [] for name in FUNCTIONS}
    wrong: list[Any] = []
    for op in op_db:
        name = op.name.removeprefix("nn.functional.")
        if name not in FUNCTIONS:
            continue
        backward = op.supported_backward_dtypes("cpu")
        for dtype in sorted(op.supported_dtypes("cpu"), key=str):
            samples = op.reference_inputs("cpu", dtype, requires_grad=dtype in backward)
            for index, sample in enumerate(samples):
                call = (sample.input, *sample.args), sample.kwargs
                drawn[name].append((f"{op.variant_test_name} {dtype} {index}", call, None))
        if op.error_inputs_func is not None:
            for error in op.error_inputs("cpu"):
                sample = error.sample_input
                call = (sample.input, *sample.args), sample.kwargs
                wrong.append((name, call, error.error_type))
    return drawn, wrong


def _of_modules(module_db: Any) -> tuple[dict[str, Any], list[Any]]:
    """Return the cases of each module, and the erroneous calls."""
    drawn: dict[str, list[Any]] = {name: [] for name in MODULES}
    wrong: list[Any] = []
    for module in module_db:
        name = module.module_cls.__name__
        if name not in MODULES:
            continue
        for dtype in module.dtypes:
            for training in (True, False):
                _add_module(module, dtype, training, drawn[name], wrong)
    return drawn, wrong


def _add_module(module: Any, dtype: Any, training: bool, drawn: Any, wrong: Any) -> None:
    options = {"device": "cpu", "dtype": dtype, "requires_grad": True, "training": training}
    for index, each in enumerate(module.module_inputs_func(module, **options)):
        made = each.constructor_input.args, each.constructor_input.kwargs
        forward = each.forward_input.args, each.forward_input.kwargs
        mode = "training" if training else "evaluation"
        drawn.append((f"{dtype} {index} in {mode}", forward, (made, training)))
    if module.module_error_inputs_func is None:
        return
    for error in module.module_error_inputs_func(module, **options):
        each = error.module_error_input
        made = each.constructor_input.args, each.constructor_input.kwargs
        call: Call | None = None
        if error.error_on.name == "FORWARD_ERROR":
            call = each.forward_input.args, each.forward_input.kwargs
        wrong.append((module.module_cls.__name__, made, (error.error_type, call)))


def _write(path: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of packages that it looks for
        from torch.testing._internal.common_methods_invocations import op_db
        from torch.testing._internal.common_modules import module_db
    torch.manual_seed(0)
    functions, wrong_functions = _of_functions(op_db)
    modules, wrong_modules = _of_modules(module_db)
    torch.save(
        {
            "functions": functions,
            "modules": modules,
            "errors of functions": wrong_functions,
            "errors of modules": wrong_modules,
        },
        path,
    )


def mapped(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Return ``value`` with ``function`` applied to each tensor in its tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple | list):
        return type(value)(mapped(function, each) for each in value)
    if isinstance(value, dict):
        return {key: mapped(function, each) for key, each in value.items()}
    return value


if __name__ == "__main__":
    _write(sys.argv[1])
