"""The ``profile`` command."""

import argparse
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks import profile
from benchmarks.ops import OPS
from benchmarks.providers import Function, Provider
from benchmarks.rows import EAGER, OURS

# torch's profiler reads CUDA's environment when it starts, and warns where there is no GPU.
pytestmark = [pytest.mark.filterwarnings("ignore:.*CUDA:UserWarning:torch")]


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    profile.add_arguments(parser)
    return profile.main(parser.parse_args(argv))


def test_a_trace_and_a_table_of_ours_and_eager(tmp_path: Path) -> None:
    arguments = ("--shape", "tiny 256x1024", "--dtype", "fp32", "--out", str(tmp_path))
    assert run("layer_norm", *arguments) == 0
    for name in (OURS, EAGER):
        table = (tmp_path / f"profile-layer_norm-{name}.txt").read_text()
        trace = json.loads((tmp_path / f"profile-layer_norm-{name}.json").read_text())
        counts = {"forward": 0, "backward": 0}
        for event in trace["traceEvents"]:
            for direction in counts:
                on_host = event.get("cat") == "user_annotation"
                counts[direction] += on_host and event["name"] == f"{name} {direction}"
        assert counts == {"forward": 5, "backward": 5}
        assert f"{name} forward" in table
        assert "native_layer_norm_backward" in table or torch.cuda.is_available()


def test_names_that_do_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", str(tmp_path))
    assert run("dropout", "--shape", "nothing", *out) == 2
    assert "no shape nothing, but ViT-B" in capsys.readouterr().err
    assert run("dropout", "--layout", "diagonal", *out) == 2
    assert "no layout diagonal, but contiguous" in capsys.readouterr().err
    assert run("dropout", "--peers", "nobody", *out) == 2
    assert "no provider nobody, but ours" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_provider_that_fails_does_not_take_the_others_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent() -> Function:
        raise ModuleNotFoundError("No module named 'absent'")

    op = dataclasses.replace(OPS["dropout"], peers=(Provider("absent", absent),))
    monkeypatch.setitem(OPS, "dropout", op)
    shape = ("--shape", "tiny 1x128", "--out", str(tmp_path))
    assert run("dropout", "--peers", "absent", EAGER, *shape) == 1
    assert "absent: ModuleNotFoundError" in capsys.readouterr().err
    assert (tmp_path / "profile-dropout-eager.json").exists()


@pytest.mark.gpu
def test_the_kernels_are_in_the_trace(tmp_path: Path) -> None:
    assert run("dropout", "--shape", "Llama 4096", "--out", str(tmp_path)) == 0
    assert "_dropout_kernel" in (tmp_path / "profile-dropout-ours.txt").read_text()
