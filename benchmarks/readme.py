"""``readme``: write the figures of README.md and docs/kernels.md from the committed results."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.results import Results
from benchmarks.rows import Row, grouped, is_ok, kind_of
from lightning_kernels._core.crossover import TABLE
from lightning_practices.files import write_file

PERFORMANCE, PREDICTIONS, CROSSOVERS = "performance", "predictions", "crossovers"
ROOT = Path(__file__).parents[1]

NOT_MEASURED = (
    "GPU figures are not measured yet: on a machine with a GPU, `python -m benchmarks kernels"
    " --shapes full --out benchmarks/results/GPU` makes them."
)
NOT_PREDICTED = (
    "Nothing is predicted yet: `python -m benchmarks static --typical --out"
    " benchmarks/results/predicted` makes the table."
)
_KINDS = ("kernels", "fit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``readme``."""
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if it would change"
    )
    parser.add_argument(
        "--readme",
        type=Path,
        default=ROOT / "README.md",
        metavar="FILE",
        help="the file with a section of measurements",
    )
    parser.add_argument(
        "--kernels",
        type=Path,
        default=ROOT / "docs" / "kernels.md",
        metavar="FILE",
        help="the file with sections of predictions and of the sizes from which kernels run",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=ROOT / "benchmarks" / "results",
        metavar="DIR",
        help="folder of a folder of results for each GPU, and of one for the predictions",
    )


def main(arguments: argparse.Namespace) -> int:
    """Rewrite or check the sections; return 2 if a document has no markers for one."""
    try:
        files = [Results.load(path) for path in sorted(arguments.results.glob("*/*.json"))]
        sections = {
            arguments.readme: {PERFORMANCE: performance(files)},
            arguments.kernels: {PREDICTIONS: predictions(files), CROSSOVERS: crossovers()},
        }
        texts = {path: path.read_text() for path in sections}
        wanted = {path: replace_sections(texts[path], sections[path]) for path in sections}
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    stale = [path for path in texts if texts[path] != wanted[path]]
    for path in texts:
        if path not in stale:
            print(f"{path} is up to date")
        elif arguments.check:
            print(f"{path} is out of date: run python -m benchmarks readme")
        else:
            write_file(path, wanted[path])
            print(f"rewrote the figures of {path}")
    return 1 if stale and arguments.check else 0


def markers(name: str) -> tuple[str, str]:
    """Return the lines before and after the section of this name."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def replace_sections(text: str, contents: Mapping[str, str]) -> str:
    """Return ``text`` with the contents between the markers of each section.

    Raises:
        ValueError: If the markers of a section don't occur exactly once each, in order.
    """
    for name, content in contents.items():
        begin, end = markers(name)
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise ValueError(
                f"a document needs the lines {begin} and {end}, once each, in this order"
            )
        before, rest = text.split(begin)
        after = rest.split(end)[1]
        text = f"{before}{begin}\n{content.strip()}\n{end}{after}"
    return text


def predictions(files: Sequence[Results]) -> str:
    """Return the table of the newest predictions as Markdown."""
    candidates = [f for f in files if any(kind_of(row) == "prediction" for row in f.rows)]
    if not candidates:
        return NOT_PREDICTED
    newest = max(candidates, key=lambda results: str(results.environment.get("date")))
    rows = [row for row in newest.rows if kind_of(row) == "prediction"]
    parts = [
        "Predicted, not measured, by `python -m benchmarks static --typical --out"
        f" benchmarks/results/predicted`. {report.describe(newest)}",
        report.table(*report.pivot(rows), text_columns=2),
    ]
    return "\n\n".join(parts)


def crossovers() -> str:
    """Return the table of sizes from which kernels run as Markdown."""
    lines = []
    for operation, crossover in TABLE.items():
        least = f"{crossover.least_bytes >> 20} MiB" if crossover.least_bytes else "any size"
        dtypes = sorted(str(dtype).removeprefix("torch.") for dtype in crossover.dtypes)
        plane = f"of a multiple of {crossover.plane} elements" if crossover.plane > 1 else "any"
        lines.append((f"`{operation}`", least, ", ".join(dtypes), plane))
    headings = ("operation", "inputs from", "dtypes", "contiguous planes")
    return report.table(headings, lines, text_columns=len(headings))


def performance(files: Sequence[Results]) -> str:
    """Return the measurements as Markdown, from the newest file of each kind for each GPU."""
    files = [results for results in files if results.environment.get("gpu")]
    parts = []
    for gpu in sorted({results.environment["gpu"] for results in files}):
        of_gpu = [results for results in files if results.environment["gpu"] == gpu]
        parts.append("\n\n".join(_of_gpu(of_gpu)))
    return "\n\n".join(part for part in parts if part) or NOT_MEASURED


def _of_gpu(files: Sequence[Results]) -> Iterator[str]:
    for kind in _KINDS:
        candidates = [
            results for results in files if any(kind_of(row) == kind for row in results.rows)
        ]
        if not candidates:
            continue
        newest = max(candidates, key=lambda results: str(results.environment.get("date")))
        rows = [row for row in newest.rows if kind_of(row) == kind]
        yield f"Measured by `python -m benchmarks {kind}` on {report.describe(newest)}"
        yield from _kernels(rows) if kind == "kernels" else _fit(rows)


def _kernels(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "The floor is the time in which the bytes that must move can be copied; ratios are"
        " geometric means of a peer's time over ours, above 1 where ours is faster."
    )
    yield report.table(report.SUMMARY_HEADINGS, report.summarise(rows), text_columns=3)
    left = [row for row in rows if not is_ok(row)]
    if left:
        groups = grouped(left, "status", "provider", "op")
        named = (f"{provider} {status} ({op})" for status, provider, op in groups)
        yield f"Not in these figures: {', '.join(named)}."


def _fit(rows: Sequence[Row]) -> Iterator[str]:
    if any(row.get("short") for row in rows):
        yield "A short run, of a few steps."
    good = [row for row in rows if is_ok(row)]
    headings = (
        "model", "variant", "ms per step", "time over plain", "peak MiB", "share of replaced ops"
    )  # fmt: skip
    fields = (
        "model", "variant", "milliseconds_per_step", "ratio_to_plain", "peak_mib",
        "share_of_replaced_ops",
    )  # fmt: skip
    yield report.table(headings, ([row.get(f) for f in fields] for row in good), text_columns=2)
    failed = [f"{row['model']} {row['variant']}" for row in rows if not is_ok(row)]
    if failed:
        yield f"Failed: {', '.join(failed)}."
