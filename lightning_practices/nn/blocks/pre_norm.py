"""Blocks whose branches begin with a norm: each addition is one call with the norm after it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices.nn._hooks import is_touched
from lightning_practices.nn._residual import add_norm_call, drop_add_norm
from lightning_practices.nn.blocks.block import Chain, FusedBlock


@dataclass(frozen=True)
class Branch:
    """A residual branch of a block.

    Attributes:
        norm: Name of the norm that begins the branch.
        function: Function of the block, the normalised input and all further arguments of the
            block's forward. It returns the output of the branch.
        ends: Names of what is applied to this output, one after the other: layers, which are
            called, and parameters, by which it is multiplied. ``None`` in their place is skipped.
        dropout: Name of the dropout layer that comes last, as part of the call with the next norm.
        shape: Function of the shape of the block's input. It returns the shape to which branch and
            residual stream are reshaped before they are added.
    """

    norm: str
    function: Callable[..., Tensor]
    ends: tuple[str, ...] = ()
    dropout: str | None = None
    shape: Callable[[torch.Size], tuple[int, ...]] | None = None

    def output(self, block: nn.Module, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output of this branch of ``block`` for the normalised input ``y``."""
        y = self.function(block, y, *args, **kwargs)
        for name in self.ends:
            end = getattr(block, name)
            if isinstance(end, Tensor):
                y = end * y
            elif end is not None:
                y = end(y)
        return y


class PreNormBlock(FusedBlock):
    r"""Base class of fused blocks whose branches :math:`f_i` begin with norms.

    .. math::
        x_i = x_{i-1} + f_i(y_{i-1}), \qquad y_i = \mathrm{norm}_{i+1}(x_i)

    Each pair :math:`x_i, y_i` is one call, see :func:`lightning_practices.nn._residual.
    drop_add_norm`. The norm of the last pair begins the following block. It is part of this call
    only if :class:`~lightning_practices.nn.blocks.sequential.Sequential` runs both blocks.

    Attributes:
        branches: The branches of the block.
        fused_forward: The forward that runs these branches. A subclass may have another forward.
    """

    branches: ClassVar[tuple[Branch, ...]]
    fused_forward: ClassVar[Any]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "branches" in vars(cls):
            cls.fused_forward = cls.forward

    @override
    def chains(self) -> tuple[Chain, ...]:
        return ()

    @classmethod
    @override
    def added_norms(
        cls, block: nn.Module, classes: Mapping[nn.Module, type]
    ) -> Iterator[tuple[str, str]]:
        for branch, following in pairwise(cls.branches):
            yield following.norm, "add" if branch.dropout is None else "Dropout + add"

    @override
    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.folds(x):
            return self.original.forward(self, x, *args, **kwargs)
        return self.run_branches(x, None, None, *args, **kwargs)[0]

    def run_branches(
        self, x: Tensor, y: Tensor | None, following: nn.Module | None, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Run the branches, and the norm that begins the following block.

        Args:
            x: Input of the block.
            y: The input, normalised by the first norm of the block. ``None`` to call this norm.
            following: Norm to apply to the output, or ``None``.
            args: Further arguments of the block's forward.
            kwargs: The same, by name.

        Returns:
            The output of the block, and the normalised output or ``None``.
        """
        shape = x.shape
        norms = [getattr(self, branch.norm) for branch in self.branches]
        if y is None:
            y = norms[0](x)
        for branch, norm in zip(self.branches, (*norms[1:], following), strict=True):
            output = branch.output(self, y, *args, **kwargs)
            if branch.shape is not None:
                new = branch.shape(shape)
                output, x = output.reshape(new), x.reshape(new)
            dropout = None if branch.dropout is None else getattr(self, branch.dropout)
            if norm is None:
                return x + (output if dropout is None else dropout(output)), None
            y, x = drop_add_norm(output, x, dropout, norm)
        return x, y


def next_norm(block: Any, following: Any, x: Any) -> nn.Module | None:
    """Return the first norm of ``following`` if ``block`` can apply it to its output.

    This holds if calls of both blocks do nothing but run their fused forwards, and if a fused call
    computes the norm.

    Args:
        block: Module that is called with ``x`` only.
        following: Module that is called with the result only.
        x: Input of ``block``.
    """
    if not (runs_branches(block) and runs_branches(following) and isinstance(x, Tensor)):
        return None
    if not (block.folds(x) and following.is_original()):
        return None
    norm: nn.Module = getattr(following, following.branches[0].norm)
    return None if add_norm_call(norm) is None else norm


def runs_branches(module: nn.Module, cls: type | None = None) -> bool:
    """Return whether a call of ``module`` runs its branches, and no hooks or compiled code.

    Args:
        module: Any module.
        cls: The class that it has when it is called. Default: its class.
    """
    cls = cls or type(module)
    return (
        issubclass(cls, PreNormBlock)
        and cls.forward is cls.fused_forward
        and cls.__call__ is nn.Module.__call__
        and module._compiled_call_impl is None
        and not is_touched(module.__dict__)
    )
