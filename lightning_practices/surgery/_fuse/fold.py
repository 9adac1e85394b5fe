"""Give a block a class whose forward runs batch norms and what follows them in one call each."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_practices.nn import SyncBatchNorm
from lightning_practices.nn._batch_norm import FusedBatchNorm
from lightning_practices.nn._hooks import any_hook_on_all, is_touched
from lightning_practices.surgery._fuse.fold_graph import Fold, apply, find, relies_on
from lightning_practices.surgery._fuse.fold_read import MISSING, Reading, UnreadableError, read

_MARK = "_folds"  # in the namespace of a generated class: its instances have nothing new


class Folds(NamedTuple):
    """What a generated class was made for.

    Attributes:
        original: The block's class before.
        folded: The name in the block of each batch norm that is folded, and what with.
    """

    original: type[nn.Module]
    folded: tuple[tuple[str, str], ...]


class _Expected(NamedTuple):
    """What a folded forward takes for granted of one module.

    Attributes:
        parent: Place of its parent among the modules that expectations are about.
        name: Its name there, empty for the block itself, which is the first of them.
        types: Its class is one of these, and it has neither hooks nor a forward of its own;
            ``None`` if that doesn't matter.
        children: Names of its children, and of those that are ``None``; ``None`` if no matter.
        values: Attributes with what a :class:`Reading` has noted, and with the class of that.
    """

    parent: int
    name: str
    types: frozenset[type] | None
    children: tuple[tuple[str, ...], tuple[str, ...]] | None
    values: tuple[tuple[str, Any, type], ...]


class _Folding(NamedTuple):
    """A folded forward, and for which calls it stands.

    Attributes:
        source: Its Python code.
        names: What the code calls by global names.
        inputs: The number of its arguments.
        kind: Their class.
        expected: What else it takes for granted, parents before their children.
        aliases: Paths in the block that lead to the same module.
    """

    source: str
    names: tuple[tuple[str, Any], ...]
    inputs: int
    kind: type
    expected: tuple[_Expected, ...]
    aliases: tuple[tuple[tuple[str, ...], ...], ...]

    def holds(self, block: nn.Module, arguments: tuple[Any, ...]) -> bool:
        """Return whether ``block`` with these arguments is such a call.

        This is in the way of every call: loops rather than generators and functions of their own,
        and dictionaries rather than attributes, which a module looks up slowly.
        """
        if len(arguments) != self.inputs or any_hook_on_all():
            return False
        for argument in arguments:
            if not isinstance(argument, self.kind):
                return False
        states: list[dict[str, Any]] = []
        for parent, name, types, children, values in self.expected:
            module = states[parent]["_modules"][name] if name else block
            state = module.__dict__
            states.append(state)
            if types is not None and (type(module) not in types or is_touched(state)):
                return False
            if children is not None and children != _children(state):
                return False
            for attribute, value, cls in values:
                actual = getattr(module, attribute, MISSING)
                if actual is not value and not _is(actual, value, cls):
                    return False
        for first, *others in self.aliases:
            for path in others:
                if _at(block, path) is not _at(block, first):
                    return False
        return True

    def compiled(self) -> Callable[..., Any]:
        """Return the forward."""
        namespace = dict(self.names)
        exec(compile(self.source, "<folded>", "exec"), namespace)
        forward: Callable[..., Any] = namespace["forward"]
        return forward


@dataclass
class Plan:
    """How to fold a block.

    Attributes:
        cls: The class to give to it; ``None`` if there is nothing to fold.
        folded: The name in the block of each batch norm that is folded, and what with.
        refused: Each module that could not be, and why.
    """

    cls: type[nn.Module] | None = None
    folded: dict[str, str] = field(default_factory=dict)
    refused: dict[nn.Module, str] = field(default_factory=dict)


def own_norms(block: nn.Module) -> Iterator[nn.Module]:
    """Yield the batch norms that no other module's forward than ``block``'s is there to call."""
    if not runs(block):
        return
    holders = [block]
    for holder in holders:
        for child in holder.children():
            if isinstance(child, _BatchNorm):
                yield child
            elif not runs(child):
                holders.append(child)


def runs(module: nn.Module) -> bool:
    """Return whether ``module`` has a forward, which a ``ModuleList`` for one has not."""
    scripted = isinstance(module, torch.jit.ScriptModule)  # whose class has none
    return scripted or type(module).forward is not nn.Module.forward


def folds_of(cls: type) -> Folds | None:
    """Return what was folded, if that is what ``cls`` itself was made for."""
    folds: Folds | None = vars(cls).get(_MARK)
    return folds


def plan(block: nn.Module, fused: Mapping[nn.Module, type]) -> Plan:
    """Read ``block``, which stays as it is, and find what can be folded.

    Args:
        block: A module with a forward of its own.
        fused: Its batch norms that can be folded, with the class that each will have.
    """
    result = Plan()
    try:
        readings = read(block)
    except UnreadableError as error:
        result.refused[block] = str(error)
        return result
    foldings = [_fold(block, reading, fused, result) for reading in readings]
    for name in result.folded:
        result.refused.pop(block.get_submodule(name), None)  # as it was for other inputs
    if result.folded:
        kept = tuple(folding for folding in foldings if folding is not None)
        folded = tuple(result.folded.items())
        original: Any = type(block)
        result.cls = _folded_class(original, original.forward, folded, kept)
    return result


def _fold(
    block: nn.Module, reading: Reading, fused: Mapping[nn.Module, type], result: Plan
) -> _Folding | None:
    """Fold one reading's graph, and add to ``result`` what was done."""
    modules = dict(block.named_modules(remove_duplicate=False))
    folds: list[Fold] = []
    for node in reading.graph.nodes:
        norm = modules[node.target] if node.op == "call_module" else None
        if norm is None or norm not in fused:
            continue
        fold = find(node, modules)
        if isinstance(fold, Fold):
            if any(fold.last is other.last for other in folds):
                continue  # the other norm of a sum, and so its residual
            fold = _obstacle(fold, modules) or fold
        if isinstance(fold, Fold):
            folds.append(fold)
            result.folded[str(node.target)] = f"{type(norm).__name__} + {fold.chain}"
        elif fold is not None:
            result.refused[norm] = fold
    if not folds:
        return None
    expected = _expectations(reading, folds, modules, fused)
    aliases = _aliases(reading, modules)
    for fold in folds:
        apply(reading.graph, fold)
    for node in reading.graph.nodes:
        node.type = None  # else the code has the forward's annotations
    code = reading.graph.python_code("self")
    return _Folding(
        code.src, tuple(code.globals.items()), reading.inputs, reading.kind, expected, aliases
    )


def _obstacle(fold: Fold, modules: Mapping[str, nn.Module]) -> str | None:
    """Return what keeps one of the modules from being left out of the calls."""
    norm = modules[str(fold.norm.target)]
    if getattr(norm, "activation", None) is not None:
        return "it has an activation of its own"
    if sum(module is norm for module in modules.values()) > 1:
        return "it is shared"
    for name in relies_on(fold, modules):
        if is_touched(vars(modules[name])):
            return f"{name} has hooks or a forward of its own"
    return None


def _expectations(
    reading: Reading,
    folds: list[Fold],
    modules: Mapping[str, nn.Module],
    fused: Mapping[nn.Module, type],
) -> tuple[_Expected, ...]:
    """Return all that must be as it was when the block was read."""
    names = {module: name for name, module in reversed([*modules.items()])}
    types: dict[str, frozenset[type]] = {}
    values: dict[str, dict[str, Any]] = {}
    for (module, attribute), value in reading.values.items():
        values.setdefault(names[module], {})[attribute] = value
    for fold in folds:
        for name, attributes in relies_on(fold, modules).items():
            module = modules[name]
            kinds = {fused[module], SyncBatchNorm} if module in fused else {type(module)}
            types[name] = frozenset(kinds)
            values.setdefault(name, {}).update(attributes)
    looked_into = {names[module] for module in reading.touched}
    for name in {*looked_into, *types, *values}:
        while name:
            name = name.rpartition(".")[0]
            looked_into.add(name)
    known = sorted({*looked_into, *types, *values}, key=lambda name: name.split(".") * bool(name))
    return tuple(
        _Expected(
            known.index(name.rpartition(".")[0]),
            name.rpartition(".")[2],
            types.get(name),
            _children(vars(modules[name])) if name in looked_into else None,
            tuple((key, value, type(value)) for key, value in values.get(name, {}).items()),
        )
        for name in known
    )


def _aliases(
    reading: Reading, modules: Mapping[str, nn.Module]
) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Return the paths of each module that is called and has several names in the block."""
    called = {modules[node.target] for node in reading.graph.nodes if node.op == "call_module"}
    paths: dict[nn.Module, list[tuple[str, ...]]] = {module: [] for module in called}
    for name, module in modules.items():
        if module in called and modules[name.rpartition(".")[0]] in reading.touched:
            paths[module].append(tuple(name.split(".")))
    return tuple(tuple(several) for several in paths.values() if len(several) > 1)


def _at(block: nn.Module, path: tuple[str, ...]) -> Any:
    module: Any = block
    for name in path:
        module = module._modules[name]
    return module


def _children(state: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    children = state["_modules"]
    if None in children.values():
        return tuple(children), tuple([name for name in children if children[name] is None])
    return tuple(children), ()


def _is(actual: Any, value: Any, cls: type) -> bool:
    """Return whether an attribute is still what it was when a :class:`Reading` noted ``value``."""
    if type(actual) is MethodType:
        return actual.__func__ is value
    if value is Tensor:
        return isinstance(actual, Tensor)
    return type(actual) is cls and bool(actual == value)


@functools.cache
def _folded_class(
    original: type[nn.Module],
    forward: Callable[..., Any],
    folded: tuple[tuple[str, str], ...],
    foldings: tuple[_Folding, ...],
) -> type[nn.Module]:
    """Return a subclass of ``original`` that runs the folded forwards where they stand for its."""
    compiled = tuple((folding, folding.compiled()) for folding in foldings)

    @functools.wraps(forward)
    def run_folded(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not kwargs and original.forward is forward:
            for folding, run in compiled:
                if folding.holds(self, args):
                    return run(self, *args)
        return original.forward(self, *args, **kwargs)

    def reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
        # No module has this class under its name: pickle how to make it.
        return _blank, (original,), self.__getstate__()  # type: ignore[no-untyped-call]

    members = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    own = {"forward": run_folded, "__reduce_ex__": reduce, _MARK: Folds(original, folded)}
    return type(original.__name__, (original,), {**members, **own})


def _blank(original: type[nn.Module]) -> nn.Module:
    """Return an instance of ``original`` that will fold itself once it is given its state."""
    members = {"__module__": original.__module__, "__setstate__": _set_state}
    cls: type[nn.Module] = type(original.__name__, (original,), members)
    return cls.__new__(cls)


def _set_state(self: nn.Module, state: dict[str, Any]) -> None:
    object.__setattr__(self, "__class__", type(self).__bases__[0])
    self.__setstate__(state)  # type: ignore[no-untyped-call]
    if _is_complete(self):
        norms = [norm for norm in own_norms(self) if isinstance(norm, FusedBatchNorm)]
        cls = plan(self, {norm: type(norm) for norm in norms}).cls
        if cls is not None:
            object.__setattr__(self, "__class__", cls)


def _is_complete(module: nn.Module) -> bool:
    """Return whether all below has its state: pickle may give it later to what refers to itself."""
    children = vars(module).get("_modules")
    return children is not None and all(c is None or _is_complete(c) for c in children.values())
