"""One block of a network."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """Layers that are frozen, trained or dropped together.

    Attributes:
        depth: How many blocks are between it and the output: 0 for the head.
        name: What to call it: the module that it is, or the largest of several.
        modules: Names of the outermost modules that are wholly in it, so those that are in eval
            mode if it is frozen, with the ones that have no parameters, such as dropout.
        parameters: Names of its parameters, as in ``model.named_parameters()``.
    """

    depth: int
    name: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
