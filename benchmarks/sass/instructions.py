"""The instructions in the text of ``cuobjdump -sass``, and the registers that each uses."""

import functools
import re
from typing import NamedTuple

_LINE = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*;", re.M
)
_REGISTER = re.compile(r"\b(U?R|U?P|B)(\d+)\b")
_PREDICATE = re.compile(r"U?P[\dT]")
_SIZES = {"64": 2, "128": 4, "256": 8, "WIDE": 2, "F64": 2}  # 32-bit registers
_PAIRS = {"DADD", "DMUL", "DFMA", "DSETP", "FADD2", "FMUL2", "FFMA2", "CS2R"}
_WITHOUT_RESULT = {
    "BAR", "BRA", "BSSY", "BSYNC", "CALL", "DEPBAR", "ERRBAR", "EXIT", "LDGDEPBAR", "LDGSTS",
    "MEMBAR", "NOP", "RED", "REDG", "RET", "ST", "STG", "STL", "STS", "WARPSYNC",
}  # fmt: skip


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        address: Byte address in the kernel.
        guard: Predicate without which the instruction does nothing, such as ``"!P0"``, or ``""``.
        opcode: Its name with modifiers, such as ``"LDG.E.128"``.
        operands: Its operands, results first.
    """

    address: int
    guard: str
    opcode: str
    operands: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def modifiers(self) -> tuple[str, ...]:
        """The modifiers of the name."""
        return tuple(self.opcode.split(".")[1:])

    @property
    def target(self) -> int:
        """The address to which a branch or a call goes."""
        return int(self.operands[-1], 16)

    @property
    def bytes(self) -> int:
        """Bytes that one thread loads or stores."""
        sizes = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
        return next((sizes[m] for m in self.modifiers if m in sizes), 4)


@functools.lru_cache(maxsize=4)
def parse(text: str) -> tuple[Instruction, ...]:
    """Return the instructions in the output of ``cuobjdump -sass`` for one kernel."""
    return tuple(
        Instruction(int(address, 16), guard, opcode, tuple(re.split(r",\s*", operands)))
        for address, guard, opcode, operands in _LINE.findall(text)
    )


def split_operands(instruction: Instruction) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the operands that are results, and those that are sources.

    Results are the first register and the predicates beside it.
    """
    operands, name = instruction.operands, instruction.name
    if name in _WITHOUT_RESULT:
        return (), operands
    if name.endswith(("SETP", "PLOP3")):
        return operands[:2], operands[2:]
    count = 0
    if _PREDICATE.fullmatch(operands[0]):
        while count < len(operands) and _PREDICATE.fullmatch(operands[count]):
            count += 1
        return operands[: count + 1], operands[count + 1 :]
    count = 1
    while count < len(operands) - 1 and _PREDICATE.fullmatch(operands[count]):
        count += 1
    return operands[:count], operands[count:]


@functools.lru_cache(maxsize=8)
def registers_of(
    code: tuple[Instruction, ...],
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return :func:`registers` of every instruction."""
    return [registers(instruction) for instruction in code]


def registers(instruction: Instruction) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the registers and predicates that are written, and those that are read.

    Too many registers may be listed as read, such as the second of a pair that is not used.
    """
    results, sources = split_operands(instruction)
    modifiers = instruction.modifiers
    size = next((_SIZES[m] for m in modifiers if m in _SIZES), 1)
    if instruction.name in _PAIRS and "32" not in modifiers:
        size = 2
    if "M88" in modifiers:  # a matrix from shared memory
        size = int(modifiers[-1]) if modifiers[-1].isdigit() else 1
    wide = 2 if "HI" in modifiers else size
    written = [r for operand in results for r in _expand(operand, size)]
    read = [r for operand in sources for r in _expand(operand, 2 if ".64" in operand else wide)]
    if instruction.name == "R2P":
        written = [f"P{i}" for i in range(7)]
    if instruction.name == "P2R":
        read += [f"P{i}" for i in range(7)]
    if instruction.guard:
        read.append(instruction.guard.lstrip("!"))
    return tuple(written), tuple(read)


def _expand(operand: str, size: int) -> list[str]:
    found = []
    for kind, number in _REGISTER.findall(operand):
        count = size if kind in ("R", "UR") else 1
        found += [f"{kind}{int(number) + i}" for i in range(count)]
    return found
