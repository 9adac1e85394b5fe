"""The ranks that other tests compute on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from tests.processes import DEADLINE, is_running, kill, run, run_killed

ROOT = Path(__file__).parents[1]
PATH = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATH, "CUDA_VISIBLE_DEVICES": ""}


def total_of(number: float) -> tuple[int, int, float]:
    total = torch.tensor(number)
    dist.all_reduce(total)
    return dist.get_rank(), dist.get_world_size(), total.item()


def test_ranks_compute_together_and_answer_in_their_order() -> None:
    assert run(total_of, [(1.0,), (2.0,)]) == [(0, 2, 3.0), (1, 2, 3.0)]
    assert run(total_of, [(1.0,), (2.0,), (4.0,)]) == [(rank, 3, 7.0) for rank in range(3)]


def leave_traces() -> tuple[torch.dtype, bool, int]:
    found = torch.get_default_dtype(), "TRACE" in os.environ, torch.initial_seed()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(7)
    os.environ["TRACE"] = "left"
    return found


def test_a_call_sees_nothing_of_another() -> None:
    first, second = run(leave_traces, [()])[0], run(leave_traces, [()])[0]
    assert first == second
    assert first[:2] == (torch.float32, False)


def fit(folder: Path) -> tuple[int, int, float]:
    torch.manual_seed(0)
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=2, logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    model = BoringModel()
    trainer.fit(model)
    (bias,) = trainer.strategy.all_gather(model.layer.bias.detach()[:1]).unbind(1)
    assert bias[0] == bias[1]
    return trainer.global_rank, trainer.world_size, bias[0].item()


def test_lightning_fits_on_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = run(fit, [(tmp_path,)] * 2)
    assert (first[:2], second[:2]) == ((0, 2), (1, 2))
    assert first[2] == second[2]
    assert capfd.readouterr().out.count("`Trainer.fit` stopped: `max_steps=2` reached.") == 1


LAUNCHED = """
import sys
from pathlib import Path
import torch
from tests.test_processes import fit
if __name__ == "__main__":
    rank, *found = fit(Path(sys.argv[1]))
    torch.save(found, Path(sys.argv[1], f"rank {rank}"))
    torch.distributed.destroy_process_group()
"""


@pytest.mark.full
def test_they_fit_as_the_ranks_of_lightnings_launcher_do(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(LAUNCHED)
    command: list[str | Path] = [sys.executable, script, tmp_path]
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=DEADLINE)
    launched = [torch.load(tmp_path / f"rank {rank}") for rank in range(2)]
    assert launched == [found for _, *found in run(fit, [(tmp_path,)] * 2)]


def fail_alone(rank: int) -> None:
    if rank == 1:
        raise ValueError("a mistake of rank 1")
    dist.barrier()  # in vain


def test_an_error_of_one_rank_ends_the_others() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)rank 1 raised:.*ValueError: a mistake of rank 1"):
        run(fail_alone, [(0,), (1,)])


def die_alone(rank: int) -> None:
    if rank == 0:
        kill()
    dist.barrier()


def test_a_death_is_told_or_expected() -> None:
    with pytest.raises(RuntimeError, match="rank 0 has died: -9"):
        run(die_alone, [(0,), (1,)])
    run_killed(die_alone, [(0,), (1,)])
    with pytest.raises(AssertionError, match="a rank has returned"):
        run_killed(total_of, [(1.0,)])


# A test run that is killed.

HANGS = """
import sys
from tests.processes import run
from tests.test_processes import hang
if __name__ == "__main__":
    run(hang, [(sys.argv[1],)] * 2)
"""


def hang(folder: str) -> None:
    rank = dist.get_rank()
    known = Path(folder, f"rank {rank}.part")
    known.write_text(json.dumps([os.getpid(), os.getppid()]))  # the parent: the server of forks
    known.rename(Path(folder, f"rank {rank}"))
    dist.recv(torch.zeros(1), 1 - rank)  # which nobody sends


def wait_until(condition: Any) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ranks_that_wait_for_each_other_end_with_the_test_run(tmp_path: Path) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "ranks"
    script.write_text(HANGS)
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, script, folder],
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait_until(lambda: process.poll() is not None or len([*folder.glob("rank ?")]) == 2)
            assert process.poll() is None
            known = {n for path in folder.glob("rank ?") for n in json.loads(path.read_text())}
            assert len(known) == 3
            assert all(map(is_running, known))
        finally:
            process.kill()
        wait_until(lambda: not any(map(is_running, known)))
