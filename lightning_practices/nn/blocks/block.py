"""Base class of fused blocks: which code of a library they replace, and which calls they fold."""

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any, ClassVar

from torch import Tensor, nn

import lightning_kernels
from lightning_practices.nn._fused_layer import LEFT, FusedLayer
from lightning_practices.nn._hooks import is_touched
from lightning_practices.nn._norm_activation import (
    activation_name,
    adds_residual,
    kernel_activation,
    norm_call,
)
from lightning_practices.nn._residual import ADD_NORMS

# Methods that define how a class is called, pickled or subclassed. A class that overrides one of
# them is not fused.
DECIDING = ("__call__", "__reduce__", "__reduce_ex__", "__init_subclass__")

# Modules of transformers with wrappers of a layer's forward. One checkpoints the activations and
# wraps the fused forward in turn. The other renames an argument, which fused forwards do not take.
_WRAPPERS = frozenset({"transformers.modeling_layers", "transformers.utils.deprecation"})


@dataclass(frozen=True)
class Chain:
    """A norm of a block, and the operations after it that may be folded into its call.

    Attributes:
        norm: Name of the norm in the block.
        activation: Name of the activation in the block, or of a function such as ``"relu"`` if the
            block has no such child.
        adds: Whether a residual is added before the activation.
        between: Names of children that run between the norm and the next operation. To fold, each
            must be ``None`` or :class:`torch.nn.Identity`.
    """

    norm: str
    activation: str
    adds: bool = False
    between: tuple[str, ...] = ()


class FusedBlock(FusedLayer):
    """A known block whose forward folds norms with the operations after them, or a known layer.

    A subclass inherits from this class and from the block's class, and has no state of its own: a
    block is fused by changing its class. The fused forward replaces methods of the block, and is
    valid only for the source code of these methods that it was written for. :attr:`sources` has the
    fingerprints of that source code. They reveal a version of the library with other source code.

    Attributes:
        original: Class of the block before it was fused.
        sources: Known :func:`fingerprint` values of each method of ``original`` that the fused
            forward replaces.
        methods: The same methods, by name, as they were when the subclass was made.
    """

    original: ClassVar[type[nn.Module]]
    sources: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    methods: ClassVar[tuple[tuple[str, Any], ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "sources" in vars(cls):
            cls.methods = tuple((name, getattr(cls.original, name)) for name in cls.sources)

    def chains(self) -> tuple[Chain, ...] | None:
        """Return the operations that the fused forward folds. The block may be unfused.

        Returns:
            The chains, or ``None`` if they are unknown outside of the fused forward.
        """
        return None

    @classmethod
    def added_norms(
        cls, block: nn.Module, classes: Mapping[nn.Module, type]
    ) -> Iterable[tuple[str, str]]:
        """Return the norms that the fused forward folds with an addition before them.

        Args:
            block: A block, fused or not.
            classes: Future class of each module whose class is about to change.

        Returns:
            The name of each norm, and the operations before it, such as ``"Dropout + add"``.
        """
        return ()

    def is_original(self) -> bool:
        """Return whether the replaced methods are still those for which the forward was written."""
        original, own = self.original, self.__dict__
        for name, function in self.methods:
            if getattr(original, name) is not function or name in own:
                return False
        return True

    def folds(self, x: Tensor) -> bool:
        """Return whether to run the fused forward for ``x`` instead of the original forward."""
        return lightning_kernels.route(x) != "aten" and self.is_original()


def unknown_method(twin: type[FusedBlock]) -> str | None:
    """Return the first replaced method with unknown source code, or ``None`` if all are known."""
    for name, function in twin.methods:
        known = twin.sources.get(name)
        if getattr(twin.original, name) is not function or (
            known is not None and fingerprint(function) not in known
        ):
            return name
    return None


@cache
def fingerprint(function: Any) -> str | None:
    """Return a short hash of a function's source code, the same in every version of Python.

    Comments, annotations, the docstring and the formatting don't affect it, nor do transformers'
    own wrappers of a layer's forward.

    Returns:
        The hash, or ``None`` if the source code is not available.
    """
    if not isinstance(function, FunctionType):
        return None
    if function.__globals__.get("__name__") in _WRAPPERS:
        return fingerprint(getattr(function, "__wrapped__", None))
    try:
        # `getsource` of the function itself would return the source of the function that it wraps.
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
    """Return which norms ``twin``'s forward folds in ``block``, and which it can't fold.

    Args:
        twin: Fused class for ``block``.
        block: A block, fused or not.
        classes: Future class of each module whose class is about to change.

    Returns:
        Two mappings by the name of a norm. The first has the folded operations, such as
        ``"BatchNorm2d + add + ReLU"`` or ``"add + LayerNorm"``; it is ``None`` if they are unknown
        outside of the fused forward. The second has the reason why a norm is not folded.
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
            continue  # no norm, or not a fused norm, which the report lists separately
        activation = children.get(chain.activation, chain.activation)
        reason = _obstacle(children, chain, activation)
        if reason is None and chain.adds and not adds_residual(cls):
            reason = f"the kernels add no residual to a {type(norm).__name__}"
        if reason is None:
            name = f"{'add + ' * chain.adds}{activation_name(activation)}"
            folded[chain.norm] = f"{type(norm).__name__} + {name}"
        else:
            refused[chain.norm] = reason
    for name, before in twin.added_norms(block, classes):
        norm = children[name]
        if classes.get(norm, type(norm)) not in ADD_NORMS or LEFT in norm.__dict__:
            continue  # the report lists it separately
        if is_touched(norm.__dict__):
            refused[name] = "it has hooks or a forward of its own"
        elif getattr(norm, "_fast_norm", False):
            refused[name] = "it is in timm's fast mode"
        else:
            folded[name] = f"{before} + {type(norm).__name__}"
    return folded, refused


def _obstacle(
    children: Mapping[str, nn.Module], chain: Chain, activation: nn.Module | str
) -> str | None:
    """Return why ``chain`` can't be folded, or ``None`` if it can."""
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
