"""The report of the machine code: real compiles, and launches that go wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import static
from benchmarks.__main__ import main
from benchmarks.gpus import GPUS
from benchmarks.machine_code import MachineCode, Traffic, compile_launch, count_traffic
from benchmarks.results import Results
from benchmarks.rows import Row

DIRECTIONS = ("forward", "backward")
TILE = "tensor<2x128x!tt.ptr<bf16>>"


def run(out: Path, *options: str) -> tuple[int, list[Row]]:
    """Run ``static`` on the command line; return its exit status and rows."""
    status = main(["static", "--out", str(out), *options])
    return status, Results.load(out / "static.json").rows


def test_every_launch_of_a_call_is_a_row(tmp_path: Path) -> None:
    options = ("--calls", "layer_norm bf16 8x1024x768", "dropout fp32", "--targets", "80", "90")
    status, rows = run(tmp_path, *options)
    assert status == 0
    launches = [row for row in rows if "kernel" in row]
    kernels = [(row["call"], row["kernel"], row["target"]) for row in launches]
    norms = ("_row_norm_forward_kernel", "_row_norm_backward_kernel", "_sum_partials_kernel")
    for target in (80, 90):
        for kernel in norms:
            assert ("layer_norm bf16 8x1024x768", kernel, target) in kernels
        assert (
            kernels.count(("dropout fp32 256x197x768", "_dropout_kernel", target)) == 2
        )  # and backward
    for row in launches:
        assert row["spills"] == 0
        assert 16 <= row["registers"] <= 255
        assert row["num_warps"] == 4
        assert row["vector_bits"] == (32 if row["kernel"] == "_sum_partials_kernel" else 128)
        assert row["predicted_for"] == {80: "A100", 90: "H200"}[row["target"]]
        assert 0 < row["predicted_percent"] < 100
        assert row["floor_us"] < row["predicted_us"]
    assert (
        "| dropout fp32 256x197x768 | 0 | _dropout_kernel | 80 |"
        in (tmp_path / "static.md").read_text()
    )


@pytest.mark.full  # it compiles for three generations, and follows the code: minutes
def test_every_pass_has_a_prediction_for_each_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, rows = run(tmp_path, "--calls", "layer_norm bf16 8192x4096")
    assert status == 0
    passes = {(row["direction"], row["predicted_for"]): row for row in rows if "direction" in row}
    assert list(passes) == [(direction, gpu) for direction in DIRECTIONS for gpu in GPUS]
    for (direction, gpu), row in passes.items():
        launches = [
            r for r in rows
            if r.get("kernel") and r["predicted_for"] == gpu
            and (r["launch"] > 0) == (direction == "backward")
        ]  # fmt: skip
        if gpu != "H100":  # which has the machine code of an H200
            assert row["predicted_us"] == pytest.approx(sum(r["predicted_us"] for r in launches))
        assert row["predicted_percent"] == pytest.approx(
            100 * row["floor_us"] / row["predicted_us"]
        )
        tensors = 2 if direction == "forward" else 3  # in bf16, with small ones beside them
        least = tensors * 2 * 8192 * 4096 / GPUS[gpu].copy_bytes_per_s * 1e6
        assert least < row["floor_us"] < 1.15 * least
    report = (tmp_path / "static.md").read_text()
    assert "## Predictions, not measurements" in report
    assert "| call | direction | A100, predicted % | H100, predicted % |" in report
    assert "![prediction](static_prediction.png)" in report
    assert (tmp_path / "static_prediction.png").stat().st_size > 10_000
    printed = " ".join(capsys.readouterr().out.split())
    assert "PREDICTIONS, not measured." in printed
    assert "No GPU has measured any of it." in printed


def test_a_launch_that_cannot_be_followed_is_not_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = MachineCode("_k", 90, 32, 0, 0, (128,), (128,), Traffic(None, None, "it loops"))
    monkeypatch.setattr(static, "compile_launch", lambda launch, target: code)
    status, rows = run(tmp_path, "--calls", "dropout fp16", "--targets", "90")
    assert status == 0
    assert len(rows) == 2  # the two launches, and no pass
    assert {row["not_predicted"] for row in rows} == {
        "the path through the machine code does not end"
    }


def test_bytes_are_counted_from_the_code_or_there_is_a_reason(tmp_path: Path) -> None:
    norms = ("layer_norm bf16 8192x4096", "layer_norm fp32 256x", "layer_norm2d bf16 128x96x56x56")
    _, rows = run(tmp_path, "--calls", *norms, "dropout fp32", "dropout fp16", "--targets", "90")
    counted = 0
    rows = [row for row in rows if "kernel" in row]
    for row in rows:
        itemsize = 4 if "fp32" in row["call"] else 2
        if row["kernel"] in ("_dropout_kernel", "_row_norm_forward_kernel"):
            assert row["bytes_per_element"] == 2 * itemsize, row  # read x, write y
            assert row["uncounted"] is None
            counted += 1
        else:
            assert row["bytes_per_element"] is None, row
            assert row["uncounted"]
    assert counted == 8
    dropout = [row for row in rows if row["kernel"] == "_dropout_kernel"]
    assert {row["other_bytes_per_element"] for row in dropout} == {0.0}
    (affine,) = (
        row
        for row in rows
        if row["call"] == "layer_norm bf16 8192x4096"
        and row["kernel"] == "_row_norm_forward_kernel"
    )
    assert affine["other_bytes_per_element"] == 8 + 8 / 4096  # two float32 a column and a row


@pytest.mark.parametrize(
    ("code", "traffic"),
    [
        (
            f"""
            %row = tt.get_program_id x : i32 loc(#loc)
            %a = tt.addptr %x_ptr, %row : {TILE}, tensor<2x128xi32> loc(#loc)
            %x = tt.load %a, %mask, %zero : {TILE} loc(#loc)
            %b = tt.addptr %weight_ptr, %column : {TILE}, tensor<2x128xi32> loc(#loc)
            %w = tt.load %b evictionPolicy = evict_last : {TILE} loc(#loc)
            %c:2 = "both"(%y_ptr, %a) : {TILE}, tensor<2x128xi32> loc(#loc)
            tt.store %c, %y, %mask : {TILE} loc(#loc)
            %d = tt.addptr %s_ptr, %row : !tt.ptr<f32>, i32 loc(#loc)
            tt.store %d, %s : !tt.ptr<f32> loc(#loc)
            """,
            Traffic(4.0, (256 * 2 + 4) / 256, None),
        ),
        ("%i = scf.for %j = %a to %b step %c { tt.load %p : !tt.ptr<f32> }", "it loops"),
        ("scf.if %condition { tt.store %p, %x : !tt.ptr<f32> }", "it branches"),
        ("%x = tt.atomic_rmw fadd, acq_rel, gpu, %p, %v : !tt.ptr<f32>", "it has atomics"),
        ("%x = arith.addf %a, %b : f32", "all its programs"),
        ("%x = tt.load %p : !tt.ptr<f32>", "all its programs"),
    ],
)
def test_traffic(code: str, traffic: Traffic | str) -> None:
    found = count_traffic(code)
    if isinstance(traffic, Traffic):
        assert found == traffic
    else:
        assert found[:2] == (None, None)
        assert found.uncounted is not None
        assert found.uncounted.startswith(traffic)


def test_a_spill_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spilled = MachineCode("_k", 90, 255, 16, 0, (128,), (), Traffic(None, None, "it loops"))
    monkeypatch.setattr(static, "compile_launch", lambda launch, target: spilled)
    status, rows = run(tmp_path, "--calls", "dropout fp16", "--targets", "90")
    assert status == 1
    assert [row["spills"] for row in rows] == [16, 16]
    assert rows[0]["vector_bits"] == 128  # of the loads alone, there being no store
    assert (
        "dropout fp16 256x197x768, _dropout_kernel, sm_90: spills 16 bytes"
        in capsys.readouterr().out
    )


def test_a_launch_that_does_not_compile_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compile_some(launch: Any, target: int) -> MachineCode:
        if target == 100:
            raise RuntimeError("no such [target]")
        return compile_launch(launch, target)

    monkeypatch.setattr(static, "compile_launch", compile_some)
    status, rows = run(tmp_path, "--calls", "dropout fp16")
    assert status == 1
    launches = [row for row in rows if "kernel" in row]
    assert [row["status"] for row in launches] == ["ok", "ok", "failed"] * 2
    assert rows[2]["reason"] == "RuntimeError: no such [target]"
    assert "sm_100: RuntimeError: no such [target]" in capsys.readouterr().out
    assert "no such [target]" in (tmp_path / "static.md").read_text()


def test_an_interrupted_report_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compile_some(launch: Any, target: int) -> MachineCode:
        if target == 100:
            raise KeyboardInterrupt
        return compile_launch(launch, target)

    monkeypatch.setattr(static, "compile_launch", compile_some)
    assert main(["static", "--calls", "dropout bf16", "--out", str(tmp_path)]) == 130
    assert f"kept what was finished in {tmp_path}" in capsys.readouterr().err
    content = json.loads((tmp_path / "static.json").read_text())
    assert [row["target"] for row in content["rows"]] == [80, 90]


def test_an_unknown_call_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["static", "--calls", "dropout bf61", "--out", str(tmp_path)])
    assert caught.value.code == 2
    assert "no call begins with 'dropout bf61', choose from: layer_norm bf16" in (
        capsys.readouterr().err
    )
