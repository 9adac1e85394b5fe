"""The JSON file of a command's results: a list of flat rows, complete after every measurement."""

import argparse
import dataclasses
import functools
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import Row
from lightning_practices.files import write_file

SCHEMA = 1


@dataclasses.dataclass
class Results:
    """The rows of one run, and the environment in which they were measured.

    The file is replaced atomically after each row. So an interrupted run keeps its finished rows,
    and a resumed run continues after them.

    Attributes:
        path: The JSON file: ``{"schema": 1, "environment": {...}, "rows": [...]}``.
        environment: The machine, the versions and the revision, see :func:`describe_environment`.
        rows: One flat dictionary per measurement.
    """

    path: Path
    environment: dict[str, Any]
    rows: list[Row]

    @classmethod
    def create(cls, path: Path, resume: bool = False) -> "Results":
        """Start a new file, or resume the file at ``path``.

        Raises:
            ValueError: If a file to resume was measured with another revision, GPU or version.
        """
        environment = describe_environment()
        if not (resume and path.exists()):
            path.parent.mkdir(parents=True, exist_ok=True)
            return cls(path, environment, [])
        results = cls.load(path)
        for name in ("gpu", "revision", "torch", "triton"):
            if results.environment[name] != environment[name]:
                raise ValueError(
                    f"{path} was measured with {name} {results.environment[name]}, but this is"
                    f" {environment[name]}: choose another --out, or leave --resume out"
                )
        return results

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read a file of results.

        Raises:
            ValueError: If the file is not a file of results, or has another schema.
        """
        try:
            content = json.loads(path.read_text())
            schema, environment, rows = (content[k] for k in ("schema", "environment", "rows"))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a file of benchmark results: {error!r}") from error
        if schema != SCHEMA:
            raise ValueError(f"{path} has schema {schema}, this reads schema {SCHEMA}")
        return cls(path, environment, rows)

    def find(self, **key: Any) -> list[Row]:
        """Return the rows that contain every item of ``key``."""
        return [row for row in self.rows if key.items() <= row.items()]

    def add(self, row: Row) -> None:
        """Append a row, and save the file."""
        self.rows.append(row)
        self.save()

    def replace(self, key: Row, rows: list[Row]) -> None:
        """Replace the rows that contain every item of ``key`` by ``rows``, and save once."""
        self.rows = [row for row in self.rows if not key.items() <= row.items()] + rows
        self.save()

    def save(self) -> None:
        """Write the file, atomically."""
        content = {"schema": SCHEMA, "environment": self.environment, "rows": self.rows}
        write_file(self.path, json.dumps(content, indent=1) + "\n")


def add_out(parser: argparse.ArgumentParser, contents: str, resume: bool = False) -> None:
    """Add ``--out``, the folder of a command's results, and with ``resume`` also ``--resume``."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/benchmarks"),
        metavar="DIR",
        help=f"folder of {contents} (default: %(default)s)",
    )
    if resume:
        parser.add_argument("--resume", action="store_true", help=f"go on with {contents}")


def describe_environment() -> dict[str, Any]:
    """Return the machine, the versions and the revision, which a repeated measurement needs."""
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "gpu": gpu.name if gpu else None,
        "gpu_memory_gib": round(gpu.total_memory / 2**30, 1) if gpu else None,
        "multiprocessors": gpu.multi_processor_count if gpu else None,
        "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cpu": platform.processor() or platform.machine(),
        "cpu_cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": version_of("triton"),
        "lightning": version_of("lightning") or version_of("pytorch-lightning"),
        "revision": _revision(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@functools.cache
def version_of(distribution: str) -> str | None:
    """Return the version of an installed package, or ``None`` if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """Return the commit, marked if the working tree differs; ``None`` outside of a checkout."""
    here = Path(__file__).parent
    commit = _first_line("git", "-C", str(here), "rev-parse", "--short", "HEAD")
    changed = _first_line("git", "-C", str(here), "status", "--porcelain")
    return f"{commit}+changes" if commit and changed else commit


def _first_line(*command: str) -> str | None:
    try:
        result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.split("\n")[0].strip() or None
