"""Whole networks with folded batch norms: what is folded, and that nothing else changes."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small, resnet18, resnet50, vgg11_bn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import BasicBlock, ResNet
from typing_extensions import override

from lightning_practices.nn import BatchNorm2d, SyncBatchNorm
from lightning_practices.nn._batch_norm import FusedBatchNorm
from lightning_practices.surgery import Folded, Report, fuse, unfuse
from tests.surgery.blocks import Calls
from tests.surgery.models import everything, randomise, step


def small(act: type[nn.Module] = nn.ReLU) -> Any:
    """Return a ResNet of four blocks, three of them with another size at the end."""
    net = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3)
    for module in [*net.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, act())
    return net


def densenet() -> Any:
    return DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=3)


def timm_net(name: str, **kwargs: Any) -> Callable[[], Any]:
    return lambda: timm.create_model(name, num_classes=3, **kwargs)


def convnext() -> Any:
    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=5)


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, dtype=torch.float64)


# Network, batch norms in it, folded ones, of these with a sum.
NETWORKS = {
    "resnet18": (resnet18, 20, 17, 8),
    "resnet50": (resnet50, 53, 49, 16),
    "timm resnet18": (timm_net("resnet18"), 20, 17, 8),
    "timm resnet26": (timm_net("resnet26"), 29, 25, 8),
    "timm resnet18 drop_path": (timm_net("resnet18", drop_path_rate=0.2), 20, 10, 1),
    "mobilenet_v3_small": (mobilenet_v3_small, 34, 5, 0),
    "densenet": (densenet, 11, 10, 0),  # the last one's relu is in another forward
    "vgg11_bn": (lambda: vgg11_bn().features, 8, 8, 0),
    "convnext": (convnext, 0, 0, 0),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_the_same(
    name: str, training: bool, fused_calls: Calls, device: str
) -> None:
    build, norms, folds, sums = NETWORKS[name]
    net: Any = build().to(device, torch.float64).train(training)
    plain, x = copy.deepcopy(net), images().to(device)
    report = fuse(net)
    assert sum(r.before == "torch.nn.BatchNorm2d" for r in report.replaced) == norms
    assert len(report.folded) == folds
    torch.testing.assert_close(everything(net, x), everything(plain, x))
    assert len(fused_calls) == folds
    assert sum(adds for _, adds in fused_calls) == sums


def test_what_is_not_folded_is_said() -> None:
    report = fuse(timm.create_model("resnet18", drop_path_rate=0.2))
    assert {s.reason for s in report.skipped} == {"not folded: DropPath stands before the addition"}
    assert [s.names for s in report.skipped] == [
        (f"layer{i // 2 + 1}.{i % 2}.bn2",) for i in range(1, 8)
    ]
    report = fuse(mobilenet_v3_small())
    assert {s.reason for s in report.skipped} == {"not folded: Hardswish can't be fused"}
    assert all("Hardswish" not in fold.chain for fold in report.folded)


def test_report_has_names_blocks_and_chains() -> None:
    net = small()
    report = fuse(net)
    block = "torchvision.models.resnet.BasicBlock"
    assert report.folded[:3] == [
        Folded(("bn1",), "torchvision.models.ResNet", "BatchNorm2d + ReLU"),
        Folded(("layer1.0.bn1",), block, "BatchNorm2d + ReLU"),
        Folded(("layer1.0.bn2",), block, "BatchNorm2d + add + ReLU"),
    ]
    assert repr(report) == "Report(12 replaced, 9 folded, 0 skipped)"
    text = str(report)
    assert "folded: BatchNorm2d + add + ReLU" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.SiLU, nn.GELU])
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
    assert list(vars(net.layer1[0])) == list(vars(reference.layer1[0]))
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


def test_copy_that_cannot_be_folded_is_the_plain_block(fused_calls: Calls) -> None:
    block, x = BasicBlock(4, 4).double(), torch.randn(2, 4, 5, 5).double()
    fuse(block)
    block.bn2.activation = block.bn1.activation = "silu"
    twin = copy.deepcopy(block)
    assert type(twin) is BasicBlock
    torch.testing.assert_close(everything(twin, x), everything(block, x))


def test_pickle_that_has_its_parts_later_is_the_plain_block(fused_calls: Calls) -> None:
    block, x = BasicBlock(4, 4).double(), torch.randn(2, 4, 5, 5).double()
    fuse(block)
    vars(block.bn1)["owner"] = block  # unpickled before the norm has its state
    twin = pickle.loads(pickle.dumps(block.bn1)).owner
    assert type(twin) is BasicBlock
    torch.testing.assert_close(everything(twin, x), everything(block, x))
    assert len(fused_calls) == 2


@pytest.mark.parametrize("training", [True, False])
def test_compiled_in_one_graph(training: bool) -> None:
    net, x = small().double().train(training), images()
    plain = copy.deepcopy(net)
    fuse(net)
    compiled: Any = torch.compile(net, backend="aot_eager", fullgraph=True)
    expected = step(plain, x)
    torch.testing.assert_close(step(compiled, x), expected)
    torch.compiler.reset()


def test_exported() -> None:
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


@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.SiLU, nn.GELU])
def test_float32_is_as_near_to_float64_as_torchs(
    act: type[nn.Module], fused_calls: Calls, device: str
) -> None:
    block: Any = BasicBlock(4, 4)
    block.relu = act()
    plain = block.to(device)
    randomise(plain)
    fused, x = copy.deepcopy(plain), torch.randn(3, 4, 5, 5, device=device)
    fuse(fused)
    exact = everything(copy.deepcopy(plain).double(), x.double())
    ours, theirs = everything(fused, x), everything(plain, x)
    assert len(fused_calls) == 2
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
    net = nn.Sequential(OwnForward(4), nn.ReLU(), BatchNormAct2d(4))
    report = fuse(net)
    assert [(left.names, left.reason.rpartition(".")[2]) for left in report.skipped] == [
        (("0",), "OwnForward overrides forward"),
        (("2",), "BatchNormAct2d overrides forward"),
    ]
    assert report.folded == []
    assert type(net) is nn.Sequential
