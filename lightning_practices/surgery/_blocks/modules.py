"""Find the modules that lie entirely in one block."""

from collections.abc import Callable, Mapping

from torch import nn

from lightning_practices._names import module_name


def modules_by_block(
    model: nn.Module, block_of: Mapping[int, int], place: Callable[[str], int | None]
) -> list[list[str]]:
    """Return for each block the names of the outermost modules that lie entirely in it.

    A module without parameters is in the block of its parent. If the parent is in several blocks,
    ``place`` determines the block. If ``place`` returns ``None``, the module is in the block after
    it, as dropout belongs to the layer that it feeds; or if it has buffers, such as running
    statistics, in the block before it.

    Args:
        model: The network.
        block_of: Index of the block, by a parameter's id.
        place: Function from a module's name to the index of its block, or to ``None``.
    """
    found: list[list[str]] = [[] for _ in range(max(block_of.values()) + 1)]
    # Modules without parameters: name, module and the block before it. `nexts` holds the block
    # after each of these modules.
    bare: list[tuple[str, nn.Module, int | None]] = []
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
