"""``readme``: write the README's performance section from the newest committed results."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.results import Results
from benchmarks.rows import Row, grouped, is_ok, kind_of
from lightning_practices.files import write_file

BEGIN = "<!-- performance: begin -->"
END = "<!-- performance: end -->"
ROOT = Path(__file__).parents[1]

NOT_MEASURED = (
    "GPU figures are not measured yet: on a machine with a GPU, `python -m benchmarks kernels"
    " --shapes full --out benchmarks/results/GPU` makes them."
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
        help="the file to rewrite",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=ROOT / "benchmarks" / "results",
        metavar="DIR",
        help="folder of a folder of results for each GPU",
    )


def main(arguments: argparse.Namespace) -> int:
    """Rewrite or check the section; return 2 if the README has no markers for it."""
    try:
        text = arguments.readme.read_text()
        wanted = replace_section(text, section(arguments.results))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if text == wanted:
        print(f"{arguments.readme} is up to date")
        return 0
    if arguments.check:
        print(f"{arguments.readme} is out of date: run python -m benchmarks readme")
        return 1
    write_file(arguments.readme, wanted)
    print(f"rewrote the performance section of {arguments.readme}")
    return 0


def replace_section(text: str, content: str) -> str:
    """Return ``text`` with ``content`` between the two markers.

    Raises:
        ValueError: If the markers don't occur exactly once each, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the README needs the lines {BEGIN} and {END}, once each, in this order")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{content.strip()}\n{END}{after}"


def section(folder: Path) -> str:
    """Return the section as Markdown, from the newest file of each kind for each GPU.

    Raises:
        ValueError: If a file in ``folder`` is not a file of results.
    """
    files = [Results.load(path) for path in sorted(folder.glob("*/*.json"))]
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
