"""Read one block's forward into a graph, with all that the graph takes for granted."""

import builtins
import functools
import inspect
import operator
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.proxy import Attribute, Proxy
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

MISSING = object()  # in place of an attribute that a module doesn't have

_PLAIN = (bool, int, float, complex, str, bytes, type(None), Enum, torch.dtype, torch.device)
_BY_IDENTITY = (FunctionType, BuiltinFunctionType, type, ModuleType, functools.partial, torch.Size)
_READABLE = ("shape", "ndim", "device", "data", "T", "mT", "H", "mH")  # of a tensor, no methods
_IN_PLACE = (
    "iadd", "iand", "ifloordiv", "ilshift", "imatmul", "imod", "imul", "ior", "ipow", "irshift",
    "isub", "itruediv", "ixor",
)  # fmt: skip
_AUTOCAST = ("cpu", "cuda")
_TRACING = ("torch.fx.", "torch.nn.parameter", "torch.utils._pytree")  # whose questions are fx's


class UnreadableError(Exception):
    """A block can't be folded; the message says why."""


@dataclass(frozen=True)
class Reading:
    """What a block's forward does.

    Attributes:
        graph: Its operations; every module that it calls is a node.
        inputs: How many positional arguments it takes. All others have their defaults.
        kind: The class of which each of them was an instance.
        touched: The modules whose members it has looked at, the block itself included.
        values: What it found in their attributes; of a method the function, of a parameter or
            buffer, and of those alone, ``Tensor``.
    """

    graph: torch.fx.Graph
    inputs: int
    kind: type
    touched: frozenset[nn.Module]
    values: dict[tuple[nn.Module, str], Any]


def read(block: nn.Module) -> list[Reading]:
    """Read ``block``'s forward, for tensors and, if it asks for their type, for a list of them.

    Each is read twice: with gradients and autocast, and without either. What depends on them shows.

    Raises:
        UnreadableError: If it does something that a graph can't show; the block is as before.
    """
    readings: list[Reading] = []
    problem = None
    for kind in (Tensor, list):
        asked: list[bool] = []
        try:
            readings.append(_read_twice(block, kind, asked))
        except UnreadableError as error:
            problem = problem or error
        if not asked:
            break
    if problem is not None and not readings:
        raise problem
    return readings


def _read_twice(block: nn.Module, kind: type, asked: list[bool]) -> Reading:
    tracers = []
    for enabled in (True, False):
        tracers.append(_Tracer(block, kind, asked))
        with torch.set_grad_enabled(enabled), _autocast(enabled), _own_random_numbers():
            tracers[-1].read()
    first, second = tracers
    if _listing(first) != _listing(second):
        raise UnreadableError("its forward depends on whether gradients or autocast are enabled")
    touched, values = first.touched | second.touched, {**first.values, **second.values}
    return Reading(first.graph, first.inputs, kind, frozenset(touched), values)


def _listing(tracer: "_Tracer") -> list[tuple[Any, ...]]:
    nodes = tracer.graph.nodes
    return [(n.op, n.target, n.name, str(n.args), str(n.kwargs)) for n in nodes]


@contextmanager
def _autocast(enabled: bool) -> Iterator[None]:
    """Set autocast as ``torch.autocast`` would, on devices too that are not here."""
    before = [torch.is_autocast_enabled(device) for device in _AUTOCAST]
    try:
        for device in _AUTOCAST:
            torch.set_autocast_enabled(device, enabled)
        yield
    finally:
        for device, was_enabled in zip(_AUTOCAST, before, strict=True):
            torch.set_autocast_enabled(device, was_enabled)


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Give Python's and NumPy's generators back as they were, and raise if they were used."""
    numpy: Any = sys.modules.get("numpy")
    python_state, numpy_state = random.getstate(), numpy and numpy.random.get_state()
    try:
        yield
    finally:
        used = random.getstate() != python_state
        random.setstate(python_state)
        if numpy:
            used |= str(numpy.random.get_state()) != str(numpy_state)
            numpy.random.set_state(numpy_state)
    if used:
        raise UnreadableError("its forward draws random numbers")


class _NoTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuse to compute: a result would be the same in every call."""

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Tensor:
        raise UnreadableError(f"its forward computes {func} on other tensors than its inputs")


def _reader(depth: int) -> str:
    """Return the module of the function that has called, so many calls above."""
    name: str = sys._getframe(depth).f_globals.get("__name__", "")
    return name


class _Value(Proxy):
    """What stands for a value in the block's forward; fx's own answers some questions wrongly."""

    tracer: "_Tracer"

    @override
    def __getattr__(self, name: str) -> Any:
        known = callable(getattr(Tensor, name, None)) or name in _READABLE
        if not (known or _reader(2).startswith("torch.")):
            raise self.tracer.refuse(f"its forward reads the {name} of a value")
        return _Attribute(self, name)

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        if not _reader(2).startswith("torch.fx."):
            raise self.tracer.refuse(f"its forward sets the {name} of a value")
        super().__setattr__(name, value)


class _Attribute(Attribute, _Value):
    """An attribute of a value."""


def _in_place(name: str) -> Callable[[Any, Any], Any]:
    """Return an operator that fx writes down as a call, not as a statement that rebinds a name."""
    operation = getattr(operator, name)

    def call(left: Any, right: Any) -> Any:
        return operation(left, right)

    def record(self: _Value, other: Any) -> Proxy:
        return self.tracer.create_proxy("call_function", call, (self, other), {})

    call.__name__ = call.__qualname__ = name
    setattr(_Value, f"__{name}__", record)  # fx's Proxy has none: it would add to a new tensor
    return call


IN_PLACE = {name: _in_place(name) for name in _IN_PLACE}


class _Tracer(torch.fx.Tracer):
    """Records one block's own operations, and what its forward reads of modules' attributes."""

    proxy_buffer_attributes = True

    def __init__(self, block: nn.Module, kind: type, asked: list[bool]) -> None:
        super().__init__()
        self.block = block
        self.modules = set(block.modules())
        self.kind, self.asked = kind, asked
        self.inputs = 0
        self.touched: set[nn.Module] = {block}
        self.values: dict[tuple[nn.Module, str], Any] = {}
        self.problem: UnreadableError | None = None

    def read(self) -> None:
        """Trace the block, and leave it as it was.

        Raises:
            UnreadableError: For whatever reason it can't be traced.
        """
        self.modes = _modes()
        try:
            with _NoTensors():  # type: ignore[no-untyped-call]
                self.trace(self.block)
        except UnreadableError:
            raise
        except Exception as error:  # it is the block's own code, and meets values without a value
            lines = str(error).splitlines() or [""]
            raise UnreadableError(
                f"its forward can't be read: {type(error).__name__}: {lines[0]}"
            ) from error
        if self.problem is not None:  # and the forward has caught it
            raise self.problem

    def refuse(self, reason: str) -> UnreadableError:
        """Return what to raise, and remember it."""
        self.problem = UnreadableError(reason)
        return self.problem

    def is_instance(self, value: _Value, kinds: Any) -> bool:
        """Return what ``isinstance`` is to say of ``value``."""
        if issubclass(type(value), Attribute) or value.node.op != "placeholder":
            raise self.refuse("its forward asks for the type of a result")
        self.asked.append(True)
        return issubclass(self.kind, kinds)

    @override
    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        parameters = [*inspect.signature(root_fn).parameters.values()][1:]
        required = [p for p in parameters if p.default is p.empty]
        names = [p.name for p in required if p.kind is p.POSITIONAL_OR_KEYWORD]
        if any(p.kind is p.KEYWORD_ONLY for p in required):
            raise UnreadableError("its forward has a keyword argument without a default")
        self.inputs = len(names)
        values = [self.create_proxy("placeholder", name, (), {}) for name in names]

        @functools.wraps(root_fn)
        def forward(*args: Any) -> Any:
            with self._watching():
                return root_fn(*args)

        return forward, [self.root, *values]

    @override
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    @override
    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if type(m).__call__ is not nn.Module.__call__:  # would run here, and again in the graph
            raise self.refuse(f"{type(m).__name__} overrides __call__")
        return super().call_module(m, forward, args, kwargs)

    @override
    def proxy(self, node: torch.fx.Node) -> Proxy:
        return _Value(node, self)

    @override
    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> torch.fx.Node:
        if _modes() != self.modes:
            raise self.refuse("its forward switches gradients, autocast or saved tensors' hooks")
        return super().create_node(kind, *args, **kwargs)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Note what is read of the block's modules, and let nothing of them be set."""
        set_attribute, delete_attribute = nn.Module.__setattr__, nn.Module.__delattr__
        is_instance = builtins.isinstance

        def get(module: nn.Module, name: str) -> Any:
            try:
                value = object.__getattribute__(module, name)
            except AttributeError:
                self._note(module, name, MISSING)
                raise
            self._note(module, name, value)
            return value

        def change(module: nn.Module, name: str, *value: Any) -> None:
            if module in self.modules:
                raise self.refuse(f"its forward changes the attribute {name!r}")
            (set_attribute if value else delete_attribute)(module, name, *value)

        def ask(value: Any, kinds: Any) -> bool:
            # Not by a property ``__class__``: torch's C++ would take the value for a tensor.
            if issubclass(type(value), _Value) and not _reader(2).startswith(_TRACING):
                return self.is_instance(value, kinds)
            return is_instance(value, kinds)

        patched = {"__getattribute__": get, "__setattr__": change, "__delattr__": change}
        try:
            for name, function in patched.items():
                setattr(nn.Module, name, function)
            builtins.isinstance = ask
            yield
        finally:
            builtins.isinstance = is_instance
            del nn.Module.__getattribute__
            nn.Module.__setattr__ = set_attribute  # type: ignore[method-assign]
            nn.Module.__delattr__ = delete_attribute  # type: ignore[method-assign]

    def _note(self, module: nn.Module, name: str, value: Any) -> None:
        internal = _reader(3).startswith(("torch.nn.modules.module", *_TRACING))
        if module not in self.modules or name == "__class__" or internal:
            return
        self.touched.add(module)
        own = object.__getattribute__(module, "__dict__")
        if value is MISSING:
            for members in ("_modules", "_parameters", "_buffers"):
                value = own[members].get(name, value)
        if name == "_modules" or isinstance(value, nn.Module):
            return
        if isinstance(value, Tensor) and name not in own:
            value = Tensor  # a parameter or buffer, of which the graph reads the value
        elif isinstance(value, MethodType) and value.__self__ is module:
            if (value.__module__ or "").startswith("torch.") and name not in own:
                return
            value = value.__func__
        elif not _is_constant(value):
            raise self.refuse(
                f"its forward reads the attribute {name!r}, a {type(value).__name__}, which can"
                " change unnoticed"
            )
        self.values[module, name] = value


def _is_constant(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_constant, value))
    return value is MISSING or isinstance(value, (*_PLAIN, *_BY_IDENTITY))


def _modes() -> tuple[Any, ...]:
    """Return what a ``with`` in a forward may change, which the graph would not show."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *(torch.is_autocast_enabled(device) for device in _AUTOCAST),
        torch._C._autograd._top_saved_tensors_default_hooks(True),
    )
