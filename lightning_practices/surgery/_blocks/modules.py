"""Which modules are wholly in one block."""

from collections.abc import Callable, Mapping

from torch import nn

from lightning_practices._names import module_name


def modules_by_block(
    model: nn.Module, block_of: Mapping[int, int], place: Callable[[str], int | None]
) -> list[list[str]]:
    """Return the names of the outermost modules that are wholly in each block.

    A module without parameters is in the block of the module that it is in. Where that one is in
    several blocks, it is where ``place`` says, else in the next block, as dropout is of what it is
    applied to; but with buffers, such as running statistics, in the one before.

    Args:
        model: The network.
        block_of: The block of each parameter, by its id.
        place: Returns the block of what has a name, if it knows that.
    """
    found: list[list[str]] = [[] for _ in range(max(block_of.values()) + 1)]
    bare: list[tuple[str, nn.Module, int | None]] = []  # the last block before it, too
    nexts: list[int] = []
    last: int | None = None
    seen: set[nn.Module] = set()

    def visit(name: str, module: nn.Module) -> None:
        nonlocal last
        if module in seen:
            return
        seen.add(module)
        inside = {block_of[id(p)] for p in module.parameters()}
        if not inside:
            bare.append((name, module, last))
            return
        if len(inside) == 1:
            (last,) = inside
            found[last].append(name)
            nexts.extend([last] * (len(bare) - len(nexts)))
            return
        for p in module.parameters(recurse=False):
            last = block_of[id(p)]
            nexts.extend([last] * (len(bare) - len(nexts)))
        for child_name, child in module.named_children():
            visit(f"{name}.{child_name}" if name else child_name, child)

    visit("", model)
    for index, (name, module, before) in enumerate(bare):
        after = nexts[index] if index < len(nexts) else None
        near = (before, after) if any(True for _ in module.buffers()) else (after, before)
        chosen = place(module_name(name))
        found[next(block for block in (chosen, *near) if block is not None)].append(name)
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    return [sorted(names, key=order.__getitem__) for names in found]
