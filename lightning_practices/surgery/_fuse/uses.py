"""Both ways to compute the calls of a model's fused layers: torch's layers, and the fused ones.

A :class:`Target` is a fused layer, or a norm that a fused block calls together with the operations
after it. :func:`observe` collects what each target gets in a step of the model, and proves on these
tensors that both ways agree.
"""

import contextlib
import copy
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_practices._names import modules_with_names
from lightning_practices.nn import norm_activation
from lightning_practices.nn.blocks import FUSED_FROM, FusedBlock, drop_add_norm, folds_of
from lightning_practices.surgery._fuse.agreement import disagreement
from lightning_practices.surgery._fuse.classes import restore
from lightning_practices.surgery._fuse.tensors import device_of

Function = Callable[..., Any]

_PLAIN = (bool, int, float, complex, str, torch.dtype, torch.device, torch.Size, slice)
_RATE = 0.1  # of a dropout in the call with a norm; its time doesn't depend on the rate

# The attributes of a module that hold its hooks.
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks",
    "_backward_pre_hooks",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Target:
    """A fused layer, and what its block computes in the same call.

    Attributes:
        names: All names of the layer in the model.
        module: The layer.
        text: The operations of the call, such as ``"BatchNorm2d + add + ReLU"``.
        activation: Activation in the same call: a layer, or the name of a function.
        adds: Whether a residual is added before the activation.
        added: What is added to a residual stream in the same call, before the norm: ``"add"``, or
            ``"Dropout + add"`` for a branch that is dropped out first.
    """

    names: tuple[str, ...]
    module: nn.Module
    text: str
    activation: nn.Module | str | None = None
    adds: bool = False
    added: str | None = None

    def ways(self) -> tuple[nn.Module, nn.Module]:
        """Return torch's way and ours, as modules with copies of the layer."""
        plain, fused = _copy(self.module), _copy(self.module)
        for module in list(plain.modules()):
            if FUSED_FROM in vars(module):
                restore(module)
        if self.added is not None:
            dropout = nn.Dropout(_RATE) if self.added.startswith("Dropout") else None
            return _AddNorm(plain, dropout), _FusedAddNorm(fused, dropout)
        if self.activation is not None:
            return _NormActivation(plain, self.activation), _FusedNorm(fused, self.activation)
        return plain, fused


class _NormActivation(nn.Module):
    """A norm, the addition of a residual if there is one, and an activation, one by one."""

    def __init__(self, norm: nn.Module, activation: nn.Module | str) -> None:
        super().__init__()
        self.norm, self.activation = norm, activation

    @override
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        z = self.norm(x) if residual is None else self.norm(x) + residual
        if isinstance(self.activation, str):
            return getattr(functional, self.activation)(z)
        return self.activation(z)


class _FusedNorm(_NormActivation):
    """The same in one call."""

    @override
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        return norm_activation(x, self.norm, self.activation, residual)


class _AddNorm(nn.Module):
    """The end of a residual branch and the norm after it, one by one."""

    def __init__(self, norm: nn.Module, dropout: nn.Module | None) -> None:
        super().__init__()
        self.norm, self.dropout = norm, dropout

    @override
    def forward(self, stream: Tensor, branch: Tensor) -> Any:
        z = stream + (branch if self.dropout is None else self.dropout(branch))
        return self.norm(z), z


class _FusedAddNorm(_AddNorm):
    """The same in one call."""

    @override
    def forward(self, stream: Tensor, branch: Tensor) -> Any:
        return drop_add_norm(branch, stream, self.dropout, self.norm)


@dataclass(frozen=True)
class Blank:
    """The shape of a tensor, from which tensors with other values can be made."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool

    @classmethod
    def of(cls, x: Tensor) -> "Blank":
        """Return the blank of ``x``."""
        return cls(x.shape, x.stride(), x.dtype, x.device, x.requires_grad)

    def fill(self) -> Tensor:
        """Return a tensor of random normal values."""
        pairs = list(zip(self.shape, self.stride, strict=True))
        sizes = [size if stride else min(size, 1) for size, stride in pairs]
        x = torch.empty_strided(sizes, self.stride, dtype=self.dtype, device=self.device)
        return x.normal_().expand(self.shape).requires_grad_(self.requires_grad)


@dataclass
class Use:
    """One kind of call, and how often the targets have made it.

    Attributes:
        target: A target that makes the call. Its weights stand for those of the others.
        leaves: The arguments' leaves, with a :class:`Blank` for each floating point tensor.
        spec: How positional and keyword arguments hold the leaves.
        context: Function that returns the context of the call: gradients and autocast.
        counts: Number of calls by each target.
    """

    target: Target
    leaves: list[Any]
    spec: Any
    context: Callable[[], contextlib.AbstractContextManager[None]]
    counts: Counter[Target] = field(default_factory=Counter)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return arguments of the same shapes, with random values."""
        leaves = [leaf.fill() if isinstance(leaf, Blank) else leaf for leaf in self.leaves]
        args, kwargs = tree_unflatten(leaves, self.spec)
        return args, kwargs


@dataclass
class Observed:
    """What :func:`observe` collects.

    Attributes:
        uses: The different calls, by a text that describes the call.
        refused: Why a target's two ways don't agree or can't be compared, by target.
    """

    uses: dict[str, Use] = field(default_factory=dict)
    refused: dict[Target, str] = field(default_factory=dict)


def targets_of(model: nn.Module) -> list[Target]:
    """Return the fused layers of ``model``, and the norms that its fused blocks fold."""
    modules = dict(modules_with_names(model))
    folded: dict[nn.Module, Target] = {}
    for block in modules:
        if not isinstance(block, FusedBlock) or (chains := block.chains()) is None:
            continue
        texts = folds_of(type(block), block, {})[0] or {}
        children = dict(block.named_modules(remove_duplicate=False))
        for chain in chains:
            norm = children.get(chain.norm)
            if norm is not None and norm is not block and chain.norm in texts:
                activation = children.get(chain.activation, chain.activation)
                text = texts[chain.norm]
                folded[norm] = Target(modules[norm], norm, text, activation, chain.adds)
        for name, added in type(block).added_norms(block, {}):
            if name in texts:
                norm = children[name]
                folded[norm] = Target(modules[norm], norm, texts[name], added=added)
    found = []
    for module, names in modules.items():
        if FUSED_FROM not in vars(module):
            continue
        if module in folded:
            found.append(folded[module])
        elif not isinstance(module, FusedBlock) or not _folds_children(module):
            found.append(Target(names, module, vars(module)[FUSED_FROM].__name__))
    return found


def _folds_children(block: FusedBlock) -> bool:
    """Return whether a block only calls norms, which are targets themselves."""
    chains = block.chains()
    return chains is not None and all(chain.norm for chain in chains)


@contextlib.contextmanager
def observe(targets: Sequence[Target]) -> Iterator[Observed]:
    """Collect the calls of ``targets`` while the context is open, and compare both ways on each.

    Each target's first call is compared. The calls of other layers, and results, do not change;
    blocks call their layers one by one. Targets that are not called are in no use.

    Yields:
        The collected calls.
    """
    observed = Observed()
    handles: list[RemovableHandle] = []
    seen: set[Target] = set()

    def hook_of(target: Target) -> Function:
        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.compiler.is_compiling() or target in observed.refused:
                return
            reason = _unknown(args, kwargs)
            if reason is None:
                if target.adds or target.added is not None:
                    args = (*args, *args[:1])  # stands for the other summand
                _note(observed, target, args, kwargs)
                if target not in seen:
                    seen.add(target)
                    # The step may keep activations by hooks, such as those of checkpointing.
                    with torch.autograd.graph.saved_tensors_hooks(_same, _same):
                        reason = disagreement(target.ways, args, kwargs)
            if reason is not None:
                observed.refused[target] = reason

        return look

    try:
        for target in targets:
            look = hook_of(target)
            handles.append(target.module.register_forward_pre_hook(look, with_kwargs=True))
        yield observed
    finally:
        for handle in handles:
            handle.remove()


def _same(x: Any) -> Any:
    return x


def _unknown(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Return why a call with these arguments can't be made again, or ``None`` if it can."""
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor):
            plain = type(leaf) in (Tensor, nn.Parameter) and leaf.layout is torch.strided
            if not plain or leaf.is_nested:
                return "not measured: an argument is no plain tensor"
        elif leaf is not None and not isinstance(leaf, _PLAIN):
            return f"not measured: an argument is a {type(leaf).__name__}, which a call may change"
    return None


def _note(observed: Observed, target: Target, args: Any, kwargs: Any) -> None:
    leaves, spec = tree_flatten((args, kwargs))
    blanks = [
        Blank.of(leaf) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
        for leaf in leaves
    ]
    context, described = _context(target.module, (args, kwargs))
    shown = [
        f"{tuple(leaf.shape)} {leaf.stride()} {leaf.dtype} {leaf.device.type}"
        f"{' requires grad' * leaf.requires_grad}"
        if isinstance(leaf, Tensor)
        else repr(leaf)
        for leaf in leaves
    ]
    parameters = [
        f"{tuple(p.shape)} {p.dtype}{' requires grad' * p.requires_grad}"
        for p in target.module.parameters()
    ]
    key = "; ".join([target.text, repr(target.module), *shown, *parameters, described])
    key = " ".join(key.split())
    use = observed.uses.setdefault(key, Use(target, blanks, spec, context))
    use.counts[target] += 1


def _context(
    module: nn.Module, arguments: Any
) -> tuple[Callable[[], contextlib.AbstractContextManager[None]], str]:
    """Return a function that makes the present context of a call anew, and its description."""
    device = device_of(module, arguments).type
    gradients = torch.is_grad_enabled()
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device)

    @contextlib.contextmanager
    def again() -> Iterator[None]:
        with torch.set_grad_enabled(gradients), torch.autocast(device, dtype, enabled=autocast):
            yield

    described = f"training {module.training}, gradients {gradients}"
    return again, described + (f", autocast {device} {dtype}" if autocast else "")


def _copy(module: nn.Module) -> nn.Module:
    """Return a deep copy without hooks, whose owners need not be copied."""
    memo: dict[int, Any] = {
        id(vars(child)[name]): OrderedDict()
        for child in module.modules()
        for name in _HOOKS
        if name in vars(child)
    }
    for child in module.modules():  # what the user keeps on a layer, such as its last output
        kept = (value for value in vars(child).values() if isinstance(value, Tensor))
        memo |= {id(value): value.detach() for value in kept if not value.is_leaf}
    return copy.deepcopy(module, memo)
