import argparse
import dataclasses
import functools
import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from typing_extensions import override

from benchmarks import fit, overhead
from benchmarks.fit import Plan, Steps, measure_model
from benchmarks.layers import LAYERS
from benchmarks.models import ON_CPU, ON_GPU, VARIANTS, Batch, Training, Variant, Workload, train
from benchmarks.replaced import (
    REPLACED,
    REPLACED_OPS,
    our_kernels,
    share_of_replaced_ops,
)
from benchmarks.rows import Row
from lightning_kernels._core import dispatch as _dispatch
from lightning_practices.nn import Dropout, LayerNorm
from tests.benchmarks.clock import Clock

CPU = torch.device("cpu")
TINY = Plan(rounds=2, steps=3, warm_up=2)
EAGER = ["plain", "ours"]


class Net(nn.Module):
    """A network that remembers which layers it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(0.2), nn.Linear(8, 3)
        )
        self.ran: set[type] = set()

    @override
    def forward(self, x: Tensor) -> Tensor:
        self.ran |= {type(layer) for layer in self.layers[1:3]}
        logits: Tensor = self.layers(x)
        return logits


class Scripted(Net):
    """Runs ``act`` with the number of the step, from 1, in each forward pass."""

    def __init__(self, act: Callable[[int], object]) -> None:
        super().__init__()
        self.act, self.step = act, 0

    @override
    def forward(self, x: Tensor) -> Tensor:
        self.step += 1
        self.act(self.step)
        return super().forward(x)


def workload(make: Callable[[], nn.Module] = Net) -> Workload:
    return Workload("tiny", make, 5, (4,), 3, precision="32-true")


def run(out: Path, *options: str) -> tuple[int, list[Row]]:
    parser = argparse.ArgumentParser()
    fit.add_arguments(parser)
    status = fit.main(parser.parse_args(["--out", str(out), "--short", *options]))
    return status, json.loads((out / "fit.json").read_text())["rows"]


@pytest.fixture
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(ON_CPU, "vit", workload())
    monkeypatch.setattr(fit, "SHORT", TINY)
    monkeypatch.setattr(overhead, "SHORT", overhead.Plan(rounds=1, epochs=1))
    monkeypatch.setattr(overhead, "STEPS", 5)


def test_rows_of_eager_variants() -> None:
    networks: list[Net] = []

    def make() -> Net:
        networks.append(Net())
        return networks[-1]

    plain, ours = measure_model(workload(make), EAGER, TINY, CPU)
    assert [plain["variant"], ours["variant"]] == EAGER
    for row in plain, ours:
        assert row["status"] == "ok", row
        for name in ("images_per_s", "milliseconds_per_step", "ratio_to_plain"):
            assert 0 < row[name] < math.inf
        assert row["images_per_s"] == pytest.approx(5e3 / row["milliseconds_per_step"], rel=0.01)
        assert row["spread"] >= 0
        assert row["peak_mib"] is None
        assert 0 < row["share_of_replaced_ops"] < 1
        assert row["steps"] == 2 * TINY.rounds * TINY.steps
    assert plain["ratio_to_plain"] == 1
    assert (plain["fused_layers"], ours["fused_layers"]) == (0, 2)
    assert [network.ran for network in networks] == [
        {nn.LayerNorm, nn.Dropout}, {LayerNorm, Dropout}
    ]  # fmt: skip


def test_every_variant_starts_alike() -> None:
    first = workload().make_network().state_dict()
    torch.rand(1)  # the callers' random numbers move on
    second = workload().make_network().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_our_variant_has_our_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[tuple[str, list[str]]] = []

    def spy(module: Any, batches: Any, device: Any, callbacks: list[Callback], **rest: Any) -> None:
        fits.append((type(module).__name__, [type(callback).__name__ for callback in callbacks]))
        train(module, batches, device, callbacks, **rest)

    monkeypatch.setattr(fit, "train", spy)
    measure_model(workload(), EAGER, TINY, CPU)
    turns = ["Training", "Fused", "Fused", "Training"]
    assert [name for name, _ in fits] == ["Training", "Fused", *turns * TINY.rounds]
    assert [callbacks for _, callbacks in fits[:4]] == [
        ["ShareOfReplacedOps"],
        ["ShareOfReplacedOps", "EarlyStopping"],
        ["Steps"],
        ["Steps", "EarlyStopping"],
    ]


def test_only_steps_after_the_warm_up_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, threads = Clock(), list[int]()
    first_fit, each_fit = (TINY.warm_up + steps for steps in (fit._PROFILED, TINY.steps))

    def act(step: int) -> None:
        of_fit = step if step <= first_fit else (step - first_fit - 1) % each_fit + 1
        clock.pass_by(7.0 if of_fit <= TINY.warm_up else 0.03)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    (row,) = measure_model(workload(lambda: Scripted(act)), ["plain"], TINY, CPU, clock)
    assert threads == [1, 7] * (1 + 2 * TINY.rounds)  # the caller's are given back
    assert row["milliseconds_per_step"] == pytest.approx(30)
    assert row["images_per_s"] == pytest.approx(5e3 / 30, rel=1e-3)
    assert row["spread"] == 0
    assert row["steps"] == 2 * TINY.rounds * TINY.steps


def test_ratio_of_a_slower_variant_under_drift_and_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = [30.0 if step % 11 == 0 else 0.0 for step in range(1000)]
    clock = Clock(drift=0.05, noise=noise)

    class Slow(Training):
        @override
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            clock.pass_by(0.01)
            return super().training_step(batch, batch_idx)

    monkeypatch.setitem(VARIANTS, "slow", Variant(Slow))
    make = functools.partial(Scripted, lambda step: clock.pass_by(0.01))
    plan = Plan(rounds=3, steps=5, warm_up=2)
    rows = measure_model(workload(make), ["plain", "slow"], plan, CPU, clock)
    assert rows[1]["ratio_to_plain"] == pytest.approx(2, rel=0.02)
    (alone,) = measure_model(workload(), ["slow"], TINY, CPU, clock)
    assert alone["ratio_to_plain"] is None


@pytest.mark.parametrize("at", [1, TINY.warm_up + fit._PROFILED + 2])  # at once, or in a round
def test_variant_that_fails_is_a_row(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Training):
        steps = 0

        @override
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            self.steps += 1
            if self.steps == at:
                raise torch.OutOfMemoryError("no room")
            return super().training_step(batch, batch_idx)

    monkeypatch.setitem(VARIANTS, "ours", Variant(Broken))
    plain, ours = measure_model(workload(), EAGER, TINY, CPU)
    assert plain["status"] == "ok"
    assert plain["milliseconds_per_step"] > 0
    assert ours == {
        "model": "tiny", "variant": "ours", "status": "failed",
        "reason": "OutOfMemoryError: no room",
    }  # fmt: skip


def test_compiled_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    names = ["ours", "ours compiled"]
    eager, compiled = measure_model(workload(), names, TINY, CPU)
    assert compiled["status"] == "ok", compiled
    assert eager["fused_layers"] == compiled["fused_layers"] == 2
    assert compiled["milliseconds_per_step"] > 0
    assert compiled["share_of_replaced_ops"] is None


def test_norms_are_left_to_inductor_by_one_variant_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[str]] = {}

    class Looking(Training):
        name = "without"

        @override
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            seen.setdefault(self.name, set()).add(_dispatch._compiled_norms)
            return super().training_step(batch, batch_idx)

    class Left(Looking):
        name = "left"

    monkeypatch.setitem(VARIANTS, "plain", Variant(Looking))
    monkeypatch.setitem(VARIANTS, "ours", Variant(Left, compiled_norms="inductor"))
    measure_model(workload(), EAGER, TINY, CPU)
    assert seen == {"without": {"kernels"}, "left": {"inductor"}}
    assert _dispatch._compiled_norms == "kernels"


def test_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    plain, compiled = measure_model(workload(), ["plain", "plain compiled"], TINY, CPU)
    assert plain["status"] == "ok"
    assert compiled["status"] == "missing"
    assert "no C++ compiler" in compiled["reason"]


@pytest.mark.usefixtures("_on_the_cpu")
def test_command_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.plots.draw", lambda rows, prefix: [])
    options = ["--models", "vit", "--practices", "EarlyStopping", "--variants"]
    status, rows = run(tmp_path, *options, "plain")
    assert status == 0
    assert [row.get("variant") or row["practice"] for row in rows] == ["plain", "EarlyStopping"]
    more = run(tmp_path, *options, *EAGER, "--resume")[1]
    assert more[:2] == rows
    assert [row.get("variant") for row in more[2:]] == ["ours"]
    assert run(tmp_path, *options, *EAGER, "--resume")[1] == more
    assert "goal: under 1 %" in capsys.readouterr().out
    assert "tiny" in (tmp_path / "fit.md").read_text()


@pytest.mark.usefixtures("_on_the_cpu")
@pytest.mark.parametrize("hook", ["configure_model", "on_train_batch_start"])
def test_an_interrupt_keeps_the_finished_rows(
    hook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt = {hook: lambda self, *args: signal.raise_signal(signal.SIGINT)}
    module = type("Interrupted", (Training,), interrupt)
    monkeypatch.setitem(overhead.PRACTICES, "Interrupted", lambda: (module(Net()), []))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--models", "vit", "--variants", *EAGER, "--practices", "Interrupted")
    assert signal.getsignal(signal.SIGINT) is handler
    rows = json.loads((tmp_path / "fit.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == EAGER


@pytest.mark.usefixtures("_on_the_cpu")
def test_failures_leave_the_status_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> tuple[LightningModule, list[Callback]]:
        raise LookupError("no such practice")

    def act(step: int) -> None:
        raise LookupError("no such model")

    monkeypatch.setitem(ON_CPU, "resnet", workload(lambda: Scripted(act)))
    monkeypatch.setitem(overhead.PRACTICES, "Broken", broken)
    options = ["--models", "resnet", "--variants", "plain", "--practices", "Broken"]
    status, rows = run(tmp_path, *options)
    reasons = ["LookupError: no such model", "LookupError: no such practice"]
    assert [(row["status"], row["reason"]) for row in rows] == [("failed", r) for r in reasons]
    assert status == 0


def slow_callback(hook: str, act: Callable[[Trainer], None]) -> overhead.Fit:
    callback = type("Slow", (Callback,), {hook: lambda self, trainer, *_: act(trainer)})()
    return Training(nn.Linear(8, 8)), [callback]


def test_cost_of_a_slow_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(noise=[5.0 * (i % 31 == 0) for i in range(10_000)])
    monkeypatch.setattr(overhead, "STEPS", 10)

    def act(trainer: Trainer) -> None:
        clock.pass_by(1e-3)

    practice = functools.partial(slow_callback, "on_train_batch_end", act)
    monkeypatch.setitem(overhead.PRACTICES, "Slow", practice)
    plan = overhead.Plan(rounds=1, epochs=4)  # of which at least one has no noise
    row = overhead.measure("Slow", plan, clock)
    assert row["microseconds_per_step"] == pytest.approx(1000)
    assert row["percent_of_20ms_step"] == pytest.approx(5)
    assert row["verdict"] == "above"
    assert row["bare_microseconds_per_step"] == pytest.approx(0, abs=0.01)
    monkeypatch.setitem(overhead.PRACTICES, "nothing", overhead.bare)
    assert overhead.measure("nothing", plan, clock)["microseconds_per_step"] == 0


def test_drift_is_not_a_practices_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(drift=1.0)
    monkeypatch.setattr(overhead, "STEPS", 5)

    def act(trainer: Trainer) -> None:
        clock.pass_by(1e-3)

    slow = functools.partial(slow_callback, "on_train_batch_end", act)
    monkeypatch.setattr(overhead, "bare", slow)
    monkeypatch.setitem(overhead.PRACTICES, "nothing", overhead.bare)
    row = overhead.measure("nothing", overhead.Plan(rounds=2, epochs=1), clock)
    assert row["bare_microseconds_per_step"] > 1010  # the drift is not small
    assert row["microseconds_per_step"] == pytest.approx(0, abs=1)


@pytest.mark.parametrize(("epoch", "cost"), [(0, 0), (1, 1000)])
def test_cost_once_an_epoch_is_shared_by_its_steps(
    epoch: int, cost: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(overhead, "STEPS", 20)

    def act(trainer: Trainer) -> None:
        clock.pass_by(0.02 * (trainer.current_epoch == epoch))

    practice = functools.partial(slow_callback, "on_train_epoch_end", act)
    monkeypatch.setitem(overhead.PRACTICES, "Slow", practice)
    row = overhead.measure("Slow", overhead.Plan(rounds=1, epochs=1), clock)
    # The first epoch is a warm-up.
    assert row["microseconds_per_step"] == pytest.approx(cost, abs=0.01)


@pytest.mark.parametrize("practice", overhead.PRACTICES)
def test_practices_are_at_work(practice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "STEPS", 2)
    row = overhead.measure(practice, overhead.Plan(rounds=1, epochs=1))
    assert row["status"] == "ok", row
    module, callbacks = overhead.PRACTICES[practice]()
    assert callbacks or type(module) is not Training


def event(key: str, cpu: float = 0, device: float = 0, kind: str = "CPU", own: float = 0) -> Any:
    """Return what the profiler would: times with and without (``own``) those of other events."""
    return SimpleNamespace(
        key=key, device_type=SimpleNamespace(name=kind), is_user_annotation=key.startswith("range"),
        cpu_time_total=cpu, device_time_total=device, self_cpu_time_total=own,
        self_device_time_total=own,
    )  # fmt: skip


def test_share_of_a_gpu() -> None:
    events = [
        event("aten::linear", device=60),
        event("aten::native_layer_norm", device=20, own=20),
        event("aten::dropout", device=10),
        event("aten::native_dropout", device=10, own=10),
        *(event(name, kind="CUDA", own=own) for name, own in [("gemm", 60), ("norm", 20)]),
        *(event(name, kind="CUDA", own=own) for name, own in [("drop", 10), ("range", 100)]),
    ]
    assert share_of_replaced_ops(events, on_cuda=True) == pytest.approx(30 / 90)
    kernels = [
        ("_row_norm_forward_kernel", 10), ("_dropout_kernel", 5), ("gemm", 60),
        ("triton_per_fused_add_native_layer_norm_3", 20), ("triton_poi_fused_gelu_1", 5),
    ]  # fmt: skip
    events = [event(name, kind="CUDA", own=own) for name, own in kernels]
    assert share_of_replaced_ops(events, on_cuda=True) == pytest.approx(35 / 100)


def test_share_of_the_cpu() -> None:
    events = [
        event("aten::linear", cpu=60, own=10),
        event("aten::addmm", cpu=50, own=50),
        event("aten::native_layer_norm", cpu=30, own=20),
        event("aten::empty", cpu=10, own=10),  # called by the norm
        event("aten::dropout", cpu=10, own=10),
    ]
    assert share_of_replaced_ops(events, on_cuda=False) == pytest.approx(40 / 100)


@pytest.mark.parametrize(("layer", "replaced"), [(nn.LayerNorm(64), True), (nn.Tanh(), False)])
def test_operators_are_found_in_a_real_fit(layer: nn.Module, replaced: bool) -> None:
    net = nn.Sequential(nn.Linear(64, 64), layer)
    data = Workload("one", lambda: net, 8, (64,), 64, precision="32-true")
    (row,) = measure_model(data, ["plain"], Plan(rounds=1, steps=1, warm_up=1), CPU)
    assert (row["share_of_replaced_ops"] > 0) is replaced


def test_replaced_operators_are_known() -> None:
    layers = {layer.peer for layer in LAYERS.values() if layer.package != "benchmarks"}
    assert REPLACED_OPS.keys() == layers
    for name in REPLACED:
        assert hasattr(torch.ops.aten, name.removeprefix("aten::"))
    assert {"_row_norm_forward_kernel", "_dropout_kernel"} <= our_kernels()


def test_steps_on_a_gpu_never_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Event:
        times = iter([10.0, 13.0, 17.0])

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            calls.append("record")
            self.time = next(self.times)

        def elapsed_time(self, other: "Event") -> float:
            return other.time - self.time

    monkeypatch.setattr(torch.cuda, "Event", Event)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, functools.partial(calls.append, name))
    steps = Steps(torch.device("cuda"), warm_up=2)
    trainer: Any = None
    for index in range(4):
        steps.on_train_batch_end(trainer, trainer, None, None, index)
    assert calls == ["reset_peak_memory_stats", "record", "record", "record"]
    assert steps.milliseconds == [3.0, 4.0]
    assert calls[-1] == "synchronize"


def test_a_model_whose_library_is_absent_is_a_row() -> None:
    def make() -> nn.Module:
        raise ModuleNotFoundError("No module named 'timm'")

    (row,) = measure_model(workload(make), ["plain"], TINY, CPU)
    assert (row["status"], row["reason"]) == (
        "missing", "ModuleNotFoundError: No module named 'timm'"
    )  # fmt: skip


FUSED_LAYERS = {
    "resnet": 0, "vit": 12, "convnext": 2, "transformer": 11, "efficientnet": 17, "llama": 5
}  # fmt: skip
NEEDS = {"efficientnet": "timm", "llama": "transformers"}


@pytest.mark.parametrize("name", ON_CPU)
def test_small_models_train(name: str) -> None:
    pytest.importorskip(NEEDS.get(name, "torch"))
    data = ON_CPU[name]
    (row,) = measure_model(data, ["ours"], Plan(rounds=1, steps=1, warm_up=1), CPU)
    assert row.get("fused_layers", -1) >= FUSED_LAYERS[name], row
    (x, y), *others = data.make_batches(CPU)
    assert len(x) == len(y) == data.batch_size
    assert all(x.float().std() > 0.5 and not torch.equal(x, other) for other, _ in others)
    assert x.dim() < 4 or x.is_contiguous(memory_format=torch.channels_last) == data.channels_last


@pytest.mark.parametrize("name", ON_GPU)
def test_large_models_fit_their_data(name: str) -> None:
    pytest.importorskip(NEEDS.get(name, "torch"))
    data = ON_GPU[name]
    kind = torch.long if data.unit == "sequences" else torch.float32
    # On meta tensors transformers would read values. It doesn't on fake ones, for compilation.
    with FakeTensorMode() if name == "llama" else torch.device("meta"):
        logits = data.make_network()(torch.zeros(2, *data.sample, dtype=kind))
    assert logits.shape == (2, *(data.sample if kind == torch.long else ()), data.classes)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["vit", "transformer"])
def test_on_a_gpu(name: str) -> None:
    data = dataclasses.replace(ON_CPU[name], precision="bf16-mixed")
    for row in measure_model(data, list(VARIANTS), TINY, torch.device("cuda")):
        assert row["status"] == "ok", row
        assert row["milliseconds_per_step"] > 0
        assert row["peak_mib"] > 0
        assert 0 < row["share_of_replaced_ops"] < 1
