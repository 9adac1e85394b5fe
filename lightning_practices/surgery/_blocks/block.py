"""The class of a block of a network."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """Layers that are frozen, trained or removed together.

    Attributes:
        depth: Number of blocks between this block and the output. The head has depth 0.
        name: The name of the block's module, or of the largest of its modules.
        modules: Names of the outermost modules that lie entirely in the block, including modules
            without parameters (dropout). A frozen block keeps all these modules in eval mode.
        parameters: Names of the block's parameters, as in ``model.named_parameters()``.

    Example:
        >>> from lightning_practices.surgery import blocks
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> blocks(model)[0]
        Block(depth=0, name='2', modules=('1', '2'), parameters=('2.weight', '2.bias'))
    """

    depth: int
    name: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
