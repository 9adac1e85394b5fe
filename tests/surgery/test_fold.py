"""Whole networks with folded norms: what is folded, and that nothing else changes."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import GoogLeNet, mobilenet_v2, mobilenet_v3_small, resnet18, vgg11_bn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.densenet import DenseNet
from torchvision.models.inception import BasicConv2d
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import Conv2dNormActivation
from typing_extensions import override

import lightning_kernels
from lightning_practices.nn import BatchNorm2d, SyncBatchNorm
from lightning_practices.nn._batch_norm import FusedBatchNorm
from lightning_practices.surgery import Folded, Report, fuse, unfuse
from tests.surgery.conftest import Calls
from tests.surgery.models import everything, randomise, step


def small(act: type[nn.Module] = nn.ReLU, block: Any = BasicBlock) -> Any:
    """Return a ResNet of four blocks, three of them with another size at the end."""
    net = ResNet(block, [1, 1, 1, 1], num_classes=3)
    for module in [*net.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, act())
    return net


def densenet(**options: Any) -> Any:
    return DenseNet(
        growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=3, **options
    )


def timm_net(name: str, **options: Any) -> Callable[[], Any]:
    return lambda: pytest.importorskip("timm").create_model(name, num_classes=3, **options)


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, dtype=torch.float64)


# Network, batch norms in it, folded ones, of these with a sum.
NETWORKS: dict[str, tuple[Callable[[], Any], int, int, int]] = {
    "resnet18": (resnet18, 20, 17, 8),
    "bottlenecks": (lambda: small(block=Bottleneck), 17, 13, 4),
    "densenet": (densenet, 11, 11, 0),
    "densenet dropout": (lambda: densenet(drop_rate=0.3), 11, 11, 0),
    "vgg11_bn": (lambda: vgg11_bn().features, 8, 8, 0),
    "mobilenet_v3_small": (mobilenet_v3_small, 34, 23, 0),
    "inception": (lambda: nn.Sequential(BasicConv2d(3, 4, kernel_size=3)), 1, 1, 0),
    "convnext": (
        lambda: ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=5),
        0, 0, 0,
    ),
    "timm resnet18": (timm_net("resnet18"), 20, 17, 8),
    "timm resnet26": (timm_net("resnet26"), 29, 25, 8),
    "timm drop_path": (timm_net("resnet18", drop_path_rate=0.2), 20, 10, 1),
    "timm efficientnet": (timm_net("test_efficientnet"), 13, 9, 0),
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.plain
def test_networks_compute_the_same(
    name: str, training: bool, fused_calls: Calls, device: str
) -> None:
    build, norms, folds, sums = NETWORKS[name]
    net: Any = build().to(device, torch.float64).train(training)
    plain, x = copy.deepcopy(net), images().to(device)
    report = fuse(net)
    assert sum("BatchNorm" in r.before for r in report.replaced) == norms
    assert len(report.folded) == folds
    torch.testing.assert_close(everything(net, x), everything(plain, x))
    assert len(fused_calls) == folds
    assert sum(adds for _, adds in fused_calls) == sums


@pytest.mark.parametrize(
    ("build", "norms", "folds"),
    [
        (lambda: ResNet(Bottleneck, [3, 4, 6, 3]), 53, 49),
        (lambda: DenseNet(4, (6, 12, 24, 16), 8), 121, 121),
        (lambda: GoogLeNet(init_weights=False), 59, 59),
        (mobilenet_v2, 52, 35),
        (timm_net("mobilenetv3_small_050"), 34, 23),
        (timm_net("efficientnet_b0"), 49, 33),
    ],
)
def test_counts_of_large_networks(build: Callable[[], Any], norms: int, folds: int) -> None:
    with torch.device("meta"):
        net = build()
    before = [type(module) for module in net.modules()], [*net.state_dict()]
    report = fuse(net)
    assert sum("BatchNorm" in r.before for r in report.replaced) == norms
    assert len(report.folded) == folds
    assert report.skipped == []
    assert [*net.state_dict()] == before[1]
    unfuse(net)
    assert ([type(module) for module in net.modules()], [*net.state_dict()]) == before


def test_checkpointed_bottlenecks_are_folded_again_when_they_are_recomputed(
    fused_calls: Calls,
) -> None:
    net, x = densenet(memory_efficient=True).double(), images()
    plain = copy.deepcopy(net)
    fuse(net)
    torch.testing.assert_close(everything(net, x), everything(plain, x))
    assert len(fused_calls) == 11 + 4


def test_without_kernels_the_original_forwards_run_to_the_last_bit(calls: Calls) -> None:
    net, x = small().double(), images()
    plain = copy.deepcopy(net)
    assert len(fuse(net).folded) == 9
    for training in (True, False):
        found = everything(net.train(training), x), everything(plain.train(training), x)
        assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert calls == []


def test_what_is_not_folded_is_said() -> None:
    report = fuse(timm_net("resnet18", drop_path_rate=0.2)())
    assert {s.reason for s in report.skipped} == {"not folded: DropPath stands before the addition"}
    assert [s.names for s in report.skipped] == [
        (f"layer{i // 2 + 1}.{i % 2}.bn2",) for i in range(1, 8)
    ]
    report = fuse(nn.Sequential(nn.BatchNorm2d(2), nn.Hardtanh()))
    assert {s.reason for s in report.skipped} == {"not folded: Hardtanh can't be fused"}
    assert report.folded == []


def test_report_has_names_blocks_and_chains() -> None:
    net = small()
    report = fuse(net)
    block = "torchvision.models.resnet.BasicBlock"
    assert report.folded[:3] == [
        Folded(("bn1",), "torch.nn.BatchNorm2d", "torchvision.models.ResNet", "BatchNorm2d + ReLU"),
        Folded(("layer1.0.bn1",), "torch.nn.BatchNorm2d", block, "BatchNorm2d + ReLU"),
        Folded(("layer1.0.bn2",), "torch.nn.BatchNorm2d", block, "BatchNorm2d + add + ReLU"),
    ]
    assert repr(report) == "Report(12 replaced, 9 folded, 0 skipped)"
    text = str(report)
    assert "folded: BatchNorm2d + add + ReLU" in text
    assert max(map(len, text.splitlines())) <= 100


def test_subclasses_without_a_forward_of_their_own_are_folded(fused_calls: Calls) -> None:
    net: Any = Conv2dNormActivation(3, 4, activation_layer=nn.SiLU).double()
    plain, x = copy.deepcopy(net), images(6)
    (fold,) = fuse(net).folded
    assert fold == Folded(
        ("1",), "torch.nn.BatchNorm2d", "torchvision.ops.Conv2dNormActivation", "BatchNorm2d + SiLU"
    )
    assert isinstance(net, Conv2dNormActivation)
    torch.testing.assert_close(everything(net, x), everything(plain, x))
    assert fused_calls == [("silu", False)]


@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.SiLU, nn.GELU])
@pytest.mark.plain
def test_training_is_the_same(act: type[nn.Module], fused_calls: Calls) -> None:
    losses: list[list[float]] = []
    for fold in (False, True):
        torch.manual_seed(1)
        net, data, target = small(act).double(), images().repeat(2, 1, 1, 1), torch.arange(4) % 3
        if fold:
            fuse(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        losses.append([])
        for _ in range(5):
            loss = nn.functional.cross_entropy(net(data + torch.randn_like(data)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert len(set(losses[0])) == 5
    assert len(fused_calls) == 5 * 9


def state_of(net: nn.Module) -> list[tuple[str, type, list[str]]]:
    return [(name, type(module), list(vars(module))) for name, module in net.named_modules()]


def test_restore_leaves_no_trace(fused_calls: Calls) -> None:
    net = small().double()
    before, entries = state_of(net), {**net.state_dict(keep_vars=True)}
    reference, x = copy.deepcopy(net), images()
    report = fuse(net)
    assert type(net.layer1[0]) is not BasicBlock
    assert isinstance(net.layer1[0], BasicBlock)
    assert set(vars(net.layer1[0])) == {*vars(reference.layer1[0]), "_fused_from"}
    assert str(net) == str(reference)
    classes = [type(module) for module in net.modules()]
    assert fuse(net) == Report()
    assert [type(module) for module in net.modules()] == classes
    undone = unfuse(net)
    assert undone.folded == report.folded
    assert state_of(net) == before
    after = net.state_dict(keep_vars=True)
    assert after.keys() == entries.keys()
    assert all(after[name] is tensor for name, tensor in entries.items())
    torch.testing.assert_close(everything(net, x), everything(reference, x))
    assert fused_calls == []
    assert unfuse(net) == Report()


def through_file(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, through_file, lambda module: pickle.loads(pickle.dumps(module, protocol=0))],
)
@pytest.mark.plain
def test_copies_are_folded(copied: Callable[[nn.Module], nn.Module], fused_calls: Calls) -> None:
    net, x = small().double(), images()
    fuse(net)
    twin: Any = copied(net)
    assert [type(m) for m in twin.modules()] == [type(m) for m in net.modules()]
    torch.testing.assert_close(everything(twin, x), everything(net, x))
    assert len(fused_calls) == 18
    unfuse(twin)
    assert type(twin.layer1[0]) is BasicBlock
    assert vars(twin.layer1[0]).keys() == vars(small().layer1[0]).keys()
    assert type(net.layer1[0]) is not BasicBlock


def test_shallow_copy_of_a_block_is_folded() -> None:
    block = BasicBlock(4, 4)
    fuse(block)
    assert type(copy.copy(block)) is type(block)
    assert copy.copy(block).conv1 is block.conv1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.plain
def test_compiled_in_one_graph(training: bool, fused_calls: Calls) -> None:
    net, x = small().double().train(training), images()
    plain = copy.deepcopy(net)
    fuse(net)
    compiled: Any = torch.compile(net, backend="aot_eager", fullgraph=True)
    expected = step(plain, x)
    torch.testing.assert_close(step(compiled, x), expected)
    torch.compiler.reset()


def test_exported(fused_calls: Calls) -> None:
    net, x = small().double().eval(), images()
    expected = net(x)
    fuse(net)
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), expected)


def assert_as_near(
    ours: list[Tensor], theirs: list[Tensor], exact: list[Tensor], rounding: float
) -> None:
    """All results together: some gradients are sums that cancel, and any one of those is noise."""
    mine, torchs, truth = (
        torch.cat([tensor.double().flatten() for tensor in tensors])
        for tensors in (ours, theirs, exact)
    )
    allowed = 1.5 * (torchs - truth).norm() + rounding * truth.norm()
    assert (mine - truth).norm() <= allowed


def test_bf16_autocast_is_as_near_to_float64_as_torchs(fused_calls: Calls) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), BasicBlock(4, 4), BasicBlock(4, 4))
    x = images(6).float()
    fused = copy.deepcopy(plain)
    fuse(fused)
    exact = everything(copy.deepcopy(plain).double(), x.double())
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = everything(fused, x), everything(plain, x)
    assert_as_near(ours, theirs, exact, rounding=0.0)
    assert sum(adds for _, adds in fused_calls) == 2  # all is bfloat16 after the first layer


@pytest.mark.kernel
@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.SiLU, nn.GELU])
def test_float32_is_as_near_to_float64_as_torchs(
    act: type[nn.Module], calls: Calls, device: str
) -> None:
    block: Any = BasicBlock(4, 4)
    block.relu = act()
    plain = block.to(device)
    randomise(plain)
    fused, x = copy.deepcopy(plain), torch.randn(3, 4, 5, 5, device=device)
    fuse(fused)
    exact = everything(copy.deepcopy(plain).double(), x.double())
    ours, theirs = everything(fused, x), everything(plain, x)
    assert len(calls) == 2
    assert_as_near(ours, theirs, exact, rounding=torch.finfo(x.dtype).eps)


def test_layers_built_fused_are_folded_and_stay() -> None:
    block: Any = BasicBlock(4, 4, norm_layer=BatchNorm2d)
    report = fuse(block)
    assert report.replaced == []
    assert len(report.folded) == 2
    unfuse(block)
    assert type(block) is BasicBlock
    assert type(block.bn1) is BatchNorm2d


def test_virtual_batches_are_folded(fused_calls: Calls) -> None:
    def norm(channels: int) -> nn.Module:
        return BatchNorm2d(channels, virtual_batch_size=2)

    block, x = BasicBlock(4, 4, norm_layer=norm).double(), torch.randn(6, 4, 5, 5).double()
    plain = copy.deepcopy(block)
    fuse(block)
    torch.testing.assert_close(everything(block, x), everything(plain, x))
    assert len(fused_calls) == 2


def test_synchronised_layers_stay_folded(fused_calls: Calls) -> None:
    block, x = BasicBlock(4, 4).double(), torch.randn(2, 4, 5, 5).double()
    plain = copy.deepcopy(block)
    fuse(block)
    SyncBatchNorm.convert_sync_batchnorm(block)
    torch.testing.assert_close(everything(block, x), everything(plain, x))
    assert len(fused_calls) == 2
    restored = SyncBatchNorm.revert_sync_batchnorm(block)
    unfuse(restored)
    assert type(block.bn1) is nn.BatchNorm2d


def test_lazy_norms_are_skipped_until_they_have_parameters() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LazyBatchNorm2d(), nn.ReLU())
    report = fuse(net)
    assert (report.replaced, report.folded) == ([], [])
    assert [s.names for s in report.skipped] == [("1",)]
    assert "no parameters yet" in report.skipped[0].reason
    net(torch.randn(2, 3, 4, 4))
    assert repr(fuse(net)) == "Report(1 replaced, 1 folded, 0 skipped)"


class Renamed(nn.BatchNorm1d):
    """Another name for the same, as many models have."""


class RenamedSync(nn.SyncBatchNorm):
    """Likewise."""


class OwnForward(nn.BatchNorm2d):
    @override
    def forward(self, input: Tensor) -> Tensor:
        return input * 2


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ((nn.Linear(4, 4), nn.BatchNorm1d(4), nn.SiLU()), (5, 4)),
        ((nn.Conv1d(4, 4, 1), Renamed(4), nn.ELU(0.5)), (2, 4, 5)),
        ((nn.Conv3d(4, 4, 1), nn.BatchNorm3d(4), nn.GELU()), (2, 4, 2, 3, 2)),
        ((nn.Conv2d(4, 4, 1), nn.SyncBatchNorm(4), nn.ReLU()), (2, 4, 3, 2)),
        ((nn.Conv2d(4, 4, 1), RenamedSync(4), nn.ReLU()), (2, 4, 3, 2)),
    ],
)
def test_every_batch_norm_is_swapped_and_folded(
    layers: tuple[nn.Module, ...], shape: tuple[int, ...], fused_calls: Calls
) -> None:
    net = nn.Sequential(*copy.deepcopy(layers)).double()
    plain, x = copy.deepcopy(net), torch.randn(shape, dtype=torch.float64)
    assert repr(fuse(net)) == "Report(1 replaced, 1 folded, 0 skipped)"
    assert isinstance(net[1], (type(plain[1]), SyncBatchNorm))
    assert type(net[1]).forward is FusedBatchNorm.forward
    torch.testing.assert_close(everything(net, x), everything(plain, x))
    torch.testing.assert_close(everything(net.eval(), x), everything(plain.eval(), x))
    assert len(fused_calls) == 2
    unfuse(net)
    assert [type(layer) for layer in net] == [type(layer) for layer in plain]


def test_norms_with_their_own_forward_are_skipped_once() -> None:
    net = nn.Sequential(OwnForward(4), nn.ReLU())
    report = fuse(net)
    (left,) = report.skipped
    assert (left.names, left.reason) == (("0",), "OwnForward overrides forward")
    assert report.folded == []
    assert type(net) is nn.Sequential


@pytest.mark.parametrize(
    ("norm", "shape", "kernel"),
    [
        (nn.GroupNorm(2, 4), (2, 4, 3, 2), "group_norm"),
        (nn.InstanceNorm2d(4, affine=True), (2, 4, 3, 2), "instance_norm"),
        (nn.InstanceNorm1d(4, track_running_stats=True), (2, 4, 5), "instance_norm"),
    ],
)
def test_group_and_instance_norms_are_folded(
    norm: nn.Module, shape: tuple[int, ...], kernel: str, fused_calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    net = nn.Sequential(copy.deepcopy(norm), nn.LeakyReLU(0.2)).double()
    plain, x = copy.deepcopy(net), torch.randn(shape, dtype=torch.float64)
    assert [fold.chain for fold in fuse(net).folded] == [f"{type(norm).__name__} + LeakyReLU"]
    seen, function = [], getattr(lightning_kernels, kernel)

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        seen.append("leaky_relu" in args or kwargs.get("activation") == "leaky_relu")
        y: Tensor = function(*args, **kwargs)
        return y

    monkeypatch.setattr(lightning_kernels, kernel, counted)
    for training in (True, False):
        actual = everything(net.train(training), x)
        torch.testing.assert_close(actual, everything(plain.train(training), x))
    assert seen == [True, True]


def test_samples_without_a_batch_are_normalised_as_before(fused_calls: Calls) -> None:
    net = nn.Sequential(nn.InstanceNorm2d(4), nn.ReLU()).double()
    plain, x = copy.deepcopy(net), torch.randn(4, 3, 2, dtype=torch.float64)
    assert len(fuse(net).folded) == 1
    torch.testing.assert_close(everything(net, x), everything(plain, x))


def test_sequences_take_anything_that_their_layers_take(fused_calls: Calls) -> None:
    class Split(nn.Module):
        @override
        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return pair[0] - pair[1]

    net = nn.Sequential(Split(), nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.ReLU()).double()
    plain, x = copy.deepcopy(net), torch.randn(2, 5, 4).double()
    assert [fold.names for fold in fuse(net).folded] == [("2",)]
    torch.testing.assert_close(net((x[0], x[1])), plain((x[0], x[1])))
    assert fused_calls == [("relu", False)]
    torch.testing.assert_close(net[2:](x[0]), plain[2:](x[0]))  # a part is folded for itself
    assert len(fused_calls) == 2
