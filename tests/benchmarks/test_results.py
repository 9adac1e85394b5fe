"""Results on disk: whole at every moment, clear when they cannot be read."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.results import SCHEMA, Results

# Adds rows, then is killed: between two, or in the step that puts a row on disk.
KILLED = """
import os, signal, sys
from pathlib import Path
from benchmarks.results import Results

def die(*paths):
    os.kill(os.getpid(), signal.SIGKILL)

results = Results(Path(sys.argv[1]), {"gpu": None}, [])
results.add({"op": "first"})
results.add({"op": "second"})
if sys.argv[2] == "within":
    os.replace = die
    results.add({"op": "third"})
die()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kernels.json"


@pytest.mark.parametrize("moment", ["between", "within"])
def test_a_killed_run_leaves_every_finished_row(path: Path, moment: str) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, path, moment], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert Results.load(path).rows == [{"op": "first"}, {"op": "second"}]


def test_what_is_saved_is_loaded(path: Path) -> None:
    results = Results.create(path)
    results.add({"op": "dropout", "ratio": 1.25, "reason": None})
    assert json.loads(path.read_text())["schema"] == SCHEMA
    assert Results.load(path) == results
    assert [file.name for file in path.parent.iterdir()] == ["kernels.json"]


def test_find_needs_every_field_to_agree(path: Path) -> None:
    rows = [{"op": "a", "shape": "1"}, {"op": "a", "shape": "2"}, {"op": "b"}]
    results = Results(path, {}, rows)
    assert results.find(op="a") == rows[:2]
    assert results.find(op="a", shape="2") == [rows[1]]
    assert results.find(op="b", shape="2") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a file of benchmark results"),
        ("[1, 2]", "not a file of benchmark results"),
        ('{"schema": 1, "rows": []}', "environment"),
        ('{"schema": 99, "environment": {}, "rows": []}', "has schema 99, this reads schema 1"),
    ],
)
def test_load_names_the_file_and_the_fault(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Results.load(path)
    assert str(path) in str(caught.value)


def test_resume_goes_on_and_a_fresh_start_does_not(path: Path) -> None:
    Results.create(path).add({"op": "first"})
    resumed = Results.create(path, resume=True)
    resumed.add({"op": "second"})
    assert [row["op"] for row in Results.load(path).rows] == ["first", "second"]
    assert Results.create(path).rows == []
    assert len(Results.load(path).rows) == 2  # until the first row of the new run


@pytest.mark.parametrize(
    ("field", "value"), [("revision", "0000000"), ("gpu", "other GPU"), ("torch", "1.0")]
)
def test_resume_refuses_what_was_measured_elsewhere(path: Path, field: str, value: Any) -> None:
    environment = {**Results.create(path).environment, field: value}
    Results(path, environment, [{"op": "first"}]).save()
    with pytest.raises(ValueError, match=f"measured with {field} {value}"):
        Results.create(path, resume=True)
    assert Results.load(path).rows == [{"op": "first"}]
