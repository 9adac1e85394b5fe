"""The examples for many processes: torchrun, Lightning's launcher, SLURM, kills and resumes."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from examples import fsdp, multi_gpu
from tests.callbacks.scripted import same
from tests.examples.killed_rank import KillRank
from tests.processes import DEADLINE, run, run_killed

ROOT = Path(__file__).parents[2]
KILLED = Path(__file__).with_name("killed_rank.py")
EPOCHS = 4  # of 10 steps: the head, two blocks, and all blocks for two epochs
SAVED_AT, KILLED_AT = 12, 14
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

State = dict[str, Tensor]


def environment(**others: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    inherited = {name: v for name, v in os.environ.items() if not name.startswith("SLURM_")}
    return {**inherited, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", **others}


def launch(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)], env=environment(), capture_output=True, text=True, timeout=DEADLINE
    )


def hashes(printed: str) -> list[str]:
    """Return the hash that an example has printed for each process."""
    return re.findall(r"^process \d of \d, cpu: weights (\w+)$", printed, flags=re.MULTILINE)


def fit(folder: Path, devices: int, *options: str, callback: Any = None) -> tuple[str, State]:
    given = ["--devices", devices, "--max-epochs", EPOCHS, "--folder", folder, *options]
    module = multi_gpu.main([*map(str, given)], *([callback] if callback else []))
    return multi_gpu.hash_of(module), module.state_dict()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the hash of the weights of a fit on two processes that was never killed."""
    one: str
    (one, _), (other, _) = run(fit, [(tmp_path_factory.mktemp("whole"), 2)] * 2)
    assert one == other
    return one


def test_two_processes_train_as_one_does_on_the_joined_batches(tmp_path: Path) -> None:
    exact = "--precision", "64-true"
    (_, first), (_, second) = run(fit, [(tmp_path / "two", 2, *exact)] * 2)
    ((_, alone),) = run(fit, [(tmp_path / "one", 1, *exact)])
    start = torch.load(tmp_path / "one" / "pretrained.pt")
    assert same(first, second)
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=1e-9, atol=1e-9)
        if name.startswith("backbone"):
            assert not torch.equal(value, start[name.removeprefix("backbone.")])


def test_killed_under_torchrun_and_resumed_under_lightnings_launcher(
    tmp_path: Path, whole: str
) -> None:
    options = "--max-epochs", EPOCHS, "--folder", tmp_path
    ended = launch(*TORCHRUN, KILLED, "multi_gpu", 1, KILLED_AT, *options)
    assert ended.returncode != 0
    assert "Signal 9 (SIGKILL)" in ended.stderr
    assert not hashes(ended.stdout)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == SAVED_AT  # two steps into epoch 1
    resumed = launch(sys.executable, multi_gpu.__file__, "--devices", 2, "--resume", *options)
    assert resumed.returncode == 0, resumed.stderr
    assert hashes(resumed.stdout) == [whole] * 2
    assert len(re.findall(r"^epoch \d, phase", resumed.stdout, flags=re.MULTILINE)) == EPOCHS - 1
    assert "Warning" not in resumed.stderr


class Differs(Callback):
    """Change one weight of process 1 by a little."""

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == 1:
            with torch.no_grad():
                next(pl_module.parameters())[0] *= 1 + 1e-6


def fit_that_differs(folder: Path) -> str | None:
    given = ["--devices", "2", "--max-epochs", "1", "--folder", str(folder)]
    try:
        multi_gpu.main(given, Differs())
    except SystemExit as ended:
        return str(ended.code)
    return None


@pytest.mark.filterwarnings("ignore:the phases of ProgressiveUnfreezing")
def test_one_bit_on_one_process_is_an_error(tmp_path: Path) -> None:
    assert run(fit_that_differs, [(tmp_path,)] * 2) == ["the processes have different weights"] * 2


def too_many(folder: Path) -> str:
    with pytest.raises(ValueError, match="3 processes can't share batches of 64") as refused:
        multi_gpu.main(["--devices", "3", "--folder", str(folder)])
    return str(refused.value)


def test_batches_that_cannot_be_shared_are_an_error(tmp_path: Path) -> None:
    run(too_many, [(tmp_path,)] * 3)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def slurm_tasks(*command: object) -> list[subprocess.Popen[str]]:
    """Start two processes with the variables that srun sets for the tasks of one node."""
    job = {
        "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NNODES": "1",
        "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODELIST": "127.0.0.1", "SLURM_NODEID": "0",
        "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    return [
        subprocess.Popen(
            [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(**job, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)),
        )
        for rank in range(2)
    ]  # fmt: skip


@pytest.mark.full
def test_the_tasks_of_slurm_find_each_other_and_may_be_requeued(tmp_path: Path, whole: str) -> None:
    options = "--max-epochs", EPOCHS, "--folder", tmp_path
    for task in slurm_tasks(sys.executable, KILLED, "multi_gpu", 0, KILLED_AT, *options):
        task.communicate(timeout=DEADLINE)
        assert task.returncode != 0
    tasks = slurm_tasks(sys.executable, multi_gpu.__file__, "--resume", *options)
    printed = [task.communicate(timeout=DEADLINE)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0]
    assert [hashes(each) for each in printed] == [[whole] * 2, []]  # process 1 prints nothing


@pytest.mark.full
def test_killed_under_lightnings_launcher_and_resumed_under_torchrun(
    tmp_path: Path, whole: str
) -> None:
    options = "--max-epochs", EPOCHS, "--folder", tmp_path
    ended = launch(sys.executable, KILLED, "multi_gpu", 1, KILLED_AT, "--devices", 2, *options)
    assert ended.returncode in (1, -signal.SIGTERM, -signal.SIGKILL)
    resumed = launch(*TORCHRUN, multi_gpu.__file__, "--resume", *options)
    assert resumed.returncode == 0, resumed.stderr
    assert hashes(resumed.stdout) == [whole] * 2


# Sharded weights.


def sharded_fit(folder: Path, *options: str, callback: Any = None) -> State:
    given = ["--devices", "2", "--max-epochs", "2", "--folder", str(folder), *options]
    return fsdp.main(given, *([callback] if callback else []))


def killed_sharded_fit(folder: Path) -> None:
    sharded_fit(folder, callback=KillRank(0, 34))


def test_sharded_weights_are_those_of_one_process_also_after_a_kill(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_killed(killed_sharded_fit, [(tmp_path / "killed",)] * 2)
    saved = torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 30  # an epoch has 24 steps
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
        first, second = run(sharded_fit, [(tmp_path / "killed", "--resume")] * 2)
    assert "2 processes differ from one by" in capfd.readouterr().out
    assert same(first, second)
    (alone,) = (torch.load(path) for path in tmp_path.rglob("one_process/weights.pt"))
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.full
def test_a_sharded_fit_under_torchrun(tmp_path: Path) -> None:
    options = "--max-epochs", 2, "--folder", tmp_path
    ended = launch(*TORCHRUN, KILLED, "fsdp", 0, 34, *options)
    assert ended.returncode != 0
    resumed = launch(*TORCHRUN, fsdp.__file__, "--resume", *options)
    assert resumed.returncode == 0, resumed.stderr
    assert "2 processes differ from one by" in resumed.stdout
    differs = launch(*TORCHRUN, fsdp.__file__, "--tolerance", 0, *options)
    assert differs.returncode == 1
    assert "the weights differ by more than 0" in differs.stderr
