"""One block of a network."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """Layers that are frozen, trained or removed together.

    Attributes:
        depth: Number of blocks between this one and the output. The head has 0.
        name: The name of its module, or of the largest of its modules.
        modules: Names of the outermost modules that are wholly in the block, modules without
            parameters (dropout) included. A frozen block keeps them in eval mode.
        parameters: Names of its parameters, as in ``model.named_parameters()``.
    """

    depth: int
    name: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
