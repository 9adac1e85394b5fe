"""Every file is replaced as a whole: a failure leaves the old file, and nothing beside it."""

import ast
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.results import Results
from lightning_practices.callbacks import write_schedule
from lightning_practices.files import replacing, write_file

pytestmark = pytest.mark.plain

ROOT = Path(__file__).parents[1]
FOLDERS = ("kernels", "lightning_practices", "benchmarks", "examples")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

# Calls that write a whole file.
METHODS = ("write_text", "write_bytes", "savefig", "imsave", "export_chrome_trace")
FUNCTIONS = ("shutil.copy", "shutil.copy2", "torch.save", "json.dump", "yaml.dump")

# Calls of these names that write no file, or a log that grows while a process runs.
EXCEPTIONS = {
    ("lightning_practices/callbacks/_curves/file.py", "figure.savefig"),  # into memory
    ("benchmarks/gpu_check.py", "full_log.open"),
}


@contextmanager
def full_disk(free: int = 64) -> Iterator[None]:
    """Let the system refuse every byte of a file after the first ``free`` ones."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_is_new_or_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_file(file, "first")
    assert content(tmp_path) == {"a.txt": b"first"}
    write_file(str(file), b"\xff second")
    assert content(tmp_path) == {"a.txt": b"\xff second"}
    with file.open("rb") as read:
        write_file(file, "à")
        assert read.read() == b"\xff second"
    assert file.read_text(encoding="utf-8") == "à"


def test_the_temporary_file_is_beside_and_has_the_suffix(tmp_path: Path) -> None:
    file = tmp_path / ("long" * 60 + ".tar.png")
    file.write_text("old")
    with replacing(file) as part, replacing(file) as other:
        assert part.parent == other.parent == tmp_path
        assert part != other
        assert part.suffix == ".png"
        part.write_text("new")
        other.write_text("newer")
        assert file.read_text() == "old"
    assert content(tmp_path) == {file.name: b"new"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("there", [True, False])
def test_an_error_leaves_the_old_file_alone(
    tmp_path: Path, there: bool, error: type[BaseException]
) -> None:
    file = tmp_path / "a.txt"
    if there:
        file.write_text("old")
    with pytest.raises(error, match="half way"), replacing(file) as part:  # noqa: PT012
        part.write_text("ne")
        raise error("half way")
    assert content(tmp_path) == ({"a.txt": b"old"} if there else {})


def test_a_full_disk_leaves_the_old_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_file(file, "old")
    with pytest.raises(OSError, match="File too large"), full_disk():
        write_file(file, "new" * 100)
    assert content(tmp_path) == {"a.txt": b"old"}


def test_a_killed_process_leaves_the_old_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_file(file, "old")
    code = f"""
import os, signal
from lightning_practices.files import replacing
with replacing({str(file)!r}) as part:
    part.write_text("ne")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == -signal.SIGKILL
    assert file.read_text() == "old"


def test_threads_may_write_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    texts = [f"{n}" * 1000 for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_file(file, text), texts))
    assert list(content(tmp_path)) == ["a.txt"]
    assert file.read_text() in texts


def test_permissions_are_the_usual_ones_and_then_those_of_the_old_file(tmp_path: Path) -> None:
    file, usual = tmp_path / "a.txt", tmp_path / "b.txt"
    usual.write_text("")
    write_file(file, "first")
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)
    file.chmod(0o640)
    write_file(file, "second")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_links_and_pipes_stay(tmp_path: Path) -> None:
    file, link, pipe = tmp_path / "a.txt", tmp_path / "link.txt", tmp_path / "pipe"
    link.symlink_to(file)
    write_file(link, "through the link")
    assert link.is_symlink()
    assert file.read_text() == "through the link"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_file(pipe, "through the pipe")
    assert os.read(reader, 100) == b"through the pipe"
    os.close(reader)
    assert pipe.is_fifo()


def test_a_folder_that_is_missing_or_in_the_place(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        write_file(tmp_path / "none" / "a.txt", "text")
    with pytest.raises(IsADirectoryError):
        write_file(tmp_path, "text")
    assert content(tmp_path) == {}
    assert not list(tmp_path.parent.glob(".part-*"))


# The callers.


def test_a_schedule_on_a_full_disk(tmp_path: Path) -> None:
    file = tmp_path / "phases.yaml"
    phases = [{"blocks": [f"block{n}"], "until": {"epoch": 1}} for n in range(9)]
    last = [{"blocks": ["last"]}]
    write_schedule(last, file)
    before = content(tmp_path)
    with pytest.raises(OSError, match="File too large"), full_disk():
        write_schedule([*phases, *last], file)
    assert content(tmp_path) == before


def test_results_on_a_full_disk(tmp_path: Path) -> None:
    results = Results(tmp_path / "kernels.json", {}, [])
    results.save()
    before = content(tmp_path)
    with pytest.raises(OSError, match="File too large"), full_disk():
        results.add({"op": "layer_norm" * 100})
    assert content(tmp_path) == before


def written_elsewhere(source: str, name: str) -> list[str]:
    """Return the calls that write a file, and are not in a block of :func:`replacing`."""
    tree = ast.parse(source)
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.With)
        and any("replacing(" in ast.unparse(item.context_expr) for item in block.items)
        for node in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or id(node) in guarded:
            continue
        called = ast.unparse(node.func)
        if _writes(node, called) and (name, called) not in EXCEPTIONS:
            found.append(ast.unparse(node))
    return found


def _writes(node: ast.Call, called: str) -> bool:
    leaf = called.rpartition(".")[2]
    if leaf == "open":
        modes = [ast.unparse(value) for value in (*node.args, *(k.value for k in node.keywords))]
        return any(mode.strip("'\"") in ("w", "wb", "w+", "x", "xb") for mode in modes)
    return leaf in METHODS or called in FUNCTIONS


def test_no_file_is_written_in_place() -> None:
    names = [str(path.relative_to(ROOT)) for path in SOURCES]
    found = {name: written_elsewhere((ROOT / name).read_text(), name) for name in names}
    assert {name: calls for name, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("path.write_text('x')", 1),
        ("with replacing(path) as part:\n  figure.savefig(part)", 0),
        ("with open(path, 'wb') as file:\n  file.write(b'')", 1),
        ("open(path, mode='a')", 0),
        ("open(path)", 0),
        ("shutil.copy2(a, b)", 1),
    ],
)
def test_the_rule_itself(source: str, count: int) -> None:
    assert len(written_elsewhere(source, "a.py")) == count
