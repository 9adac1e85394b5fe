"""What fused blocks share: which code they stand for, and what they fold."""

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any, ClassVar

from torch import Tensor, nn

import lightning_kernels
from lightning_practices.nn._hooks import is_touched
from lightning_practices.nn._norm_activation import (
    activation_name,
    adds_residual,
    kernel_activation,
    norm_call,
)


@dataclass(frozen=True)
class Chain:
    """A norm of a block with the operations behind it that can be one call.

    Attributes:
        norm: Name of the norm in the block.
        activation: Name of the activation in the block, or of a function such as ``"relu"`` if the
            block has no such child.
        adds: Whether a residual is added before the activation.
        between: Names of children that run between norm and addition. They must be ``None`` or
            :class:`torch.nn.Identity`.
    """

    norm: str
    activation: str
    adds: bool = False
    between: tuple[str, ...] = ()


class FusedBlock(nn.Module):
    """A known block whose forward runs a norm and the operations behind it in one call.

    A subclass derives from this class and from the block's class, and has no state of its own: a
    block becomes fused by a change of its class. Its forward was written for one text of the
    methods that it replaces. :attr:`sources` has the fingerprints of that text, so that another
    version of the library is noticed.

    Attributes:
        original: Class of the block before it was fused.
        sources: For each method of ``original`` whose code the fused forward stands for, the
            :func:`fingerprint` of each text that is known.
        methods: The same methods, as they were when the subclass was made.
    """

    original: ClassVar[type[nn.Module]]
    sources: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    methods: ClassVar[tuple[tuple[str, Any], ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "sources" in vars(cls):
            cls.methods = tuple((name, getattr(cls.original, name)) for name in cls.sources)

    def chains(self) -> tuple[Chain, ...] | None:
        """Return what can be one call, also of a block that is not fused yet.

        Returns:
            The chains, or ``None`` if only the forward knows them.
        """
        return None

    def is_original(self) -> bool:
        """Return whether the methods that the forward stands for are still those it knows."""
        original, own = self.original, self.__dict__
        for name, function in self.methods:
            if getattr(original, name) is not function or name in own:
                return False
        return True

    def folds(self, x: Tensor) -> bool:
        """Return whether the fused forward should run for ``x``, rather than the original one."""
        return lightning_kernels.route(x) != "aten" and self.is_original()


def unknown_method(twin: type[FusedBlock]) -> str | None:
    """Return the method of ``twin``'s original that has another text than it was written for."""
    for name, function in twin.methods:
        known = twin.sources.get(name)
        if getattr(twin.original, name) is not function or (
            known is not None and fingerprint(function) not in known
        ):
            return name
    return None


@cache
def fingerprint(function: Any) -> str | None:
    """Return a short hash of a function's code, the same in every version of Python.

    Comments, annotations, the docstring and the layout of the source don't count.

    Returns:
        The hash, or ``None`` if there is no source to read.
    """
    if not isinstance(function, FunctionType):
        return None
    try:
        # Of the code: of the function, it would be the source of what the function wraps.
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function.__code__))).body
    except (OSError, SyntaxError, ValueError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
    if not isinstance(tree, ast.FunctionDef):
        return None
    tree.returns = None
    if ast.get_docstring(tree) is not None:
        del tree.body[0]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:12]


def folds_of(
    twin: type[FusedBlock], block: nn.Module, classes: Mapping[nn.Module, type]
) -> tuple[dict[str, str] | None, dict[str, str]]:
    """Return what ``twin``'s forward folds in ``block``, and what it can't.

    Args:
        twin: Fused class for ``block``.
        block: A block, fused or not.
        classes: Class that each norm will have, if another than now.

    Returns:
        The name of each norm that is one call with the operations behind it, and these operations,
        such as ``"BatchNorm2d + add + ReLU"``; ``None`` if only the forward knows. The name of
        each norm that is not, and why.
    """
    chains = twin.chains(block)  # type: ignore[arg-type]
    if chains is None:
        return None, {}
    folded, refused = {}, {}
    children = dict(block.named_modules(remove_duplicate=False))
    for chain in chains:
        norm = children.get(chain.norm)
        cls = type(norm) if norm is None else classes.get(norm, type(norm))
        if norm is None or (norm is not block and norm_call(cls) is None):
            continue  # no norm, or one that is not fused: it is in the report by itself
        activation = children.get(chain.activation, chain.activation)
        reason = _obstacle(children, chain, activation)
        if reason is None and chain.adds and not adds_residual(cls):
            reason = f"the kernels add no residual to a {type(norm).__name__}"
        if reason is None:
            name = f"{'add + ' * chain.adds}{activation_name(activation)}"
            folded[chain.norm] = f"{type(norm).__name__} + {name}"
        else:
            refused[chain.norm] = reason
    return folded, refused


def _obstacle(
    children: Mapping[str, nn.Module], chain: Chain, activation: nn.Module | str
) -> str | None:
    """Return what keeps ``chain`` from being one call, ``None`` if nothing does."""
    if getattr(children[chain.norm], "activation", None) is not None:
        return "it has an activation of its own"
    name = activation_name(activation)
    for between in (children.get(name) for name in chain.between):
        if between is not None and type(between) is not nn.Identity:
            follower = "addition" if chain.adds else name
            return f"{type(between).__name__} stands before the {follower}"
    for child in (chain.norm, *chain.between, chain.activation):
        if child and child in children and is_touched(vars(children[child])):
            return f"{child} has hooks or a forward of its own"
    if kernel_activation(activation) is None:
        kind = "approximated " * (type(activation) is nn.GELU)
        return f"the {kind}{name} can't be fused" if kind else f"{name} can't be fused"
    return None
