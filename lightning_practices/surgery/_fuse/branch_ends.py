"""The ends of branches of transformers' blocks, in one fused call each where possible.

A block is known by the source code of its forward, see :class:`Form`. Dropout, layer scale and
stochastic depth of a branch, the addition to the residual stream and the norm after it are one
call, see :func:`end_branch`, wherever the norm belongs to the same block. The norm that opens the
next layer is left alone: the model's loop calls the layers, and checkpoints and shards each alone.

Each fused forward has the arguments, the results and the calls of children of the original one.
"""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.conv import _ConvNd
from typing_extensions import override

from lightning_practices.nn import Dropout
from lightning_practices.nn.blocks import Chain, FusedBlock, add_norm_call, fingerprint, is_touched
from lightning_practices.surgery._fuse.transformers_forms import CHECKPOINTED, Form
from lightning_practices.surgery._fuse.transformers_layers import FusedDropPath

# By the name of a norm that a block folds: the names of the steps that its branch ends in. Each is
# that of a child, or of an attribute with the rate of dropout.
Ends = Mapping[str, tuple[str, ...]]
Forward = Callable[..., Any]

_LAYER_SCALES = ("4076bc4a6e7a",)  # the forward of DINOv2's layer scale, and all like it
_CONV1D = "transformers.pytorch_utils.Conv1D"  # a linear layer with a transposed weight


class Drop(NamedTuple):
    """Dropout that a block calls as a function, with the rate of its configuration."""

    p: float
    training: bool

    def __call__(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)


Step = nn.Module | Drop


def end_branch(
    branch: Tensor, stream: Tensor, norm: nn.Module, *steps: Step, into: nn.Module | None = None
) -> tuple[Tensor, Tensor]:
    r"""Drop and scale a branch, add it to the residual stream and normalise the sum.

    .. math:: z = r + \mathrm{steps}(x), \qquad y = \mathrm{norm}(z)

    One fused call computes both with the last of the steps that are dropout, stochastic depth or
    layer scale, if ``norm`` has such a call, and norm and steps have no hooks. Otherwise the layers
    are called one by one.

    Under autocast the branch can be narrower than the stream. The fused call then returns
    :math:`y` in the dtype of the branch, so it is used only if all of ``into`` casts to this dtype.

    Args:
        branch: Output :math:`x` of the branch.
        stream: Residual stream :math:`r`.
        norm: Layer that normalises the sum.
        steps: Layers that change the branch before it is added, in their order.
        into: The only module that :math:`y` goes into.

    Returns:
        :math:`y` and :math:`z`.
    """
    call = add_norm_call(norm)
    if call is not None:
        first, options = _last_known(steps, stream)
        for step in steps[:first]:
            branch = step(branch)
        steps = steps[first:]
        if branch.shape == stream.shape and _fits(branch, stream, into):
            results = call(norm, branch, stream, **options)
            if results is not None:
                return results
    for step in steps:
        branch = step(branch)
    z = stream + branch
    return norm(z), z


def post_norm(branch: Tensor, stream: Tensor, norm: nn.Module, *steps: Step) -> Tensor:
    """Return the norm of :func:`end_branch` in the dtype of the sum: the next stream.

    Under autocast a branch with dropout is cast to the dtype of the stream for this. Without
    dropout the cast would take the time that the fused call saves.
    """
    if steps and branch.itemsize < stream.itemsize:
        branch = branch.to(stream.dtype)
    return end_branch(branch, stream, norm, *steps)[0]


def _last_known(steps: tuple[Step, ...], stream: Tensor) -> tuple[int, dict[str, Any]]:
    """Return the place of the first step from which all are options of the kernel, and these."""
    options: dict[str, Any] = {}
    for place in range(len(steps), 0, -1):
        option = _option(steps[place - 1], stream)
        if option is None or options.keys() & option.keys():
            return place, options
        options |= option
    return 0, options


def _option(step: Any, stream: Tensor) -> dict[str, Any] | None:
    """Return the option of the kernel for ``step``, or ``None`` if the kernel has none."""
    if isinstance(step, Drop):
        return {"p": step.p} if step.training else {}
    kind = type(step)
    if is_touched(step.__dict__):
        return None
    if kind is nn.Identity:
        return {}
    if kind is nn.Dropout:
        return {"p": step.p} if step.training else {}
    if kind is Dropout:
        return {"p": step.current_rate()} if step.training else {}
    if issubclass(kind, FusedDropPath) and step.is_original():
        return {"drop_path": step.current_rate()} if step.training else {}
    if _is_layer_scale(kind):
        scale = step.lambda1
        if torch.promote_types(scale.dtype, stream.dtype) == stream.dtype:
            return {"layer_scale": scale if scale.dtype == stream.dtype else scale.float()}
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_layer_scale(cls: Any) -> bool:
    return cls.__bases__ == (nn.Module,) and fingerprint(cls.forward) in _LAYER_SCALES


def _fits(branch: Tensor, stream: Tensor, into: nn.Module | None) -> bool:
    """Return whether a fused call returns the norm in a dtype that serves ``into``."""
    if branch.dtype == stream.dtype:
        return True
    device = branch.device.type
    return (
        into is not None
        and stream.dtype == torch.float32
        and torch.is_autocast_enabled(device)
        and torch.get_autocast_dtype(device) == branch.dtype
        and all(map(_casts, into.modules()))
    )


def _casts(module: nn.Module) -> bool:
    """Return whether a module casts its input to the dtype of autocast, or has no parameters."""
    cls = type(module)
    return (
        not module._parameters
        or isinstance(module, nn.Linear | _ConvNd)
        or f"{cls.__module__}.{cls.__qualname__}" == _CONV1D
    )


class FusedEnds(FusedBlock):
    """Base class of the fused blocks.

    Attributes:
        ends: The norms that a block folds, or a function of the block that returns them.
    """

    ends: ClassVar[Ends | Callable[[Any], Ends]] = {}

    @override
    def chains(self) -> tuple[Chain, ...]:
        return ()

    @classmethod
    @override
    def added_norms(
        cls, block: nn.Module, classes: Mapping[nn.Module, type]
    ) -> Iterator[tuple[str, str]]:
        ends = cls.ends if isinstance(cls.ends, Mapping) else cls.ends(block)
        for norm, steps in ends.items():
            if norm in block._modules:  # some blocks have no attention to an encoder
                names = (_name_of(getattr(block, step), classes) for step in steps)
                yield norm, " + ".join([*filter(None, names), "add"])


def _name_of(step: Any, classes: Mapping[nn.Module, type]) -> str | None:
    """Return the class name of a step that the kernel takes as an option."""
    if not isinstance(step, nn.Module):
        return "Dropout"
    cls = classes.get(step, type(step))
    known = cls in (nn.Dropout, Dropout) or issubclass(cls, FusedDropPath) or _is_layer_scale(cls)
    return cls.__name__ if known and not is_touched(vars(step)) else None


def fused(forward: Forward) -> Forward:
    """Return a forward that is ``forward`` where the kernels run, and else the original one."""

    @functools.wraps(forward)
    def run(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        # The original warns of the deprecated argument, and renames it.
        if "past_key_values" in kwargs or not self.folds(hidden_states):
            return self.original.forward(self, hidden_states, *args, **kwargs)
        return forward(self, hidden_states, *args, **kwargs)

    return run


def file_of(block: FusedBlock) -> Any:
    """Return the module with the functions that the original forward calls by name."""
    return sys.modules[block.original.forward.__module__]


def block_form(
    forward: Forward, source: str | tuple[str, ...], ends: Ends | Callable[[Any], Ends],
    parent: str = CHECKPOINTED,
) -> Form:  # fmt: skip
    """Return the form of a block whose forward has one of the fingerprints ``source``."""
    sources = (source,) if isinstance(source, str) else source
    return Form(forward, {"forward": sources}, FusedEnds, parent, members={"ends": ends})


def feed_forward(self: Any, x: Tensor) -> Tensor:
    """Return the feed-forward branch of a block with ``fc1`` and ``fc2``, before its dropout."""
    x = F.dropout(self.activation_fn(self.fc1(x)), self.activation_dropout, self.training)
    result: Tensor = self.fc2(x)
    return result


def clamped(x: Tensor) -> Tensor:
    """Return ``x`` within the finite numbers of its dtype."""
    most = torch.finfo(x.dtype).max - 1000
    return torch.clamp(x, min=-most, max=most)
