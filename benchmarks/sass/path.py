"""The instructions that one thread of a launch executes, loops included."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.sass.arithmetic import Thread
from benchmarks.sass.instructions import Instruction, registers_of

_MOST_BLOCKS = 200_000  # a longer path is an endless loop
_ENDS = {"BRA", "EXIT", "BSYNC", "CALL", "RET", "BRX", "JMP", "KILL"}


@dataclasses.dataclass(frozen=True, eq=False)
class Path:
    """The instructions that one thread executes.

    Attributes:
        code: The instructions of the kernel.
        blocks: First instruction, and the one after the last, of each executed run of instructions,
            in order.
        guesses: Number of branches that depend on data in memory. They are followed as described
            at :func:`follow`.
    """

    code: tuple[Instruction, ...]
    blocks: list[tuple[int, int]]
    guesses: int

    def __len__(self) -> int:
        """Return the number of executed instructions."""
        return sum(stop - start for start, stop in self.blocks)

    def __iter__(self) -> Iterator[int]:
        """Return the positions of the executed instructions, in order."""
        for start, stop in self.blocks:
            yield from range(start, stop)

    @property
    def loops(self) -> list[tuple[int, int]]:
        """Instructions per iteration and number of iterations of each loop that was entered.

        Every executed backward branch is a loop: its body are the instructions from its target to
        itself. An inner loop counts once in the body of the outer one, and its iterations are
        summed over those of the outer loop.
        """
        executed = Counter(stop - 1 for _, stop in self.blocks)
        found = []
        for position, count in sorted(executed.items()):
            instruction = self.code[position]
            if instruction.name == "BRA" and instruction.target < instruction.address:
                size = (instruction.address - instruction.target) // 16 + 1
                found.append((size, count))
        return found


def follow(
    code: tuple[Instruction, ...], constants: Mapping[int, int], special: Mapping[str, int]
) -> Path:
    """Follow one thread through the branches of a kernel.

    Only the integers on which branches depend are computed. A branch that depends on data in memory
    is guessed: a loop ends after one iteration, work that is not a call is done, and calls (the
    slow paths of divisions) are skipped. The compiler also leaves loops by calls, which jump past
    an unconditional branch back.

    Args:
        code: The instructions of the kernel.
        constants: Words of the constant bank: the grid and the kernel's arguments.
        special: Values of special registers: the ids of thread and program.

    Raises:
        ValueError: If the path doesn't end, or has a branch that is not known.
    """
    at = {instruction.address: position for position, instruction in enumerate(code)}
    relevant, starts = _relevant(code), _starts(code, at)
    thread = Thread(constants, special)
    blocks: list[tuple[int, int]] = []
    meeting: dict[str, int] = {}  # where threads meet after a branch, by barrier register
    calls: list[int] = []
    guesses = 0
    position: int | None = 0
    while position is not None:
        if len(blocks) > _MOST_BLOCKS or position >= len(code):
            raise ValueError("the path through the machine code does not end")
        start = position
        while True:
            instruction = code[position]
            if position in relevant:
                thread.execute(instruction)
            if instruction.name == "BSSY":
                meeting[instruction.operands[0]] = at[instruction.target]
            position += 1
            if instruction.name in _ENDS or position in starts:
                break
        blocks.append((start, position))
        if instruction.name not in _ENDS:
            continue
        taken = _is_taken(instruction, thread)
        if taken is None:
            guesses += 1
            taken = _guess(code, at, position - 1)
        if taken:
            position = _next(instruction, at, meeting, calls, position)
    return Path(code, blocks, guesses)


def _is_taken(instruction: Instruction, thread: Thread) -> bool | None:
    if "DIV" in instruction.modifiers:  # taken by warps whose threads diverged
        return False
    predicates = [o for o in instruction.operands[:-1] if o.lstrip("!").startswith(("P", "UP"))]
    return thread.holds([p for p in (instruction.guard, *predicates) if p])


def _next(
    instruction: Instruction,
    at: Mapping[int, int],
    meeting: Mapping[str, int],
    calls: list[int],
    following: int,
) -> int | None:
    """Return where a taken branch continues; ``None`` at the end of the kernel."""
    if instruction.name == "EXIT":
        return None
    if instruction.name == "BSYNC":
        return meeting[instruction.operands[0]]
    if instruction.name == "RET":
        return calls.pop()
    if instruction.name == "CALL":
        calls.append(following)
    elif instruction.name != "BRA":
        raise ValueError(f"the target of {instruction.opcode} is not known")
    return at[instruction.target]


def _guess(code: Sequence[Instruction], at: Mapping[int, int], position: int) -> bool:
    """Return whether to take a branch whose condition is not known, see :func:`follow`."""
    instruction = code[position]
    if instruction.name == "BRA" and instruction.target <= instruction.address:
        return False
    if any(map(_goes_back, code[position + 1 : position + 2])):
        return True
    if instruction.name != "BRA":
        return False
    skipped = code[position + 1 : at[instruction.target]]
    return any(i.name == "CALL" for i in skipped)


def _goes_back(instruction: Instruction) -> bool:
    """Return whether an instruction is an unconditional branch to an earlier instruction."""
    operands = len(instruction.operands)
    is_branch = instruction.name == "BRA" and not instruction.guard and operands == 1
    return is_branch and instruction.target < instruction.address


def _starts(code: Sequence[Instruction], at: Mapping[int, int]) -> set[int]:
    """Return the positions to which instructions branch."""
    return {at[i.target] for i in code if i.name in ("BRA", "BSSY", "CALL") and i.target in at}


@functools.lru_cache(maxsize=8)
def _relevant(code: tuple[Instruction, ...]) -> set[int]:
    """Return the positions of the instructions on which any branch depends."""
    at = {instruction.address: position for position, instruction in enumerate(code)}
    uses = registers_of(code)
    ends = [instruction.name in _ENDS for instruction in code]
    following = [_following(code, at, position) for position in range(len(code))]
    needed: list[frozenset[str]] = [frozenset()] * (len(code) + 1)
    relevant: set[int] = set()
    changed = True
    while changed:
        changed = False
        for position in reversed(range(len(code))):
            written, read = uses[position]
            after = frozenset().union(*(needed[p] for p in following[position]))
            if ends[position]:
                before = after.union(read)
            elif after.isdisjoint(written):
                before = after
            else:
                relevant.add(position)
                before = (after if code[position].guard else after.difference(written)).union(read)
            if before != needed[position]:
                needed[position], changed = before, True
    return relevant


def _following(code: Sequence[Instruction], at: Mapping[int, int], position: int) -> list[int]:
    """Return the positions that may be executed next."""
    instruction = code[position]
    if instruction.name == "BSYNC":
        barrier = instruction.operands[0]
        return [at[i.target] for i in code if i.name == "BSSY" and i.operands[0] == barrier]
    conditional = bool(instruction.guard) or len(instruction.operands) > 1
    following = []
    if instruction.name in ("BRA", "CALL"):
        following.append(at[instruction.target])
    if instruction.name not in ("BRA", "EXIT", "RET") or conditional:
        following.append(position + 1)
    return following
