"""The recipes of several processes, run by the command on two ranks; one is killed and resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import processes
from tests.recipes.programs import FILTERS, checkpoint, logged, run_recipe_in

pytestmark = FILTERS
DDP = ["--trainer.max_epochs=2", "--model.early_stopping=null", "--model.width=8",
       "--model.schedule.warmup_steps=5"]  # fmt: skip
KILL = "--trainer.callbacks+={class_path: tests.recipes.programs.KillAt, init_args: {step: 50}}"


def two_ranks(folder: Path, *arguments: str) -> list[tuple[Any, ...]]:
    return [(folder, *arguments)] * 2


def weights(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)["state_dict"]
    return state


def test_ddp_is_killed_and_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    processes.run(run_recipe_in, two_ranks(whole, "ddp", *DDP))
    processes.run_killed(run_recipe_in, two_ranks(cut, "ddp", *DDP, KILL))
    monkeypatch.chdir(cut)
    start = checkpoint(name="last")
    processes.run(run_recipe_in, two_ranks(cut, "ddp", *DDP, f"--ckpt_path={start}"))
    resumed, result = weights(checkpoint(1, "last")), logged("test_accuracy", 1)
    monkeypatch.chdir(whole)
    expected = weights(checkpoint(name="last"))
    assert result == logged("test_accuracy")
    assert result[0] > 0.5  # of ten classes
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_fsdp2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.txt").write_bytes(Path(__file__).read_bytes() * 3)
    small = ["--data.file=own.txt", "--model.length=32", "--data.length=32", "--data.batch_size=8",
             "--model.width=32", "--model.depth=1"]  # fmt: skip
    short = ["--trainer.max_epochs=2", "--model.schedule=cosine", "--model.optimizer.lr=0.01",
             "--model.early_stopping=null"]  # fmt: skip
    processes.run(run_recipe_in, two_ranks(tmp_path, "fsdp2", *small, *short))
    assert logged("test_loss")[0] < 4.5 < 5.55  # the entropy of a uniform guess
    assert logged("val_loss")[1] < logged("val_loss")[0]
    assert weights(checkpoint())["network.head.weight"].shape == (256, 32)  # whole, not a shard
