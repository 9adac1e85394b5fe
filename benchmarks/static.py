"""``static``: compile every kernel without a GPU, and report its machine code."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import lightning_kernels
from benchmarks import report, screen
from benchmarks.launches import CALLS, launches_of
from benchmarks.machine_code import (
    TARGETS,
    Launch,
    MachineCode,
    compile_launch,
    most_spills,
)
from benchmarks.results import Results, add_out
from benchmarks.rows import Row, cell

_DEFAULT_WARPS = 4  # Triton's default

_COLUMNS = {
    "target": "sm",
    "num_warps": "warps",
    "registers": "regis-\nters",
    "spills": "spilled\nbytes",
    "shared": "shared\nbytes",
    "vector_bits": "vector\nbits",
    "loads": "loads",
    "stores": "stores",
    "bytes_per_element": "bytes per\nelement",
    "other_bytes_per_element": "smaller\naccesses'",
}
_CAPTION = "loads and stores: how many instructions x bits"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``static``."""
    parser.add_argument(
        "--targets",
        type=int,
        nargs="+",
        choices=TARGETS,
        default=list(TARGETS),
        help="compute capabilities, times ten (default: all)",
    )
    parser.add_argument(
        "--calls",
        nargs="+",
        type=_known,
        metavar="NAME",
        help="only the calls whose name begins with one of these, such as 'layer_norm bf16'",
    )
    add_out(parser, "static.json and static.md")


def main(arguments: argparse.Namespace) -> int:
    """Report every launch; return 1 if a launch doesn't compile or spills more than allowed."""
    if lightning_kernels.route(torch.ones(1)) == "interpreter":
        print("static compiles kernels: unset TRITON_INTERPRET", file=sys.stderr)
        return 2
    results = Results.create(arguments.out / "static.json")
    console = screen.console()
    calls = [name for name in CALLS if name.startswith(tuple(arguments.calls or [""]))]
    work = list(_work(calls, arguments.targets))
    for call, index, launch, target in track(work, "compiling", console=console, transient=True):
        results.add({"call": call, "launch": index, **_measure(launch, target)})
    _print(results.rows, console)
    console.print("wrote", *map(str, [results.path, *report.write(results, arguments.out)]))
    return _verdict(results.rows, console)


def _known(name: str) -> str:
    if not any(call.startswith(name) for call in CALLS):
        raise argparse.ArgumentTypeError(
            f"no call begins with {name!r}, choose from: {', '.join(CALLS)}"
        )
    return name


def _work(calls: Sequence[str], targets: Sequence[int]) -> Iterator[tuple[str, int, Launch, int]]:
    for call in calls:
        for index, launch in enumerate(launches_of(call)):
            for target in targets:
                yield call, index, launch, target


def _measure(launch: Launch, target: int) -> Row:
    """Return the row of one launch, also if the launch does not compile."""
    row: Row = {
        "kernel": launch.name,
        "target": target,
        "num_warps": launch.constants.get("num_warps", _DEFAULT_WARPS),
    }
    try:
        code = compile_launch(launch, target)
    except Exception as error:
        return {**row, "status": "failed", "reason": f"{type(error).__name__}: {error}"[:500]}
    return {**row, "status": "ok", "reason": None, **_describe(code)}


def _describe(code: MachineCode) -> Row:
    return {
        "registers": code.registers,
        "spills": code.spills,
        "shared": code.shared,
        "vector_bits": code.vector_bits,
        "loads": _count(code.load_bits),
        "stores": _count(code.store_bits),
        **code.traffic._asdict(),
    }


def _count(widths: Sequence[int]) -> str:
    """Return ``"12x128 2x32"`` for twelve accesses of 128 bits and two accesses of 32 bits."""
    return " ".join(f"{count}x{bits}" for bits, count in sorted(Counter(widths).items())[::-1])


def _print(rows: Sequence[Row], console: Console) -> None:
    table = Table("call", caption=_CAPTION)
    table.add_column("kernel", no_wrap=True)
    for heading in _COLUMNS.values():
        table.add_column(heading, justify="right")
    previous = None
    for row in rows:
        if previous not in (None, row["call"]):
            table.add_section()
        style = "bold red" if _is_bad(row) else None
        cells = (cell(row.get(name)) for name in _COLUMNS)
        call = "" if row["call"] == previous else row["call"]
        table.add_row(call, row["kernel"], *cells, style=style)
        previous = row["call"]
    console.print(table)


def _verdict(rows: Sequence[Row], console: Console) -> int:
    """Print launches that spill too much or fail; return the exit status."""
    bad = [row for row in rows if _is_bad(row)]
    for row in bad:
        why = row["reason"] or (
            f"spills {row['spills']} bytes a thread, more than {most_spills(row['kernel'])}"
        )
        console.print(f"{row['call']}, {row['kernel']}, sm_{row['target']}: {why}", markup=False)
    reasons = Counter(row["uncounted"] for row in rows if row.get("uncounted"))
    for reason, count in reasons.items():
        console.print(f"bytes not counted for {count} of {len(rows)}: {reason}")
    console.print(f"{len(rows)} compiled, {len(bad)} of them spill more than known or failed")
    return 1 if bad else 0


def _is_bad(row: Row) -> bool:
    """Return whether a launch failed to compile, or spills more than its kernel may."""
    return bool(row["status"] == "failed" or row["spills"] > most_spills(row["kernel"]))
