"""In which order groups of threads run, so that they meet again where branches do."""

from collections import deque

from benchmarks.ptx.parser import Program


def blocks(program: Program, control: frozenset[str]) -> dict[int, tuple[int, list[int]]]:
    """Return basic blocks by their first instruction: one past their last, and what follows them.

    Args:
        program: Whose.
        control: Names of instructions that end a block.
    """
    instructions = program.instructions
    ends = [i.opcode.split(".")[0] in control for i in instructions]
    starts = sorted({0, *program.labels.values(), *(i + 1 for i, end in enumerate(ends) if end)})
    found = {}
    for start, after in zip(starts, [*starts[1:], len(instructions)], strict=True):
        if start < len(instructions):
            found[start] = after, _successors(program, after - 1)
    return found


def _successors(program: Program, last: int) -> list[int]:
    instruction = program.instructions[last]
    name = instruction.opcode.split(".")[0]
    targets: list[int] = []
    if name == "bra":
        targets = [program.labels[instruction.operands[0]]]
    elif name == "brx":
        targets = [program.labels[label] for label in program.tables[instruction.operands[1]]]
    if name not in {"bra", "brx", "ret", "exit"} or instruction.guard is not None:
        targets.append(last + 1)
    return [t for t in dict.fromkeys(targets) if t < len(program.instructions)]


def ranks(graph: dict[int, tuple[int, list[int]]]) -> dict[int, int]:
    """Return each block's place in an order in which a join comes after all that leads to it.

    Of what follows a block, what comes back to it sooner goes first, so that loops end before what
    is after them begins.
    """
    after = {
        start: sorted(next_, key=lambda s: -_distance(graph, s, start))
        for start, (_, next_) in graph.items()
    }
    postorder: list[int] = []
    seen = {0}
    stack = [(0, iter(after[0]))]
    while stack:
        block, rest = stack[-1]
        following = next((s for s in rest if s not in seen), None)
        if following is None:
            postorder.append(block)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(after[following])))
    return {block: rank for rank, block in enumerate(reversed(postorder))}


def _distance(graph: dict[int, tuple[int, list[int]]], start: int, goal: int) -> float:
    """Return how many blocks lie between, infinity if there is no way."""
    seen = {start}
    queue = deque([(start, 0)])
    while queue:
        block, steps = queue.popleft()
        if block == goal:
            return steps
        for following in graph[block][1]:
            if following not in seen:
                seen.add(following)
                queue.append((following, steps + 1))
    return float("inf")
