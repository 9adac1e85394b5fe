"""Each instruction as a function that changes the registers and the memory of a CTA."""

import struct
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from benchmarks.ptx import warp
from benchmarks.ptx.arithmetic import comparison, conversion, function_of, is_mixed
from benchmarks.ptx.copies import Copies
from benchmarks.ptx.floats import Approximation
from benchmarks.ptx.memory import Access, GlobalMemory
from benchmarks.ptx.parser import Instruction, Program, UnsupportedPtxError
from benchmarks.ptx.registers import DTYPES, WARP, Array, Registers
from benchmarks.ptx.shared import SharedMemory

Mask = Array | Literal[True]  # the threads that take part; True for all
Step = Callable[[Any], None]

CONTROL = frozenset({"bra", "brx", "ret", "bar"})
_IGNORED = frozenset({"createpolicy"})


class Steps:
    """Makes the functions of instructions.

    Args:
        program: The kernel.
        params: Its parameters.
        memory: Global memory.
        shared: Shared memory.
        approximation: Error of approximate instructions.
        seed: Seed of the noise in registers.

    Attributes:
        cta: Number of the CTA that runs.
        registers: Registers of the CTA.
    """

    def __init__(
        self, program: Program, params: Sequence[int | float], memory: GlobalMemory,
        shared: SharedMemory, approximation: Approximation, seed: int,
    ) -> None:  # fmt: skip
        self.cta = 0
        self._program = program
        self._memory = memory
        self._shared = shared
        self._approximation = approximation
        self._symbols = program.shared | {
            name: 8 * place for place, (name, _) in enumerate(program.params)
        }
        self._params = _packed_params(program, params)
        self.registers = Registers(program, self._symbols, seed)
        self._threads = np.arange(program.threads)
        self._copies = Copies(memory, shared, program.threads)

    def of(self, instruction: Instruction) -> Step:
        """Return the function of an instruction. That of a branch or barrier does nothing.

        Raises:
            UnsupportedPtxError: If the instruction is not modelled.
        """
        if instruction.opcode.split(".")[0] in CONTROL:
            return _nothing
        try:
            step = self._step(instruction)
        except (KeyError, ValueError, IndexError) as error:
            raise UnsupportedPtxError(instruction.text) from error
        if instruction.guard is None:
            return step
        guard, negated = self.registers.register(instruction.guard), instruction.negated

        def guarded(mask: Mask) -> None:
            chosen = ~guard if negated else guard.copy()
            if mask is not True:
                chosen &= mask
            if chosen.any():
                step(chosen)

        return guarded

    def _step(self, instruction: Instruction) -> Step:
        name, *modifiers = instruction.opcode.split(".")
        if name in _IGNORED:
            return _nothing
        if name in warp.NAMES:
            return self._warp_step(instruction)
        if name in {"ld", "st"}:
            space = modifiers[0].split("::")[0]
            if space == "param":
                return self._load_param(instruction)
            if space in {"global", "shared"}:
                return self._memory_step(instruction, space)
        if name == "cp" and modifiers[0] == "async":
            return self._copy_step(instruction, modifiers[1:])
        if name == "mov":
            return self._move(instruction)
        return self._elementwise(name, modifiers, instruction)

    def _elementwise(self, name: str, modifiers: list[str], instruction: Instruction) -> Step:
        target, *sources = instruction.operands
        if name == "setp" and modifiers[-1].endswith("x2"):
            return self._comparison_of_halves(modifiers, instruction)
        function, types = self._function(name, modifiers, instruction, len(sources))
        if function is None:
            raise UnsupportedPtxError(instruction.text)
        read, write = self.registers.read, self.registers.write
        values = [read(s, t) for s, t in zip(sources, types[1:], strict=True)]
        if name == "cvt":
            whole = self.registers.register(target)  # the sign of a narrow integer fills it
            return lambda mask: np.copyto(
                whole, _extended(function(*values), whole.dtype), where=mask
            )
        result = write(target, types[0])
        if isinstance(function, np.ufunc):
            return lambda mask: function(*values, out=result, where=mask)
        return lambda mask: np.copyto(result, function(*values), where=mask)

    def _comparison_of_halves(self, modifiers: list[str], instruction: Instruction) -> Step:
        """Compare packed numbers: the low halves for the first predicate, then the high halves."""
        kind = modifiers[-1].removesuffix("x2")
        function = comparison(modifiers, kind)
        target, *sources = instruction.operands
        if function is None or len(sources) != 2:
            raise UnsupportedPtxError(instruction.text)
        results = [self.registers.write(name, "pred") for name in target.split("|")]
        values = [self.registers.register(source).view(DTYPES[kind]) for source in sources]

        def step(mask: Mask) -> None:
            for half, result in enumerate(results):
                np.copyto(result, function(*(v[half::2] for v in values)), where=mask)

        return step

    def _function(
        self, name: str, modifiers: list[str], instruction: Instruction, count: int
    ) -> tuple[Callable[..., Array] | None, list[str]]:
        """Return the function of the result, and the types of the result and of each source."""
        kind = modifiers[-1] if modifiers else ""
        if name == "setp":
            function = comparison(modifiers, kind)
            if count == 3 and function is not None:
                function = _combined(function, modifiers[1])
            return function, ["pred", kind, kind, "pred"][: count + 1]
        if name == "selp":
            return lambda a, b, p: np.asarray(np.where(p, a, b)), [kind, kind, kind, "pred"]
        if name == "cvt":
            target, source = modifiers[-2:]
            return conversion(modifiers), [target, *[source] * count]
        function = function_of(instruction.opcode, self._approximation)
        types = [kind] * (count + 1)
        if is_mixed(name, modifiers):
            types[0] = types[-1] = "f32"
        elif name in {"shl", "shr"}:
            types[2] = "u32"
        elif name == "bfe":
            types[-2:] = ["u32", "u32"]
        elif name == "popc":
            types[0] = "u32"
        elif "wide" in modifiers:
            wide = kind[0] + str(2 * int(kind[1:]))
            types[0] = wide
            if name == "mad":
                types[3] = wide
        return function, types

    def _move(self, instruction: Instruction) -> Step:
        kind = instruction.opcode.split(".")[-1]
        target, source = instruction.operands
        if target.startswith("{"):
            return self._unpack(target, source, kind)
        if source.startswith("{"):
            return self._pack(target, source, kind)
        value = self.registers.read(source, kind)
        result = self.registers.write(target, kind)
        return lambda mask: np.copyto(result, value, where=mask)

    def _unpack(self, target: str, source: str, kind: str) -> Step:
        parts = _list(target)
        whole = self.registers.register(source)
        part_kind = f"b{int(kind[1:]) // len(parts)}"
        pieces = [whole.view(DTYPES[part_kind])[place :: len(parts)] for place in range(len(parts))]
        results = [self.registers.write(part, part_kind) for part in parts]

        def step(mask: Mask) -> None:
            for result, piece in zip(results, [p.copy() for p in pieces], strict=True):
                np.copyto(result, piece, where=mask)

        return step

    def _pack(self, target: str, source: str, kind: str) -> Step:
        parts = _list(source)
        bits = int(kind[1:]) // len(parts)
        values = [self.registers.read(part, f"b{bits}") for part in parts]
        result = self.registers.write(target, kind)
        dtype = result.dtype.type

        def step(mask: Mask) -> None:
            whole = dtype(0)
            for place, value in enumerate(values):
                whole = whole | value.astype(dtype) << dtype(bits * place)
            np.copyto(result, whole, where=mask)

        return step

    def _load_param(self, instruction: Instruction) -> Step:
        target, address = instruction.operands
        kind = instruction.opcode.split(".")[-1]
        places = self._address(address)
        result = self.registers.register(target)
        span = np.arange(np.dtype(DTYPES[kind]).itemsize)

        def step(mask: Mask) -> None:
            values = self._params[places()[:, None].astype(np.int64) + span].view(DTYPES[kind])
            np.copyto(result, _extended(values.ravel(), result.dtype), where=mask)

        return step

    def _address(self, operand: str) -> Callable[[], Array]:
        name, _, offset = operand.strip("[] ").partition("+")
        name = name.strip()
        shift = int(offset or 0)
        if name.startswith("%"):
            register = self.registers.register(name)
            moved = register.dtype.type(shift % 2 ** (8 * register.itemsize))
            return lambda: register + moved
        place = np.full(self._program.threads, self._symbols[name] + shift, np.uint32)
        return lambda: place

    def _memory_step(self, instruction: Instruction, space: str) -> Step:
        is_load = instruction.opcode.startswith("ld")
        first, second = instruction.operands[:2]
        address, registers = (second, first) if is_load else (first, second)
        kind = instruction.opcode.split(".")[-1]
        places = self._address(address)
        memory = self._memory if space == "global" else self._shared
        parts = _list(registers)
        width = len(parts) * np.dtype(DTYPES[kind]).itemsize

        def access(mask: Mask) -> Access:
            chosen = self._chosen(mask)
            return Access(instruction, chosen, places()[chosen], width, self.cta)

        if is_load:
            results = [self.registers.register(part) for part in parts]
            return lambda mask: self._load(memory, access(mask), results, kind)
        values = [self.registers.read(part, kind) for part in parts]
        return lambda mask: self._store(memory, access(mask), values)

    @staticmethod
    def _load(
        memory: GlobalMemory | SharedMemory, access: Access, results: list[Array], kind: str
    ) -> None:
        numbers = np.ascontiguousarray(memory.load(access)).view(DTYPES[kind])
        for place, result in enumerate(results):
            result[access.threads] = _extended(numbers[:, place], result.dtype)

    @staticmethod
    def _store(memory: GlobalMemory | SharedMemory, access: Access, values: list[Array]) -> None:
        count = len(access.threads)
        chosen = [np.broadcast_to(v, (v.size,))[access.threads] if v.ndim else np.full(count, v)
                  for v in values]  # fmt: skip
        memory.store(access, np.stack(chosen, 1).view(np.uint8).reshape(count, access.width))

    def _chosen(self, mask: Mask) -> Array:
        """Return the threads that take part."""
        return self._threads if mask is True else np.flatnonzero(mask)

    def _copy_step(self, instruction: Instruction, modifiers: list[str]) -> Step:
        """Return the function of a ``cp.async`` that is not a bulk copy."""
        copies = self._copies
        if modifiers == ["commit_group"]:
            return lambda mask: copies.commit(self._chosen(mask))
        if modifiers == ["wait_all"]:
            return lambda mask: copies.wait(self._chosen(mask), self.cta, None)
        if modifiers == ["wait_group"]:
            pending = int(instruction.operands[0], 0)
            return lambda mask: copies.wait(self._chosen(mask), self.cta, pending)
        spaces = [modifier.split("::")[0] for modifier in modifiers[1:3]]
        if modifiers[0] not in {"ca", "cg"} or spaces != ["shared", "global"]:
            raise UnsupportedPtxError(instruction.text)
        target, source, size, *rest = instruction.operands
        if modifiers[-1] == "L2::cache_hint":
            rest.pop()
        targets, sources, width = self._address(target), self._address(source), int(size, 0)
        length = self.registers.read(rest[0] if rest else size, "u32")

        def step(mask: Mask) -> None:
            chosen = self._chosen(mask)
            lengths = np.broadcast_to(length, (self._program.threads,))[chosen]
            if not np.isin(lengths, (0, width)).all():
                raise UnsupportedPtxError(f"{instruction.text}: copies a part")
            access = Access(instruction, chosen, sources()[chosen], width, self.cta)
            copies.begin(access, targets()[chosen], lengths > 0)

        return step

    def finish_copies(self) -> None:
        """Do the copies that nothing waited for, at the end of a CTA."""
        self._copies.wait(self._threads, self.cta, None)

    def _warp_step(self, instruction: Instruction) -> Step:
        name, *modifiers = instruction.opcode.split(".")
        if name in {"ldmatrix", "stmatrix"}:
            return self._matrix_step(instruction, "trans" in modifiers)
        read = self.registers.read
        target, *sources = instruction.operands
        result = self.registers.write(target.split("|")[0], "b32")
        value = read(sources[0], modifiers[-1])
        options = [read(s, "u32") for s in sources[1:]]

        def step(mask: Mask) -> None:
            wide = np.broadcast_to(value, (self._program.threads,))
            moved = warp.exchange(name, modifiers, wide, options)
            np.copyto(result, moved.view(result.dtype), where=mask)

        return step

    def _matrix_step(self, instruction: Instruction, transposed: bool) -> Step:
        is_load = instruction.opcode.startswith("ldmatrix")
        first, second = instruction.operands
        address, names = (second, first) if is_load else (first, second)
        places = self._address(address)
        registers = [self.registers.register(part) for part in _list(names)]

        def step(mask: Mask) -> None:
            lanes = self._chosen(mask)
            at = places()
            for number, register in enumerate(registers):
                rows = lanes[lanes % WARP // 8 == number]  # whose addresses are of this matrix
                access = Access(instruction, rows, at[rows], 16, self.cta)
                if is_load:
                    matrix = self._shared.load(access)
                    register[lanes] = warp.fragments(matrix, transposed)
                else:
                    self._shared.store(access, warp.rows(register[lanes], transposed))

        return step


def _nothing(mask: Mask) -> None:
    pass


def _list(operand: str) -> list[str]:
    return [part.strip() for part in operand.strip("{} ").split(",")]


def _combined(function: Callable[..., Array], name: str) -> Callable[..., Array]:
    join = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[name]
    return lambda a, b, p: join(function(a, b), p)


def _extended(values: Array, dtype: np.dtype[Any]) -> Array:
    """Return numbers as registers hold them: the bits of floats, integers with their sign."""
    if values.dtype.kind == "f":
        values = np.ascontiguousarray(values).view(f"u{values.itemsize}")
    return values.astype(dtype)


def _packed_params(program: Program, params: Sequence[int | float]) -> Array:
    """Return the bytes of the parameters, eight for each."""
    if len(params) != len(program.params):
        raise ValueError(f"{program.name} has {len(program.params)} parameters, not {len(params)}")
    packed = [
        struct.pack("<f", value).ljust(8, b"\0")
        if kind == "f32"
        else struct.pack("<d", value)
        if kind == "f64"
        else (int(value) % 2**64).to_bytes(8, "little")
        for (_, kind), value in zip(program.params, params, strict=True)
    ]
    return np.frombuffer(b"".join(packed), np.uint8)


def class_of(opcode: str) -> str:
    """Return the class in which an instruction is counted."""
    name, *modifiers = opcode.split(".")
    if name in {"ld", "st"}:
        return f"{name}.{modifiers[0].split('::')[0]}"
    if name == "cp":
        return "copy" if "global" in modifiers else "other"
    if name in warp.NAMES:
        return "shuffle" if name in {"shfl", "redux"} else name
    if name in {"ex2", "rsqrt", "sqrt", "tanh"}:
        return "special function"
    if name == "cvt":
        return "convert"
    if name in CONTROL:
        return "barrier" if name == "bar" else "branch"
    if name in {"mov", "selp", "setp"}:
        return name
    if name in _IGNORED:
        return "other"
    kind = modifiers[-1] if modifiers else ""
    return {"f32": "float32", "f32x2": "float32", "f64": "float64"}.get(
        kind, "half" if "f16" in kind else "integer"
    )
