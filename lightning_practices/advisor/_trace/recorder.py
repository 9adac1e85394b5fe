"""Record the calls of functions while a step runs."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from lightning_practices._names import module_name, plain_name
from lightning_practices.advisor._kinds import ACTIVATIONS, CLAMPS, LAYERS, NORMS, SOFTMAXES
from lightning_practices.advisor._trace.calls import Call, Statistics, Value
from lightning_practices.advisor._trace.idioms import Given, plain
from lightning_practices.advisor._trace.losses import LOSSES

_MEASURED = LAYERS | NORMS | ACTIVATIONS | CLAMPS | SOFTMAXES | LOSSES.keys()
_COLUMNS = 4096  # of a value, about, whose variation is measured
_KEPT = LOSSES.keys() | {"sub", "__sub__", "__rsub__", "rsub"}  # the last are parts of losses
_KEPT |= {"cosine_embedding_loss", "margin_ranking_loss"}
_READING = frozenset(
    {"item", "tolist", "numpy", "equal", "allclose"}
    | {f"__{kind}__" for kind in ("array", "bool", "int", "float", "index", "contains", "dlpack")}
)
_TORCH = f"{Path(torch.__file__).parent}{os.sep}"


class Recorder(TorchFunctionMode):
    """Records the calls of functions on tensors, while :attr:`is_on`.

    Calls within torch's own functions aren't recorded: ``cross_entropy`` is one call. Neither are
    those of torch's optimizers and of hooks that watch them: a parameter that an optimizer has
    moved is still the parameter. What a closure calls is recorded.

    Args:
        module: The module. The names of calls' modules are as in its ``named_modules``.

    Attributes:
        is_on: Whether calls are recorded.
        calls: The calls since the last :meth:`begin`.
        read: Sources of the batch's tensors that a step has read out of torch, as by ``item``.
        failure: The last exception that one of torch's losses raised, and its call.
        own_backward: The last line at which a step called ``backward`` by itself; may be empty.
        before_backward: Is called with each tensor whose ``backward`` a step calls by itself.
        after_backward: Is called after it.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.is_on = False
        self.calls: list[Call] = []
        self.read: set[str] = set()
        self.failure: tuple[Exception, Call] | None = None
        self.own_backward = ""
        self.before_backward: Callable[[Tensor], None] = lambda loss: None
        self.after_backward: Callable[[], None] = lambda: None
        self._values: Any = WeakTensorKeyDictionary()
        self._stack: list[str] = []
        self._module = module

    def begin(self, batch: Any) -> None:
        """Forget the calls of the step before, and record those of a step on ``batch``."""
        self.calls, self.read = [], set()
        self._values = WeakTensorKeyDictionary()
        for name, p in self._module.named_parameters():
            self._enter(p, f"parameter {plain_name(name)}")
        for name, buffer in self._module.named_buffers():
            self._enter(buffer, f"buffer {plain_name(name)}")
        for path, x in tree_flatten_with_path(batch)[0]:
            if isinstance(x, Tensor):
                value = self._enter(x, f"batch{keystr(path)}", is_data=True)
                value.tensor = x.detach()
        self.is_on = True

    def value_of(self, x: Tensor) -> Value:
        """Return the value of a tensor. One that no call has made is a constant."""
        found: Value | None = self._values.get(x)
        if found is None:
            return self._enter(x, "constant")
        if found.call is not None and x.requires_grad and not found.requires_grad:
            return self._note_unknown(x, found)
        return found

    @contextmanager
    def watching(self) -> Iterator["Recorder"]:
        """Run the block with the recorder as a mode of torch, and note which modules run."""
        handles = list(self._hooks())
        try:
            with self:
                yield self
        finally:
            for handle in handles:
                handle.remove()
            del self.before_backward, self.after_backward  # may refer to what holds the recorder

    def _hooks(self) -> Iterator[RemovableHandle]:
        for name, module in self._module.named_modules():
            if not name or isinstance(module, torch.jit.ScriptModule):
                continue
            name = module_name(name)

            def enter(module: nn.Module, args: Any, name: str = name) -> None:
                self._stack.append(name)

            def leave(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                if name in self._stack:  # after an exception within, more than the last may be left
                    del self._stack[len(self._stack) - 1 - self._stack[::-1].index(name) :]

            yield module.register_forward_pre_hook(enter)
            yield module.register_forward_hook(leave, always_call=True)

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.is_on or _is_of_optimizers(sys._getframe(1).f_code.co_filename):
            return func(*args, **kwargs)
        if func is Tensor.backward:
            return self._backward(args, kwargs)
        # The values before the call: functions in place change them.
        given = tree_map(self._noted, (tuple(args), kwargs))
        name = getattr(func, "__name__", "")
        try:
            result = func(*args, **kwargs)
        except Exception as error:
            if name in LOSSES:
                call = self._call(name, given)
                call.outputs.append(Value((), torch.float32, True, call, is_data=bool(call.data)))
                _keep(call.inputs, (args, kwargs))
                self.failure = error, call
            raise
        made = [args[0]] if name == "__setitem__" else tree_leaves(result)
        made = [x for x in made if isinstance(x, Tensor)]
        if made:
            self._note(_plain(name), given, (args, kwargs), made)
        elif name in _READING:
            self.read |= {str(x.source) for x in tree_leaves(given) if isinstance(x, Value)}
        return result

    def _backward(self, args: Any, kwargs: dict[str, Any]) -> None:
        path, number = _place()
        self.own_backward = f"{os.path.basename(path)}:{number}" if path else ""
        self.before_backward(args[0])
        if args[0].requires_grad:  # if not, a rule says why, where torch would raise
            Tensor.backward(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.after_backward()

    def _noted(self, x: Any) -> Any:
        return self.value_of(x) if isinstance(x, Tensor) else x

    def _enter(self, x: Tensor, source: str, is_data: bool = False) -> Value:
        value = Value(tuple(x.shape), x.dtype, x.requires_grad, source=source, is_data=is_data)
        _keep_number(value, x)
        self._values[x] = value
        return value

    def _call(self, name: str, given: Any) -> Call:
        args, kwargs = given
        module = self._stack[-1] if self._stack else ""
        path, number = _place()
        line = f"{os.path.basename(path)}:{number}" if path else ""
        call = Call(name, args, kwargs, module, tuple(self._stack), line, len(self.calls), path)
        self.calls.append(call)
        return call

    def _note(self, name: str, given: Any, tensors: Any, made: list[Tensor]) -> None:
        known = plain(Given(name, *given), tensors)
        call = self._call(known.name, (known.args, known.kwargs))
        call.written = name
        inputs = call.inputs
        is_layer = call.is_layer
        depth = max((x.depth for x in inputs), default=0)
        is_data = any(x.is_data for x in inputs)
        if name in _KEPT or (is_layer and depth == 0 and is_data):
            _keep(inputs, tensors)
        if name == "multi_head_attention_forward":  # its masks
            for one, x in zip(inputs, _tensors(tensors), strict=True):
                one.tensor = one.tensor if x.requires_grad else x.detach()
        for x in made:
            value = Value(
                tuple(x.shape), x.dtype, x.requires_grad, call,
                depth=depth + is_layer, is_data=is_data,
            )  # fmt: skip
            _keep_number(value, x)
            self._values[x] = value
            call.outputs.append(value)
        if is_data and name in _MEASURED and made[0].is_floating_point():
            call.output.statistics = Statistics.of(made[0])
            call.output.variation = _variation(made[0].detach())

    def _note_unknown(self, x: Tensor, found: Value) -> Value:
        """Note a tensor that got its gradient after it was made, as by an autograd function."""
        name = x.grad_fn.name() if x.grad_fn is not None else "requires_grad"
        call = self._call(name, ((found,), {}))
        value = Value(
            found.shape, found.dtype, True, call, depth=found.depth, is_data=found.is_data
        )
        self._values[x] = value
        call.outputs.append(value)
        return value


def _variation(x: Tensor) -> float | None:
    """Return the standard deviation along the first dimension, as a root mean square."""
    if x.dim() < 2 or x.shape[0] < 2 or not x.numel():
        return None
    rows = x.flatten(1)
    rows = rows[:, :: max(1, rows.shape[1] // _COLUMNS)]
    wide = rows if rows.dtype == torch.float64 else rows.float()
    wide = wide - wide[:1]  # so that equal rows have no variation, in spite of rounding
    return float((wide - wide.mean(dim=0)).square_().mean().sqrt())


def _keep(inputs: list[Value], tensors: Any) -> None:
    for value, x in zip(inputs, _tensors(tensors), strict=True):
        if value.tensor is None and value.parameter is None:
            value.tensor = x.detach()


def _keep_number(value: Value, x: Tensor) -> None:
    """Keep a constant of one element, such as the factor of a loss."""
    if x.numel() == 1 and not (value.is_data or value.requires_grad):
        value.tensor = x.detach()


def _tensors(value: Any) -> list[Tensor]:
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]


def _plain(name: str) -> str:
    if name.startswith("__"):
        return f"__{name[3:]}" if name.startswith("__i") and name[3:6] in _IN_PLACE else name
    return name.strip("_").removeprefix("special_")


_IN_PLACE = ("add", "sub", "mul", "tru", "pow", "mat")  # of __iadd__ and the others


def _place() -> tuple[str, int]:
    """Return file and line of the nearest caller outside of torch and of this package's advisor."""
    frame = sys._getframe(3)
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith((_TORCH, _HERE)):
            return path, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return "", 0


@lru_cache(maxsize=4096)
def _is_of_optimizers(path: str) -> bool:
    """Whether a file is one of torch's optimizers, or watches optimizers."""
    is_torchs = path.startswith(_OPTIMIZERS) and os.path.basename(path) != "swa_utils.py"
    return is_torchs or path == _HOOKS


_OPTIMIZERS = f"{Path(torch.optim.__file__ or '').parent}{os.sep}"
_HERE = str(Path(__file__).parent)
_HOOKS = str(Path(__file__).parents[1] / "_optimizer_steps.py")
