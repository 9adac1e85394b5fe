"""The runs of a table, what they give, and how they go on after an interruption."""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from scipy import stats

from lightning_practices import __version__
from lightning_practices.reproduce import Cell, Column, Results, Run, _run, draw, measure, show
from lightning_practices.reproduce._results import as_json
from tests.processes import DEADLINE
from tests.reproduce import experiments
from tests.reproduce.experiments import table

SEEDS = range(4)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """One process for all runs: to start one takes seconds, since it imports torch."""
    with _run._pool(1, 1, alone=False) as pool:
        yield pool


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch, pool: ProcessPoolExecutor) -> None:
    """Let calls of ``measure`` share a process, in tests of what they keep and show."""
    monkeypatch.setattr(_run, "_pool", lambda *_: nullcontext(pool))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The results of four seeds."""
    return measure(table(tmp_path_factory.mktemp("runs") / "log"), SEEDS, jobs=1)


def lines(log: Path) -> list[str]:
    return sorted(log.read_text().splitlines())


def test_means_gains_and_intervals_are_those_of_the_seeds(results: Results) -> None:
    cell = results.cell("unit 2", "square")
    assert cell is not None
    values = [4.0, 16.0, 36.0, 64.0]
    assert cell.values == tuple(values)
    assert cell.mean == 30
    low, high = stats.t.interval(0.95, 3, 30, stats.sem(values))
    assert cell.interval == pytest.approx((high - low) / 2)
    differences = [3.0, 12.0, 27.0, 48.0]  # to the squares of 1, seed by seed
    assert cell.gain == 22.5
    low, high = stats.t.interval(0.95, 3, 22.5, stats.sem(differences))
    assert cell.gain_interval == pytest.approx((high - low) / 2)


def test_one_seed_has_no_interval(results: Results) -> None:
    third = [run for run in results.runs if run.seed == 2]
    cell = Results(results.table, runs=third).cell("unit 3", "length")
    assert cell is not None
    assert (cell.mean, cell.interval, cell.gain, cell.gain_interval) == (9, None, 6, None)


def test_a_run_that_two_cells_share_is_made_once(results: Results) -> None:
    log = Path(results.table.rows["unit 1"]["log"])
    assert len(lines(log)) == 3 * len(SEEDS)


@pytest.mark.usefixtures("one_process")
def test_the_runs_of_a_file_are_not_made_again(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "lengths.json"
    measure(table(log), range(2), path=path, jobs=1)
    more = measure(table(log), range(4), path=path, jobs=1)
    assert len(lines(log)) == len(set(lines(log))) == 3 * 4
    assert len(more.runs) == 3 * 4
    assert len(json.loads(path.read_text())["runs"]) == 3 * 4


@pytest.mark.usefixtures("one_process")
def test_runs_with_other_settings_are_made_anew(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "lengths.json"
    measure(table(log), [0], path=path, jobs=1)
    columns = {"length": Column("length", settings={"offset": 1.0})}
    results = measure(table(log, columns=columns), [0], path=path, jobs=1)
    cell = results.cell("unit 2", "length")
    assert cell is not None
    assert cell.values == (3.0,)


@pytest.mark.usefixtures("one_process")
def test_quick_trials_do_not_count_as_the_experiment(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "lengths.json"
    tiny = measure(table(log), [0], path=path, jobs=1, tiny=True)
    assert {run.metrics["length"] for run in tiny.runs} == {0.5}
    cell = measure(table(log), [0], path=path, jobs=1).cell("unit 3", "length")
    assert cell is not None
    assert cell.mean == 3


def test_a_run_that_fails_names_its_settings_and_keeps_the_others(
    log: Path, tmp_path: Path
) -> None:
    path = tmp_path / "lengths.json"
    with pytest.raises(ArithmeticError, match="the unit is 2") as raised:
        measure(table(log, experiments.failing), range(2), path=path, jobs=1)
    assert "'unit': 2.0" in raised.value.__notes__[0]
    content = json.loads(path.read_text())
    assert len(content["runs"]) >= 4  # those before it
    assert {"unit 1", "unit 2", "unit 3"} == {one["row"] for one in content["cells"]}


KILLED = """
import sys
from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from lightning_practices.reproduce import measure
from tests.reproduce.experiments import killing, table

if __name__ == "__main__":
    log, path = Path(sys.argv[1]), Path(sys.argv[2])
    results = measure(table(log, killing), range(4), path=path, jobs=1)
    print(results.cell("unit 3", "square"))
"""


def test_a_call_that_was_killed_goes_on(results: Results, log: Path, tmp_path: Path) -> None:
    script, path = tmp_path / "killed.py", tmp_path / "lengths.json"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(log), str(path)]
    root = Path(__file__).parents[2]
    environment = {"PYTHONPATH": f"{root}:{root / 'kernels'}"}
    # Its processes have this pipe too, so that this waits until all of them have ended.
    first = subprocess.run(command, env=environment, timeout=DEADLINE, capture_output=True)
    assert first.returncode == -9
    second = subprocess.run(
        command, env=environment, timeout=DEADLINE, capture_output=True, text=True
    )
    assert second.returncode == 0, second.stderr
    assert str(results.cell("unit 3", "square")) in second.stdout
    assert len(lines(log)) == 3 * len(SEEDS) + 1  # the run that was interrupted was made again


def test_a_folder_is_refused_by_a_table_of_its_own_data(log: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lengths runs only on the data that it names"):
        measure(table(log), [0], data=tmp_path)


@pytest.mark.usefixtures("one_process")
def test_a_table_of_images_runs_on_a_folder(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    on_folder = table(log, experiments.on_images)
    given, path = table(log, on_folder=on_folder), tmp_path / "lengths.json"
    results = measure(given, [0], path=path, data=tmp_path / "photos", jobs=1)
    cell = results.cell("unit 1", "length")
    assert cell is not None
    assert cell.mean == 2
    # The same folder by another path has its runs already; another folder hasn't.
    monkeypatch.chdir(tmp_path)
    assert measure(given, [0], path=path, data=Path("photos"), jobs=1).runs == results.runs
    (tmp_path / "other").mkdir()
    other = measure(given, [], path=path, data=tmp_path / "other")
    assert (len(other.shown), len(other.runs)) == (0, 3)
    own = measure(given, [], path=path)
    assert (own.table, len(own.shown)) == (given, 0)


@pytest.mark.parametrize("alone", [False, True])
def test_runs_that_need_the_machine_alone_have_one_process_with_all_threads(
    log: Path, alone: bool
) -> None:
    crowded = table(log, experiments.crowd, alone=alone)
    runs = measure(crowded, range(2), jobs=2).runs
    most, threads = (max(run.metrics[name] for run in runs) for name in ("length", "square"))
    assert most == (1 if alone else 2)
    assert threads == (torch.get_num_threads() if alone else 1)


@pytest.mark.usefixtures("one_process")
def test_cells_are_computed_once_however_many_runs_there_are(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    cell = Results.cell

    def counted(self: Results, row: str, column: str) -> Cell | None:
        asked.append((row, column))
        return cell(self, row, column)

    monkeypatch.setattr(Results, "cell", counted)
    path = tmp_path / "lengths.json"
    results = measure(table(log), range(6), path=path, jobs=1)
    assert len(asked) == 3 * 2  # the table's cells
    content = json.loads(path.read_text())
    assert content["seeds"] == 6
    assert len(content["cells"]) == 3 * 2
    means = {one["row"]: one["mean"] for one in content["cells"] if one["unit"] == "m"}
    assert means["unit 2"] == cell(results, "unit 2", "length").mean  # type: ignore[union-attr]


def made(log: Path, seeds: Iterable[int], tiny: bool = False, **machine: str) -> Results:
    """Return results as a call would make them with these versions."""
    results = Results(table(log), tiny)
    for seed in seeds:
        for settings in results.different_settings():
            metrics = experiments.lengths(seed, **settings)
            results.runs.append(Run(as_json(settings), seed, metrics, 1.5, machine))
    return results


@pytest.mark.usefixtures("one_process")
def test_runs_of_other_settings_are_kept_and_named_and_count_nowhere(
    log: Path, tmp_path: Path
) -> None:
    path = tmp_path / "lengths.json"
    made(log, range(3), tiny=True, torch="2").save(path)
    results = made(log, [0], torch="3")
    results.load(path)
    assert (len(results.runs), len(results.shown), results.seeds) == (6, 3, 1)
    assert results.seconds == 3 * 1.5
    assert results.machines == [{"torch": "3"}]
    assert "over 1 seeds" in flowing(text_of(results))
    assert "also holds 3 runs of other settings" in flowing(text_of(results))
    results.save(path)
    content = json.loads(path.read_text())
    assert (content["seeds"], content["seconds"], len(content["runs"])) == (1, 4.5, 6)
    tiny = measure(table(log), range(3), path=path, tiny=True)  # makes no run
    assert (len(tiny.shown), tiny.seeds) == (3, 3)


@pytest.mark.usefixtures("one_process")
def test_runs_of_other_versions_are_named(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "lengths.json"
    made(log, [0], torch="1.0", device="cpu").save(path)
    old = measure(table(log), [0], path=path)  # makes no run, so it isn't of this version
    assert old.machines == [old.machine] == [{"torch": "1.0", "device": "cpu"}]
    assert "different versions" not in flowing(text_of(old))
    both = measure(table(log), [0, 1], path=path, jobs=1)
    assert [one["torch"] for one in both.machines] == ["1.0", str(torch.__version__)]
    assert both.machine["lightning-practices"] == __version__
    assert "different versions or devices: torch 1.0, device cpu;" in flowing(text_of(both))
    assert json.loads(path.read_text())["machines"] == both.machines


@pytest.mark.usefixtures("one_process")
def test_a_file_that_names_one_machine_for_all_runs_is_read(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "lengths.json"
    made(log, [0]).save(path)
    content = json.loads(path.read_text())
    for run in content["runs"]:
        del run["machine"]
    path.write_text(json.dumps({**content, "machine": {"torch": "1.0"}}))
    assert measure(table(log), [0], path=path).machines == [{"torch": "1.0"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "holds no results"), ('{"table": "weights", "runs": []}', "of weights, not lengths")],
)
def test_a_file_of_something_else_is_left_alone(
    log: Path, tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "lengths.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        measure(table(log), [0], path=path, jobs=1)
    assert path.read_text() == content


def test_labels_that_are_no_rows_are_refused(log: Path) -> None:
    with pytest.raises(ValueError, match="no rows \\['unit 4'\\]"):
        table(log, reference="unit 4")
    with pytest.raises(ValueError, match="no rows \\['unit 5'\\]"):
        table(log, columns={"length": Column("length", lecture={"unit 5": 1.0})})


def text_of(results: Results) -> str:
    with StringIO() as text:
        Console(width=120, file=text).print(show(results))
        return text.getvalue()


def flowing(text: str) -> str:
    """Return a text without its line breaks."""
    return " ".join(text.split())


def test_the_printed_table_has_means_gains_and_the_lecture(results: Results) -> None:
    text = text_of(results)
    assert "5.0 ± 4.1" in text  # 2, 4, 6 and 8
    assert "+2.5 ± 2.1" in text
    assert "lecture 2.5" in text
    assert "S9, table 3: two is twice one" in text


def test_the_picture_names_the_rows(results: Results, tmp_path: Path) -> None:
    draw(results, tmp_path / "lengths.svg")
    picture = (tmp_path / "lengths.svg").read_text()
    assert all(f"<!-- {row} -->" in picture for row in results.table.rows)


@pytest.mark.usefixtures("one_process")
def test_columns_with_places_are_drawn_as_curves(log: Path, tmp_path: Path) -> None:
    columns = {
        f"offset {x:g}": Column("length", "m", settings={"offset": x}, x=x) for x in (1.0, 10.0)
    }
    drawn = table(log, columns=columns, axis="offset", log_axis=True)
    results = measure(drawn, [0, 1], jobs=1)
    draw(results, tmp_path / "lengths.svg")
    picture = (tmp_path / "lengths.svg").read_text()
    assert all(f"<!-- {text} -->" in picture for text in ("offset", "unit 3", "10", "length in m"))
