"""Which fused layers a measured fuse keeps, by clocks that are handed in, and by the real one."""

import copy
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from typing_extensions import override

from lightning_kernels._core import crossover
from lightning_practices._timing import Times
from lightning_practices.surgery import Report, fuse, unfuse
from lightning_practices.surgery._fuse import measure as measuring
from lightning_practices.surgery._fuse.measure import Means, measure
from lightning_practices.surgery._fuse.routes import load, store
from tests import processes

pytestmark = pytest.mark.plain

SLOW, FAST = 4e-3, 1e-3  # seconds, by the handed-in clock


class Clock:
    """Time passes only where a layer is called."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def __deepcopy__(self, memo: Any) -> "Clock":
        return self  # copies of a layer are timed by the same clock


class Plain(nn.Module):
    """A layer of a library, as slow as its clock says."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds
        self.weight = nn.Parameter(torch.full((4,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += self.seconds
        return x * self.weight


def twin_of_plain(seconds: float, wrong: Callable[[Tensor], Tensor] = lambda y: y) -> type:
    class Fused(Plain):
        @override
        def forward(self, x: Tensor) -> Tensor:
            self.clock.now += seconds
            return wrong(x * self.weight)

    return Fused


@pytest.fixture(autouse=True)
def auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossover, "_policy", "auto")
    monkeypatch.setattr(crossover, "_kept", set())


def use_twin(monkeypatch: pytest.MonkeyPatch, twin: type) -> None:
    from lightning_practices.surgery._fuse import twins

    monkeypatch.setitem(twins._LAYERS, Plain, twin)


def measured(model: nn.Module, batch: Any, clock: Clock, cache: Path | None = None) -> Report:
    unfuse(model)
    report = fuse(model)
    measure(model, batch, report, Means(clock, lambda device: cache, shown=False))
    return report


def is_fused(layer: nn.Module) -> bool:
    return type(layer) is not Plain


@pytest.mark.parametrize(("ours", "kept"), [(FAST, True), (SLOW, False), (0.98 * SLOW, False)])
def test_a_layer_is_kept_if_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, ours: float, kept: bool
) -> None:
    use_twin(monkeypatch, twin_of_plain(ours))
    clock = Clock()
    model = nn.Sequential(Plain(clock, SLOW), nn.ReLU())
    report = measured(model, torch.randn(2, 4), clock)
    assert is_fused(model[0]) is kept
    (layer,) = report.measured
    assert layer.times.ours == pytest.approx(ours)
    assert layer.times.torch == pytest.approx(SLOW)
    assert layer.times.ratio == pytest.approx(ours / SLOW)
    assert len(report.replaced) == kept
    assert [s.reason.startswith("no measured gain: ") for s in report.skipped] == [True] * (
        not kept
    )
    assert (report.step is not None) is kept
    assert not fuse(model).replaced  # a layer that was restored is left alone
    assert is_fused(model[0]) is kept
    assert len(measured(model, torch.randn(2, 4), clock).measured) == 1
    unfuse(model)
    assert fuse(model).replaced
    if kept:
        assert report.step is not None
        assert report.step.ratio == pytest.approx(ours / SLOW)
        assert f"a step: {ours * 1e6:,.0f} us, torch {SLOW * 1e6:,.0f} us" in str(report)


def test_a_layer_that_is_called_twice_is_kept_by_the_sum_of_its_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class ByRows(Plain):
        @override
        def forward(self, x: Tensor) -> Tensor:
            self.clock.now += SLOW if len(x) > 2 else FAST  # slower than torch's for many rows
            return x * self.weight

    class Twice(nn.Module):
        def __init__(self, layer: nn.Module, larger: int) -> None:
            super().__init__()
            self.layer, self.larger = layer, larger

        def forward(self, x: Tensor) -> Any:
            return self.layer(x), [self.layer(x.repeat(2, 1)) for _ in range(self.larger)]

    use_twin(monkeypatch, ByRows)
    for larger, kept in ((1, False), (0, True)):
        clock = Clock()
        model = Twice(Plain(clock, 2 * FAST), larger)
        report = measured(model, torch.randn(2, 4), clock)
        assert is_fused(model.layer) is kept
        assert report.measured[0].times.torch == pytest.approx((1 + larger) * 2 * FAST)
        assert report.measured[0].times.ours == pytest.approx(FAST + larger * SLOW)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda y: y * 1.001, "its result differs from that of torch's layer"),
        (lambda y: y.detach() + 0 * y, "differs from that of torch's layer"),
        (lambda y: y / 0 * 0, "it is not finite where torch's is"),
        (lambda y: y[:1], "another shape"),
        (lambda y: y.detach(), "not the same tensors have gradients"),
    ],
    ids=["result", "gradient", "nan", "shape", "no gradient"],
)
def test_a_wrong_layer_is_refused(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Tensor], Tensor], reason: str
) -> None:
    use_twin(monkeypatch, twin_of_plain(FAST, wrong))
    clock = Clock()
    model = nn.Sequential(Plain(clock, SLOW))
    report = measured(model, torch.randn(2, 4), clock)
    assert not is_fused(model[0])
    assert reason in report.skipped[0].reason
    assert not report.measured


def test_a_step_that_is_slower_restores_all(monkeypatch: pytest.MonkeyPatch) -> None:
    use_twin(monkeypatch, twin_of_plain(FAST))
    clock = Clock()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Plain(clock, SLOW)

        def forward(self, x: Tensor) -> Any:
            clock.now += 0.1 * is_fused(self.layer)  # what timing the layer alone can't show
            return self.layer(x)

    model = Model()
    report = measured(model, torch.randn(2, 4), clock)
    assert not is_fused(model.layer)
    assert "the whole step gains nothing" in report.skipped[0].reason


def test_measuring_changes_nothing_but_classes() -> None:
    torch.manual_seed(1)
    model: Any = torchvision.models.resnet18(num_classes=4)
    model.layer4 = nn.Sequential(model.layer4, nn.Dropout(0.5))
    calls = []
    model.bn1.register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    calls.clear()
    before = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    state = torch.get_rng_state()
    fuse(model, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(state, torch.get_rng_state())
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    assert all(
        torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), gradients, strict=True)
    )
    assert modes == [module.training for module in model.modules()]
    assert hooks == [len(module._forward_pre_hooks) for module in model.modules()]
    assert calls  # a user's hook runs with the user's model, as in any step


def test_a_folded_norm_is_timed_with_what_it_folds() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torchvision.models.resnet.BasicBlock(4, 4)

        def forward(self, x: Tensor) -> Any:
            return self.net(x)

    ticks = itertools.count()
    model = Block()
    report = fuse(model)
    measure(model, torch.randn(2, 4, 6, 6), report, Means(lambda: next(ticks), shown=False))
    assert sorted(layer.call for layer in report.measured) == [
        "BatchNorm2d + ReLU",
        "BatchNorm2d + add + ReLU",
    ]
    assert not report.replaced  # by this clock both ways take the same time
    assert not report.folded
    assert type(model.net) is torchvision.models.resnet.BasicBlock
    assert type(model.net.bn1) is nn.BatchNorm2d


def test_on_the_cpu_tiny_layers_are_left_and_drop_block_is_taken() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), torchvision.ops.DropBlock2d(0.2, 5), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.LayerNorm(8),
    )  # fmt: skip
    report = fuse(model)
    measure(model, torch.randn(8, 3, 64, 64), report, Means(time.thread_time))
    assert [layer.after for layer in report.replaced] == ["lightning_practices.nn.DropBlock2d"]
    assert type(model[4]) is nn.LayerNorm
    assert unfuse(model).replaced


def test_the_model_must_run_on_the_batch() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    with pytest.raises(ValueError, match=r"Sequential doesn't run on the batch: .*shapes"):
        fuse(model, torch.randn(2, 5))
    assert type(model[1]) is nn.LayerNorm


def test_batches_are_tensors_tuples_or_mappings(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(nn.Module):
        def __init__(self, clock: Clock) -> None:
            super().__init__()
            self.layer = Plain(clock, SLOW)

        def forward(self, x: Tensor, y: Tensor) -> Any:
            return {"z": self.layer(x + y)}

    use_twin(monkeypatch, twin_of_plain(FAST))
    x = torch.randn(2, 4)
    for batch in ((x, x), {"x": x, "y": x}):
        clock = Clock()
        model = Two(clock)
        assert len(measured(model, batch, clock).measured) == 1
        assert is_fused(model.layer)


@pytest.mark.parametrize("ours", [FAST, SLOW])
def test_a_compiled_model_is_timed_as_a_whole(monkeypatch: pytest.MonkeyPatch, ours: float) -> None:
    class Ours(nn.LayerNorm):
        pass

    times: dict[type, float] = {nn.LayerNorm: 2 * FAST, Ours: ours}
    from lightning_practices.surgery._fuse import twins

    monkeypatch.setitem(twins._LAYERS, nn.LayerNorm, Ours)
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    clock = Clock()

    class Compiled(nn.Module):  # a compiler's product, whose time depends on the layer's class
        def __init__(self) -> None:
            super().__init__()
            self._orig_mod = model

        def forward(self, x: Tensor) -> Any:
            clock.now += times[type(model[1])]
            return self._orig_mod(x)

    report = measured(Compiled(), torch.randn(2, 8), clock)
    assert not report.measured
    assert report.step is not None
    assert type(model[1]) is (Ours if ours == FAST else nn.LayerNorm)


def test_a_model_under_torch_compile_is_measured() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    model: Any = torch.compile(net, backend="aot_eager")
    report = fuse(model, torch.randn(2, 8))
    assert report.step is not None
    assert model(torch.randn(2, 8)).shape == (2, 8)


class TestCache:
    def test_later_models_are_not_timed(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        use_twin(monkeypatch, twin_of_plain(FAST))
        path, clock, batch = tmp_path / "a" / "routes.json", Clock(), torch.randn(2, 4)
        first = measured(nn.Sequential(Plain(clock, SLOW)), batch, clock, path)
        times = load(path)
        assert list(times.values()) == [first.measured[0].times]
        store(path, {key: Times(1.0, 2.0, 2.0, 0.0) for key in times})
        model = nn.Sequential(Plain(clock, SLOW))
        assert measured(model, batch, clock, path).measured[0].times.ratio == 2.0
        assert not is_fused(model[0])
        other = nn.Sequential(Plain(clock, SLOW))  # another shape is another call
        assert measured(other, torch.randn(3, 4), clock, path).measured[0].times.ratio == 0.25

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"\xff\xfe", b"[]", b"{}", b'{"form": 0, "times": {}}',
         b'{"form": 1, "times": {"k": [1, 2]}}', b'{"form": 1, "times": {"k": [1, 2, 3, NaN]}}',
         b'{"form": 1, "times": [1]}', b'{"form": 1}'],
    )  # fmt: skip
    def test_a_damaged_file_is_made_anew(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "routes.json"
        path.write_bytes(content)
        assert load(path) == {}
        store(path, {"call": Times(2.0, 1.0, 0.5, 0.1)})
        assert load(path) == {"call": Times(2.0, 1.0, 0.5, 0.1)}
        assert json.loads(path.read_text())["form"] == 1

    def test_times_are_added_to_those_of_other_processes(self, tmp_path: Path) -> None:
        path = tmp_path / "routes.json"
        store(path, {"a": Times(2.0, 1.0, 0.5, 0.1)})
        store(path, {"b": Times(3.0, 1.0, 0.3, 0.1)})
        assert sorted(load(path)) == ["a", "b"]

    def test_a_folder_that_cannot_be_written_to_warns(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.warns(RuntimeWarning, match="fuse can't keep its measurements in .*file"):
            store(tmp_path / "file" / "routes.json", {"a": Times(2.0, 1.0, 0.5, 0.1)})

    def test_deterministic_runs_use_kept_times_alone(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        use_twin(monkeypatch, twin_of_plain(SLOW))
        path, clock, batch = tmp_path / "routes.json", Clock(), torch.randn(2, 4)
        torch.use_deterministic_algorithms(True)
        try:
            model = nn.Sequential(Plain(clock, FAST))
            report = measured(model, batch, clock, path)
            assert is_fused(model[0])
            assert not report.measured
            assert report.step is None
            assert not path.exists()
            torch.use_deterministic_algorithms(False)
            measured(nn.Sequential(Plain(clock, FAST)), batch, clock, path)
            torch.use_deterministic_algorithms(True)
            model = nn.Sequential(Plain(clock, FAST))
            measured(model, batch, clock, path)
            assert not is_fused(model[0])
        finally:
            torch.use_deterministic_algorithms(False)


def fuse_on_rank(ours: float, right: bool) -> tuple[bool, list[str]]:
    from lightning_practices.surgery._fuse import twins

    twins._LAYERS[Plain] = twin_of_plain(ours, lambda y: y if right else y * 2)
    clock = Clock()
    model = nn.Sequential(Plain(clock, 2 * FAST))
    report = measured(model, torch.randn(2, 4), clock)
    return is_fused(model[0]), [layer.reason for layer in report.skipped]


@pytest.mark.parametrize("first", [FAST, SLOW])
def test_ranks_choose_as_rank_0_measures(first: float) -> None:
    second = SLOW if first == FAST else FAST
    ranks = processes.run(fuse_on_rank, [(first, True), (second, True)])
    assert [kept for kept, _ in ranks] == [first == FAST] * 2
    assert ranks[0] == ranks[1]


def test_a_layer_that_one_rank_refuses_is_restored_in_all() -> None:
    ranks = processes.run(fuse_on_rank, [(FAST, True), (FAST, False)])
    assert [kept for kept, _ in ranks] == [False, False]
    assert all("differs from that of torch's layer" in reasons[0] for _, reasons in ranks)


def test_small_calls_run_the_kernel_if_it_was_faster() -> None:
    small, other = torch.randn(2, 4), torch.randn(3, 4)
    assert not crossover.pays("layer_norm", small)
    with crossover.noting() as calls:
        assert crossover.pays("layer_norm", small)
    assert not crossover.pays("layer_norm", small)
    crossover.keep(calls)
    assert crossover.pays("layer_norm", small)
    assert not crossover.pays("layer_norm", other)
    assert not crossover.pays("rms_norm", small)
    assert not crossover.pays("layer_norm", small.bfloat16())


def test_a_small_call_is_kept_with_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ours(Plain):
        @override
        def forward(self, x: Tensor) -> Tensor:
            self.clock.now += FAST if crossover.pays("layer_norm", x) else 2 * SLOW
            return x * self.weight

    use_twin(monkeypatch, Ours)
    clock, x = Clock(), torch.randn(2, 4)
    model = nn.Sequential(Plain(clock, SLOW))
    report = measured(model, x, clock)
    assert report.measured[0].times.ours == pytest.approx(FAST)  # by the kernel
    assert is_fused(model[0])
    assert crossover.pays("layer_norm", x)
    assert measuring.DEFAULT.shown


def test_an_addition_is_timed_with_the_norm_after_it() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, embed_dim=24,
                              num_heads=2, num_classes=3)  # fmt: skip
    ticks = itertools.count()
    report = fuse(model)
    folded = {fold.names for fold in report.folded}
    assert folded == {("blocks.0.norm2",), ("blocks.1.norm1",), ("blocks.1.norm2",)}
    measure(model, torch.randn(2, 3, 32, 32), report, Means(lambda: next(ticks), shown=False))
    assert {m.names for m in report.measured if m.call == "add + LayerNorm"} == folded
    assert not report.folded  # by this clock both ways take the same time
    assert not any(hasattr(block, "run_branches") for block in model.blocks)
    assert fuse(model).folded == []  # what was restored stays so
