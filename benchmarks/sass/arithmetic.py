"""The integer instructions on which branches depend, for one thread.

A value that is not known, such as one from memory, is ``None``, and so are the results that need
it. Instructions that are not listed here have unknown results.
"""

import itertools
import operator
import re
import struct
from collections.abc import Callable, Mapping, Sequence

from benchmarks.sass.instructions import Instruction, split_operands

Value = int | None

_MASK = 0xFFFFFFFF
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": operator.lt, "LE": operator.le, "GT": operator.gt, "GE": operator.ge, "EQ": operator.eq,
    "NE": operator.ne,
}  # fmt: skip
_STRICT = {"LE": operator.lt, "GE": operator.gt}
_CONSTANT = r"c\[0x0\]\[(0x[0-9a-f]+)\]"
_OPERAND = re.compile(rf"([-~!]?)(\|?)(\w+?|{_CONSTANT})\|?(?:\.\w+)*")


class Thread:
    """The known registers and predicates of one thread.

    Args:
        constants: The words of the constant bank 0 by address.
        special: The values of special registers, such as ``SR_CTAID.X``.
    """

    def __init__(self, constants: Mapping[int, int], special: Mapping[str, int]) -> None:
        self._constants = constants
        self._special = special
        self._values: dict[str, Value] = {"RZ": 0, "URZ": 0, "PT": 1, "UPT": 1}

    def holds(self, predicates: Sequence[str]) -> bool | None:
        """Return whether all predicates hold, or ``None`` if that is not known."""
        values = [self.read(predicate) for predicate in predicates]
        if 0 in values:
            return False
        return None if None in values else True

    def execute(self, instruction: Instruction) -> None:
        """Update the results of ``instruction``."""
        guard = self.holds([instruction.guard]) if instruction.guard else True
        if guard is False:
            return
        results, sources = split_operands(instruction)
        name = instruction.name
        function = _FUNCTIONS.get(name) or _FUNCTIONS.get(name.removeprefix("U"))
        values: list[Value] = []
        if guard and function is not None:
            values = function(self, instruction.modifiers, sources)
        for result, value in itertools.zip_longest(_targets(instruction, results), values):
            if result is not None and result not in ("RZ", "URZ", "PT", "UPT"):
                self._values[result] = value

    def read(self, operand: str, exact: bool = False) -> Value:
        """Return the value of an operand as an unsigned number of 32 bits, a predicate as 0 or 1.

        With ``exact`` a negative operand is its complement plus 1, which may take 33 bits: so
        adders carry.
        """
        match = _OPERAND.fullmatch(operand)
        if match is None:
            return None
        sign, absolute, name, place = match.groups()
        if place:
            value = self._constants.get(int(place, 16))
        else:
            value = _literal(name) if name[0].isdigit() else self._values.get(name)
        if value is None:
            return None
        if absolute:
            value = abs(signed(value))
        if sign == "!":
            return 1 - value
        if sign == "~":
            return ~value & _MASK
        if sign == "-":
            return (~value & _MASK) + 1 if exact else -value & _MASK
        return value

    def pair(self, operand: str) -> Value:
        """Return the 64 bits of a register and its successor, or of a smaller operand."""
        match = re.fullmatch(r"(U?R)(\d+)(?:\.\w+)*", operand)
        if match is None:
            return self.read(operand)
        low, high = self.read(operand), self.read(f"{match[1]}{int(match[2]) + 1}")
        return None if low is None or high is None else high << 32 | low

    def constant(self, operand: str, words: int = 1) -> Value:
        """Return the value in the constant bank, or ``None`` if it is not a known one."""
        match = re.fullmatch(_CONSTANT, operand)
        if match is None:
            return None
        found = [self._constants.get(int(match[1], 16) + 4 * i) for i in range(words)]
        return None if None in found else sum(v << 32 * i for i, v in enumerate(found) if v)

    def special(self, name: str) -> Value:
        """Return the value of a special register."""
        return self._special.get(name)


def signed(value: int) -> int:
    """Return the signed number with the 32 bits of ``value``."""
    return value - (1 << 32) if value >> 31 & 1 else value


def _targets(instruction: Instruction, results: Sequence[str]) -> list[str]:
    """Return the names of the results, registers before predicates, the words of a pair apart."""
    named = sorted((r for r in results), key=lambda r: "P" in r)
    sizes = {"64": 2, "128": 4, "WIDE": 2}
    size = next((sizes[m] for m in instruction.modifiers if m in sizes), 1)
    if instruction.name == "CS2R" and "32" not in instruction.modifiers:
        size = 2
    match = re.fullmatch(r"(U?R)(\d+)", named[0]) if named else None
    if size == 1 or match is None:
        return named
    return [f"{match[1]}{int(match[2]) + i}" for i in range(size)] + named[1:]


def _literal(text: str) -> Value:
    try:
        return int(text, 0) & _MASK
    except ValueError:
        return None


def _words(value: Value, count: int = 2) -> list[Value]:
    return [None if value is None else value >> 32 * i & _MASK for i in range(count)]


def _size(modifiers: Sequence[str]) -> int:
    return 2 if "64" in modifiers else 4 if "128" in modifiers else 1


def _move(t: Thread, modifiers: Sequence[str], sources: Sequence[str]) -> list[Value]:
    return [t.read(sources[0])]


def _load_constant(t: Thread, modifiers: Sequence[str], sources: Sequence[str]) -> list[Value]:
    size = _size(modifiers)
    return _words(t.constant(sources[0], size), size)


def _load_special(t: Thread, modifiers: Sequence[str], sources: Sequence[str]) -> list[Value]:
    if sources[0] == "SRZ":
        return [0, 0]
    return [t.special(sources[0])]


def _add(t: Thread, modifiers: Sequence[str], sources: Sequence[str]) -> list[Value]:
    """``a + b + c`` and the carries in; the results are the sum and its carries."""
    values = [t.read(s, exact=True) for s in sources]
    if None in values:
        return []
    total = sum(v for v in values if v is not None)
    return [total & _MASK, int(total >> 32 > 0), int(total >> 32 > 1)]


def _multiply(t: Thread, modifiers: Sequence[str], sources: Sequence[str]) -> list[Value]:
    if "MOV" in modifiers or (len(modifiers) == 1 and sources[0] == sources[1] == "RZ"):
        return [t.read(sources[2])]
    a, b = (t.read(s) for s in sources[:2])
    wide = "WIDE" in modifiers or "HI" in modifiers
    c = t.pair(sources[2]) if wide else t.read(sources[2])
    carry = t.read(sources[3]) if len(sources) > 3 else 0
    if a is None or b is None or c is None or carry is None:
        return []
    if wide and "U32" not in modifiers:
        a, b = signed(a), signed(b)
    words = _words(a * b + c + carry)
    return words if "WIDE" in modifiers else words[1:] if "HI" in modifiers else words[:1]


def _shift_and_add(t: Thread, modifiers: Sequence[str], sources: Sequence[str]) -> list[Value]:
    """``LEA``: ``(a << shift) + b``, or with ``HI`` the upper half of that, for ``c:a``."""
    high, extended = "HI" in modifiers, "SX32" in modifiers
    a, b = t.read(sources[0]), t.read(sources[1], exact=True)
    c: Value = 0
    rest = list(sources[2:])
    if extended:
        c = None if a is None else _MASK if a >> 31 else 0
    elif high:
        c = t.read(rest.pop(0))
    values = [t.read(s) for s in rest]
    if a is None or b is None or c is None or None in values:
        return []
    shift, carry = values[0] or 0, sum(v for v in values[1:] if v)
    shifted = (c << 32 | a) << shift
    total = (shifted >> 32 & _MASK if high else shifted & _MASK) + b + (carry if high else 0)
    return [total & _MASK, total >> 32]


def _logic(t: Thread, modifiers: Sequence[str], sources: Sequence[str]) -> list[Value]:
    """``LOP3``: each bit by a table of eight entries; the predicate tells if any bit is set."""
    a, b, c, table = (t.read(s) for s in sources[:4])
    if a is None or b is None or c is None or table is None:
        return []
    value = 0
    for index in range(8):
        if table >> index & 1:
            bits = ((a, ~a)[not index & 4], (b, ~b)[not index & 2], (c, ~c)[not index & 1])
            value |= bits[0] & bits[1] & bits[2]
    return [value & _MASK, int(value & _MASK != 0)]


def _predicate_logic(t: Thread, modifiers: Sequence[str], sources: Sequence[str]) -> list[Value]:
    """``PLOP3``: the same for predicates, with one table for each result."""
    choices = [(0, 1) if (v := t.read(s)) is None else (v,) for s in sources[:3]]
    results: list[Value] = []
    for table in (t.read(s) or 0 for s in sources[3:5]):
        found = {table >> (a << 2 | b << 1 | c) & 1 for a, b, c in itertools.product(*choices)}
        results.append(found.pop() if len(found) == 1 else None)
    return results


def _shift(t: Thread, modifiers: Sequence[str], sources: Sequence[str]) -> list[Value]:
    low, shift, high = (t.read(s) for s in sources)
    if low is None or shift is None or high is None or "W" in modifiers:
        return []
    signs = "S32" in modifiers or "S64" in modifiers
    value = (signed(high) if signs else high) << 32 | low
    value = value << shift if "L" in modifiers else value >> shift
    return [value >> (32 if "HI" in modifiers else 0) & _MASK]


def _compare(t: Thread, modifiers: Sequence[str], sources: Sequence[str]) -> list[Value]:
    """``ISETP``: a comparison combined with a predicate; ``EX`` is that of the upper words."""
    a, b = (t.read(s) for s in sources[:2])
    combined = t.read(sources[2])
    found: Value = None
    if a is not None and b is not None:
        if "U32" not in modifiers:
            a, b = signed(a), signed(b)
        found = int(_COMPARE[modifiers[0]](a, b))
        if "EX" in modifiers:
            strict = int(_STRICT.get(modifiers[0], _COMPARE[modifiers[0]])(a, b))
            found = t.read(sources[3]) if a == b else strict
    other = None if found is None else 1 - found
    combine = _or if "OR" in modifiers else _and
    return [combine(found, combined), combine(other, combined)]


def _and(a: Value, b: Value) -> Value:
    return 0 if 0 in (a, b) else None if None in (a, b) else 1


def _or(a: Value, b: Value) -> Value:
    return 1 if 1 in (a, b) else None if None in (a, b) else 0


def _select(t: Thread, modifiers: Sequence[str], sources: Sequence[str]) -> list[Value]:
    condition = t.read(sources[2])
    return [] if condition is None else [t.read(sources[0 if condition else 1])]


def _absolute(t: Thread, modifiers: Sequence[str], sources: Sequence[str]) -> list[Value]:
    value = t.read(sources[0])
    return [] if value is None else [abs(signed(value))]


def _minimum(t: Thread, modifiers: Sequence[str], sources: Sequence[str]) -> list[Value]:
    """The smaller of two numbers, or the larger one if the predicate is false."""
    *operands, condition = (t.read(s) for s in sources)
    if None in operands or condition is None:
        return []
    known = [v for v in operands if v is not None]
    if len(known) == 3:  # VIADDMNMX adds the first two
        known = [known[0] + known[1] & _MASK, known[2]]
    key = (lambda v: v) if "U32" in modifiers else signed
    return [(min if condition else max)(known, key=key)]


def _extend(t: Thread, modifiers: Sequence[str], sources: Sequence[str]) -> list[Value]:
    """``SGXT``: the lowest bits, with their sign or without."""
    value, bits = (t.read(s) for s in sources[:2])
    if value is None or bits is None:
        return []
    value &= (1 << bits) - 1
    if "U32" not in modifiers and value >> bits - 1 & 1:
        value -= 1 << bits
    return [value & _MASK]


def _halves(t: Thread, modifiers: Sequence[str], sources: Sequence[str]) -> list[Value]:
    """``HFMA2`` of zeros: two float16 constants, by which the compiler loads an integer."""
    if sources[:2] != ("-RZ", "RZ") or not all(re.match(r"[-\d.]", s) for s in sources[2:4]):
        return []
    high, low = (struct.unpack("H", struct.pack("e", float(s)))[0] for s in sources[2:4])
    return [high << 16 | low]


def _to_float(t: Thread, modifiers: Sequence[str], sources: Sequence[str]) -> list[Value]:
    """Convert to float32; the division of integers allows for the rounding."""
    value = t.read(sources[0])
    if value is None:
        return []
    return [_bits(float(value if "U32" in modifiers else signed(value)))]


def _reciprocal(t: Thread, modifiers: Sequence[str], sources: Sequence[str]) -> list[Value]:
    value = t.read(sources[0])
    if modifiers != ("RCP",) or not value:
        return []
    return [_bits(1 / struct.unpack("f", struct.pack("I", value))[0])]


def _to_integer(t: Thread, modifiers: Sequence[str], sources: Sequence[str]) -> list[Value]:
    value = t.read(sources[0])
    if value is None or "TRUNC" not in modifiers:
        return []
    number = struct.unpack("f", struct.pack("I", value))[0]
    return [min(max(int(number), 0), _MASK)]


def _bits(number: float) -> int:
    return int(struct.unpack("I", struct.pack("f", number))[0])


def _pack(t: Thread, modifiers: Sequence[str], sources: Sequence[str]) -> list[Value]:
    """``P2R``: the predicates as the bits of a register, where the mask is set."""
    base, mask = t.read(sources[1]), t.read(sources[2])
    bits = [t.read(f"P{i}") if (mask or 0) >> i & 1 else 0 for i in range(7)]
    if base is None or mask is None or None in bits:
        return []
    return [base & ~mask | sum((bit or 0) << i for i, bit in enumerate(bits))]


_FUNCTIONS: dict[str, Callable[[Thread, Sequence[str], Sequence[str]], list[Value]]] = {
    "MOV": _move, "R2UR": _move, "LDC": _load_constant, "LDCU": _load_constant,
    "ULDC": _load_constant, "S2R": _load_special, "S2UR": _load_special, "CS2R": _load_special,
    "IADD3": _add, "VIADD": _add, "IADD": _add, "IMAD": _multiply, "LEA": _shift_and_add,
    "LOP3": _logic, "PLOP3": _predicate_logic, "SHF": _shift, "ISETP": _compare, "SEL": _select,
    "IABS": _absolute, "IMNMX": _minimum, "VIMNMX": _minimum, "VIADDMNMX": _minimum,
    "SGXT": _extend, "HFMA2": _halves, "I2F": _to_float, "MUFU": _reciprocal, "F2I": _to_integer,
    "P2R": _pack,
}  # fmt: skip
