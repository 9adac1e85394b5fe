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
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from lightning_kernels._core import crossover
from lightning_practices.surgery import Report, fuse, measure_fused, unfuse
from lightning_practices.surgery._fuse import measure as measuring
from lightning_practices.surgery._fuse.measure import Means, measure
from lightning_practices.surgery._fuse.routes import load, store
from lightning_practices.timing import Times
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
    reasons = [layer.reason.partition(": ")[0] for layer in report.skipped]
    assert reasons == ["no gain of 3 % beyond the noise"] * (not kept)
    assert not fuse(model).replaced  # a layer that was restored is left alone
    assert is_fused(model[0]) is kept
    assert len(measured(model, torch.randn(2, 4), clock).measured) == 1
    unfuse(model)
    assert fuse(model).replaced
    if kept:
        assert report.step is not None
        assert report.step.ratio == pytest.approx(ours / SLOW)
        assert "a step: 1 ms, torch 4 ms (0.25 of it, +/- 0.00)" in str(report)


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
        store(path, {key: Times(1.0, 2.0, 0.0) for key in times})
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
        store(path, {"call": Times(2.0, 1.0, 0.1)})
        assert load(path) == {"call": Times(2.0, 1.0, 0.1)}
        assert json.loads(path.read_text())["form"] == 1

    def test_times_are_added_to_those_of_other_processes(self, tmp_path: Path) -> None:
        path = tmp_path / "routes.json"
        store(path, {"a": Times(2.0, 1.0, 0.1)})
        store(path, {"b": Times(3.0, 1.0, 0.1)})
        assert sorted(load(path)) == ["a", "b"]

    def test_a_folder_that_cannot_be_written_to_warns(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.warns(RuntimeWarning, match="fuse can't keep its measurements in .*file"):
            store(tmp_path / "file" / "routes.json", {"a": Times(2.0, 1.0, 0.1)})

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
    with crossover.run_all_kernels() as calls:
        assert crossover.pays("layer_norm", small)
    assert not crossover.pays("layer_norm", small)
    crossover.keep_kernels(calls)
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


class Holder(nn.Module):
    """A model around a layer, for the ways in which models call their layers."""

    def __init__(self, layer: nn.Module, forward: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.run = layer, forward

    @override
    def forward(self, x: Tensor) -> Any:
        return self.run(self.layer, x)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_takes_no_notice(reentrant: bool) -> None:
    def forward(layer: nn.Module, x: Tensor) -> Any:
        return checkpoint(layer, x, use_reentrant=reentrant)

    x = torch.randn(4, 8, requires_grad=True)
    model = Holder(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)), forward)
    expected = torch.autograd.grad(model.layer(x).sum(), list(model.parameters()))
    with measure_fused(model, fuse(model)) as report:
        model(x).sum().backward()
    assert report.measured
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)


def test_a_step_that_cannot_be_differentiated_so_is_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_twin(monkeypatch, twin_of_plain(FAST))
    clock = Clock()
    model = Holder(Plain(clock, SLOW), lambda layer, x: checkpoint(layer, x, use_reentrant=True))
    with pytest.warns(RuntimeWarning, match="the layers are measured, but not the whole step"):
        report = measured(model, torch.randn(2, 4).requires_grad_(), clock)
    assert report.step is None
    assert is_fused(model.layer)


def test_what_a_user_keeps_on_a_layer_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    use_twin(monkeypatch, twin_of_plain(FAST))
    clock = Clock()
    model = nn.Sequential(nn.Linear(4, 4), Plain(clock, SLOW))
    model[1].register_forward_hook(lambda module, args, y: setattr(module, "last", y))
    assert len(measured(model, torch.randn(2, 4), clock).measured) == 1


def test_a_layer_that_cannot_be_copied_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    use_twin(monkeypatch, twin_of_plain(FAST))
    clock = Clock()
    model: Any = nn.Sequential(nn.Linear(4, 4), Plain(clock, SLOW))
    model[1].stream = (number for number in range(3))
    report = measured(model, torch.randn(2, 4), clock)
    assert not is_fused(model[1])
    assert "cannot pickle 'generator' object" in report.skipped[0].reason


@pytest.mark.parametrize(
    "view", [lambda x: x[:1].expand(6, 4), lambda x: x.t().contiguous().t(), lambda x: x[::2]]
)
def test_views_are_timed(monkeypatch: pytest.MonkeyPatch, view: Callable[[Tensor], Tensor]) -> None:
    use_twin(monkeypatch, twin_of_plain(FAST))
    clock = Clock()
    model = Holder(Plain(clock, SLOW), lambda layer, x: layer(view(x)))
    assert len(measured(model, torch.randn(6, 4), clock).measured) == 1


def test_arguments_that_a_call_may_change_are_not_used_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Cache:
        entries = 0

    class Caching(Plain):
        @override
        def forward(self, x: Tensor, cache: Any = None) -> Tensor:
            cache.entries += 1
            return super().forward(x)

    from lightning_practices.surgery._fuse import twins

    class Ours(Caching):
        pass

    monkeypatch.setitem(twins._LAYERS, Caching, Ours)
    clock, cache = Clock(), Cache()
    model = Holder(Caching(clock, SLOW), lambda layer, x: layer(x, cache=cache))
    fuse(model)
    with measure_fused(model) as report:
        model(torch.randn(2, 4))
    assert cache.entries == 1
    assert "an argument is a Cache, which a call may change" in report.skipped[0].reason


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_tensors_are_left_alone() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
    encoder.eval()
    x, padding = torch.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.inference_mode():
        expected = encoder(x, src_key_padding_mask=padding)
        with measure_fused(encoder, fuse(encoder)):
            found = encoder(x, src_key_padding_mask=padding)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_in_the_middle_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    use_twin(monkeypatch, twin_of_plain(SLOW))
    clock = Clock()
    model = nn.Sequential(Plain(clock, FAST), nn.LayerNorm(4))

    restore = measuring._restore

    def fail(*arguments: Any) -> None:
        restore(*arguments)
        raise error

    fuse(model, torch.randn(2, 4))
    before = [(type(m), dict(vars(m))) for m in model.modules()]
    monkeypatch.setattr(measuring, "_restore", fail)
    with pytest.raises(error):
        fuse(model, torch.randn(3, 4))
    assert [type(m) for m in model.modules()] == [cls for cls, _ in before]
    marks = [{k: v for k, v in state.items() if k.startswith("_left")} for _, state in before]
    assert [
        {k: v for k, v in vars(m).items() if k.startswith("_left")} for m in model.modules()
    ] == marks


def test_buffers_that_a_forward_replaces_are_put_back() -> None:
    class Counts(nn.Module):
        count: Tensor
        wide: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("wide", torch.zeros(1).expand(4))
            self.norm = nn.LayerNorm(4)

        @override
        def forward(self, x: Tensor) -> Tensor:
            self.count = self.count + 1
            y: Tensor = self.norm(x.add_(1) + self.wide)
            return y

    model, x = Counts(), torch.zeros(2, 4)
    count = model.count
    fuse(model, x)
    assert model.count is count
    assert count.item() == 0
    assert not x.any()


def test_a_block_that_is_kept_keeps_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Block(Plain):
        def __init__(self, clock: Clock) -> None:
            super().__init__(clock, SLOW)
            self.inner = Inner(clock, FAST)

        @override
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.inner(x))

    class Inner(Plain):
        pass

    class OurBlock(Block):
        @override
        def forward(self, x: Tensor) -> Tensor:
            self.clock.now -= SLOW
            return super().forward(x)

    class OurInner(Inner):
        @override
        def forward(self, x: Tensor) -> Tensor:
            self.clock.now += FAST
            return super().forward(x)

    from lightning_practices.surgery._fuse import twins

    monkeypatch.setitem(twins._LAYERS, Block, OurBlock)
    monkeypatch.setitem(twins._LAYERS, Inner, OurInner)
    clock = Clock()
    model = nn.Sequential(Block(clock))
    report = measured(model, torch.randn(2, 4), clock)
    assert [layer.times.faster for layer in report.measured] == [True, False]
    assert type(model[0].inner) is OurInner
    assert not report.skipped


def fuse_a_batch_that_fails(rank: int) -> str:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    try:
        fuse(model, torch.randn(2, 8 - rank))
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def test_a_batch_that_fails_on_one_rank_is_an_error_on_all() -> None:
    first, second = processes.run(fuse_a_batch_that_fails, [(0,), (1,)])
    assert first.startswith("RuntimeError: the model doesn't run on the batch of rank 1: ")
    assert second.startswith("ValueError: Sequential doesn't run on the batch: ")


def test_a_list_is_one_argument_and_the_error_says_so() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    with pytest.raises(ValueError, match=r"a list is one argument: give its first item"):
        fuse(model, [torch.randn(2, 8), torch.zeros(2)])
