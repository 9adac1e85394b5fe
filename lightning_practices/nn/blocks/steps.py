"""Blocks whose forward calls one child after another, such as convolution, norm and activation."""

from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import override

from lightning_practices.nn.blocks.block import Chain, FusedBlock
from lightning_practices.nn.blocks.sequential import chains_of, run


class Steps(FusedBlock):
    """Base class of fused blocks that call one child after another.

    A subclass names the children, and the original class with the source code that calls them.

    Attributes:
        steps: Names of the children in the order of their calls. A child ``None`` is skipped.
    """

    steps: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        names = vars(cls).get("steps", ())

        def chains(block: Any) -> tuple[Chain, ...]:
            return chains_of((name, getattr(block, name)) for name in names)

        if names:
            setattr(cls, "chains", chains)  # noqa: B010  # also of blocks that aren't fused yet

    def start(self, x: Tensor) -> Tensor:
        """Return the input of the first child for the input ``x`` of the block."""
        return x

    @override
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 1 or not self.folds(*args):
            return self.original.forward(self, *args, **kwargs)
        layers = (getattr(self, name) for name in self.steps)
        return run([layer for layer in layers if layer is not None], self.start(*args))
