"""``static``: compile every kernel without a GPU, report its machine code and a prediction.

The prediction is explained in :mod:`benchmarks.prediction`. Nothing of it was measured.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import lightning_kernels
from benchmarks import report, screen
from benchmarks.gpus import GPUS, Gpu
from benchmarks.launches import CALLS, launches_of
from benchmarks.machine_code import (
    TARGETS,
    MachineCode,
    compile_launch,
    most_spills,
)
from benchmarks.prediction import Prediction, predict, predict_pass
from benchmarks.results import Results, add_out
from benchmarks.rows import Row, cell

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
_PREDICTED_COLUMNS = {
    "predicted_for": "for",
    "programs_per_sm": "programs\nper SM",
    "waves": "waves",
    "instructions_per_element": "instr. per\nelement",
    "kib_in_flight": "KiB in\nflight",
    "issue_share": "issue\nshare",
    "predicted_percent": "predicted\n%",
    "predicted_bound": "predicted\nbound",
}
_CAPTION = "loads and stores: how many instructions x bits"
_PREDICTED_CAPTION = (
    "PREDICTIONS, not measured. Instructions: of all threads, per element of the largest tensor."
    " Issue share: time to issue them over the memory time"
)


# Calls that stand for the use of each function, for the table in docs/kernels.md.
TYPICAL = (
    "layer_norm bf16 256x197x768",
    "layer_norm bf16 8192x4096",
    "layer_norm2d bf16 128x96x56x56 NHWC",
    "rms_norm bf16 8192x4096",
    "add_norm bf16 256x197x768",
    "batch_norm bf16 256x256x56x56 NHWC, residual True",
    "batch_norm bf16 256x256x56x56 NCHW, residual True",
    "group_norm bf16 8x320x64x64 NHWC",
    "instance_norm bf16 16x128x64x64 NHWC",
    "dropout bf16 256x197x768",
    "dropout_activation bf16 256x197x3072",
    "stochastic_depth bf16 128x96x56x56 NHWC",
    "drop_block bf16 256x512x28x28 NHWC",
)

_Predictions = dict[tuple[str, bool, Gpu], list[Prediction | None]]  # of each pass


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
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--typical",
        action="store_true",
        help="only a few calls of each function: those of the table in docs/kernels.md",
    )
    chosen.add_argument(
        "--calls",
        nargs="+",
        type=_known,
        metavar="NAME",
        help="only the calls whose name begins with one of these, such as 'layer_norm bf16'",
    )
    add_out(parser, "static.json and static.md")


def main(arguments: argparse.Namespace) -> int:
    """Report every launch and the predictions.

    Returns:
        1 if a launch doesn't compile or spills more than allowed, else 0.
    """
    if lightning_kernels.route(torch.ones(1)) == "interpreter":
        print("static compiles kernels: unset TRITON_INTERPRET", file=sys.stderr)
        return 2
    results = Results.create(arguments.out / "static.json")
    console = screen.console()
    begins = tuple(arguments.calls or [""])
    calls = TYPICAL if arguments.typical else [n for n in CALLS if n.startswith(begins)]
    work = list(_work(calls, arguments.targets))
    predictions: _Predictions = {}
    # No thread that refreshes the bar: it would take interrupts while a kernel is compiled.
    bar = track(work, "compiling", console=console, transient=True, auto_refresh=False)
    for call, index, target in bar:
        results.add({"call": call, "launch": index, **_measure(call, index, target, predictions)})
    rows = list(results.rows)
    _print(rows, _COLUMNS, _CAPTION, console)
    _print([row for row in rows if "waves" in row], _PREDICTED_COLUMNS, _PREDICTED_CAPTION, console)
    results.rows += _passes(predictions)
    results.save()
    _print_passes([row for row in results.rows if "direction" in row], console)
    console.print("wrote", *map(str, [results.path, *report.write(results, arguments.out)]))
    return _verdict(rows, console)


def _known(name: str) -> str:
    if not any(call.startswith(name) for call in CALLS):
        raise argparse.ArgumentTypeError(
            f"no call begins with {name!r}, choose from: {', '.join(CALLS)}"
        )
    return name


def _work(calls: Sequence[str], targets: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    for call in calls:
        for index in range(len(launches_of(call))):
            for target in targets:
                yield call, index, target


def _measure(call: str, index: int, target: int, predictions: _Predictions) -> Row:
    """Return the row of one launch, also if the launch does not compile.

    The predictions for all GPUs of the target are added to ``predictions``. The row has that for
    the last one.
    """
    launch = launches_of(call)[index]
    row: Row = {"kernel": launch.name, "target": target, "num_warps": launch.num_warps}
    try:
        code = compile_launch(launch, target)
    except Exception as error:
        return {**row, "status": "failed", "reason": f"{type(error).__name__}: {error}"[:500]}
    row |= {"status": "ok", "reason": None, **_describe(code)}
    for gpu in (gpu for gpu in GPUS.values() if gpu.target == target):
        launch = launches_of(call, gpu.multiprocessors)[index]
        try:
            prediction = predict(launch, code, gpu)
        except ValueError as error:
            predictions.setdefault((call, launch.backward, gpu), []).append(None)
            row |= {"predicted_for": gpu.name, "not_predicted": str(error)}
        else:
            predictions.setdefault((call, launch.backward, gpu), []).append(prediction)
            row |= {"predicted_for": gpu.name, **_describe_prediction(prediction)}
    return row


def _passes(predictions: _Predictions) -> Iterator[Row]:
    """Yield a row for each pass and GPU whose launches could all be predicted."""
    for (call, backward, gpu), of_pass in predictions.items():
        known = [p for p in of_pass if p is not None]
        if len(known) < len(of_pass) or not sum(p.floor_us for p in known):
            continue
        floor, predicted, bound = predict_pass(known)
        yield {
            "call": call, "direction": "backward" if backward else "forward",
            "predicted_for": gpu.name, "status": "ok", "floor_us": floor, "predicted_us": predicted,
            "predicted_percent": 100 * floor / predicted, "predicted_bound": bound,
            "guesses": sum(p.guesses for p in known),
        }  # fmt: skip


def _describe_prediction(prediction: Prediction) -> Row:
    names = (
        "programs_per_sm", "waves", "instructions", "instructions_per_element", "loops", "guesses",
        "kib_in_flight", "issue_share", "floor_us", "predicted_us",
    )  # fmt: skip
    return {
        **{name: getattr(prediction, name) for name in names},
        "predicted_percent": prediction.percent_of_floor,
        "predicted_bound": prediction.bound,
    }


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


def _print_passes(passes: Sequence[Row], console: Console) -> None:
    """Print the predictions of whole passes."""
    headings, lines = report.pivot(passes)
    table = Table(*headings, caption=report.PREDICTED)
    for line in lines:
        table.add_row(*map(cell, line))
    console.print(table)


def _print(rows: Sequence[Row], columns: Mapping[str, str], caption: str, console: Console) -> None:
    table = Table("call", caption=caption)
    table.add_column("kernel", no_wrap=True)
    for heading in columns.values():
        table.add_column(heading, justify="right")
    previous = None
    for row in rows:
        if previous not in (None, row["call"]):
            table.add_section()
        style = "bold red" if _is_bad(row) else None
        cells = (cell(row.get(name)) for name in columns)
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
