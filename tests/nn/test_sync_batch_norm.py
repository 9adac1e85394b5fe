import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import weight_norm
from typing_extensions import override

from lightning_practices.nn import BatchNorm1d, BatchNorm2d, SyncBatchNorm
from tests import processes

convert: Callable[..., Any] = SyncBatchNorm.convert_sync_batchnorm
revert: Callable[..., Any] = SyncBatchNorm.revert_sync_batchnorm


def randomise(layer: nn.Module) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.5, 1.5)


# One process.


@pytest.mark.parametrize(
    "options",
    [{}, {"eps": 1e-3, "momentum": None}, {"affine": False}, {"track_running_stats": False}],
    ids=str,
)
def test_is_built_printed_and_saved_like_torchs(options: dict[str, Any]) -> None:
    theirs, ours = nn.SyncBatchNorm(3, **options), SyncBatchNorm(3, **options)
    assert repr(ours) == repr(theirs)
    assert vars(ours).keys() - vars(BatchNorm1d(3)).keys() == {"process_group"}
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(nn.BatchNorm2d(3, **options).state_dict(), strict=True)
    positional = SyncBatchNorm(3, 1e-3, 0.2, False, True, "a group", "meta", torch.bfloat16)
    assert (positional.eps, positional.process_group) == (1e-3, "a group")
    assert positional.running_mean is not None
    assert positional.running_mean.is_meta


def test_virtual_batches_and_synchronisation_exclude_another() -> None:
    with pytest.raises(TypeError, match="virtual_batch_size"):
        SyncBatchNorm(3, virtual_batch_size=4)  # type: ignore[call-arg]


def test_alone_it_is_a_local_batch_norm(tmp_path: Path, device: str) -> None:
    ours = SyncBatchNorm(3, activation="relu").to(device)
    local = BatchNorm2d(3, activation="relu").to(device)
    x = torch.randn(2, 3, 4, 5, device=device)
    assert torch.equal(ours(x), local(x))
    store = f"file://{tmp_path}/store"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        assert torch.equal(ours(x), local(x))
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            ours(x[:1, :, :1, :1])
        ours.process_group = "all of them"
        with pytest.raises(TypeError, match=r"ProcessGroup .* but got 'all of them'"):
            ours(x)
    finally:
        dist.destroy_process_group()
    assert torch.equal(ours.eval()(x), local.eval()(x))
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, local.state_dict()[name])
    with pytest.raises(ValueError, match="expected at least 2D input"):
        ours(torch.randn(3))


class Named(nn.BatchNorm1d):
    """A subclass that computes what its base does."""


class Doubled(nn.BatchNorm1d):
    @override
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def model() -> Any:
    """Return a model of every kind of layer that can be converted."""
    changed = nn.BatchNorm2d(3)
    changed.__class__ = BatchNorm2d  # as surgery does
    return nn.Sequential(
        nn.BatchNorm1d(3),
        nn.Sequential(nn.BatchNorm2d(3, momentum=None), nn.Linear(2, 2)),
        BatchNorm2d(3, activation="elu", activation_parameter=0.3),
        nn.BatchNorm3d(3, affine=False),
        nn.SyncBatchNorm(3, process_group="a group"),
        Named(3),
        changed,
        SyncBatchNorm(3, activation="relu"),
    )


def test_conversion_changes_classes_alone_and_is_undone() -> None:
    net = model()
    net.append(net[0])  # shared
    layers, classes = list(net.modules()), [type(layer) for layer in net.modules()]
    state = [vars(layer).copy() for layer in layers]
    text = repr(net)
    assert convert(net, "mine") is net
    norms = [net[0], net[1][0], *net[2:8]]
    assert list(net.modules()) == layers
    assert all(type(layer) is SyncBatchNorm for layer in norms)
    groups = ["mine"] * 4 + ["a group", "mine", "mine", None]
    assert [layer.process_group for layer in norms] == groups
    assert (norms[2].activation, norms[2].activation_parameter) == ("elu", 0.3)
    assert norms[1].momentum is None
    assert isinstance(net[1][1], nn.Linear)
    for again in (convert(net, "another"), copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert [layer.process_group for layer in again[2:8]] == groups[2:]
        assert revert(revert(again)) is again
        assert [type(layer) for layer in again.modules()] == classes
    assert [vars(layer) for layer in layers] == state
    assert repr(net) == text


def test_the_model_itself_may_be_the_layer() -> None:
    layer = nn.BatchNorm2d(3)
    weight = layer.weight
    assert convert(layer) is layer
    assert isinstance(layer, SyncBatchNorm)
    assert layer.weight is weight
    assert type(revert(layer)) is nn.BatchNorm2d


def with_own_forward() -> nn.Module:
    layer = nn.BatchNorm1d(3)
    layer.forward = lambda input: input  # type: ignore[method-assign]
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (BatchNormAct2d(3), "BatchNormAct2d has a forward of its own"),
        (Doubled(3), "Doubled has a forward of its own"),
        (with_own_forward(), "BatchNorm1d has a forward of its own"),
        (weight_norm(nn.BatchNorm1d(3)), "it is parametrized"),
        (BatchNorm1d(3, virtual_batch_size=4), "it has virtual batches"),
        (nn.LazyBatchNorm1d(), "it has no parameters yet"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_be_lost_raises_and_changes_nothing(layer: nn.Module, reason: str) -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(layer))
    before = [(type(part), vars(part).copy()) for part in net.modules()]
    with pytest.raises(TypeError, match=f"^1.0 can't be synchronised: {reason}"):
        convert(net)
    assert [(type(part), vars(part)) for part in net.modules()] == before
    with pytest.raises(TypeError, match=r"^the model itself can't be synchronised"):
        convert(layer)


# Several processes.

SPLITS = [(3, 3), (3, 1), (4, 0), (0, 4)]


def passes(layer: SyncBatchNorm, batches: list[tuple[Tensor, ...]]) -> dict[str, list[Tensor]]:
    """Run ``layer`` forward and backward on each batch of input, residual and gradient."""
    warnings.simplefilter("error")  # in ranks, too
    results: dict[str, list[Tensor]] = {"y": [], "x": [], "residual": []}
    for x, residual, grad in batches:
        leaves = x.requires_grad_(), residual.requires_grad_()
        y = layer(*leaves)
        y.backward(grad)
        results["y"].append(y.detach())
        for name, leaf in zip(("x", "residual"), leaves, strict=True):
            assert leaf.grad is not None
            results[name].append(leaf.grad)
    results["parameters"] = [p.grad for p in layer.parameters() if p.grad is not None]
    results["state"] = list(layer.state_dict().values())
    return results


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_equals_one_process_on_the_joined_batch(
    split: tuple[int, ...], momentum: float | None
) -> None:
    ours = SyncBatchNorm(3, momentum=momentum, activation="gelu", dtype=torch.float64)
    randomise(ours)
    joined = [
        tuple(torch.randn(4 if sum(split) == 4 else 6, 3, 4, 5).double() for _ in range(3))
        for _ in range(3)
    ]
    shares: list[list[tuple[Tensor, ...]]] = [
        [tuple(t.split(split)[rank] for t in batch) for batch in joined] for rank in range(2)
    ]
    first, second = processes.run(passes, [(ours, batches) for batches in shares])
    local = BatchNorm2d(3, momentum=momentum, activation="gelu", dtype=torch.float64)
    local.load_state_dict(ours.state_dict())
    right = passes(local, joined)  # type: ignore[arg-type]
    for kind in ("y", "x", "residual"):
        for mine, other, exact in zip(first[kind], second[kind], right[kind], strict=True):
            torch.testing.assert_close(torch.cat([mine, other]), exact, rtol=1e-12, atol=1e-12)
    for mine, other, exact in zip(
        first["parameters"], second["parameters"], right["parameters"], strict=True
    ):
        torch.testing.assert_close(mine + other, exact, rtol=1e-12, atol=1e-12)
    for mine, other, exact in zip(first["state"], second["state"], right["state"], strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-12, atol=1e-12)
        assert torch.equal(mine, other)
    assert first["state"][-1] == 3


def test_float32_trains_on_either_route() -> None:
    ours = SyncBatchNorm(3, activation="relu")
    randomise(ours)
    joined = [tuple(torch.randn(6, 3, 4, 5) for _ in range(3)) for _ in range(3)]
    shares = [[tuple(t.split(3)[rank] for t in batch) for batch in joined] for rank in range(2)]
    first, second = processes.run(passes, [(ours, batches) for batches in shares])
    exact = BatchNorm2d(3, activation="relu").double()
    exact.load_state_dict(ours.state_dict())
    wide = [tuple(t.double() for t in batch) for batch in joined]
    right = passes(exact, wide)  # type: ignore[arg-type]
    for kind in ("y", "x"):
        for mine, other, wanted in zip(first[kind], second[kind], right[kind], strict=True):
            together = torch.cat([mine, other]).double()
            torch.testing.assert_close(together, wanted, rtol=1e-5, atol=1e-5)
    for mine, other, wanted in zip(first["state"], second["state"], right["state"], strict=True):
        torch.testing.assert_close(mine.double(), wanted.double(), rtol=1e-5, atol=1e-6)
        assert torch.equal(mine, other)


def evaluated(layer: SyncBatchNorm, x: Tensor | None) -> Tensor | None:
    if x is None:
        return None
    y: Tensor = layer(x)
    return y.detach()


def test_evaluation_waits_for_nobody() -> None:
    x = torch.randn(4, 3, 2)
    cases: list[dict[str, Any]] = [{}, {"track_running_stats": False}]
    for options in cases:
        layer = SyncBatchNorm(3, **options).eval()
        y, _ = processes.run(evaluated, [(layer, x), (layer, None)])
        assert torch.equal(y, layer(x))


def network(norm: nn.Module) -> nn.Sequential:
    """Return a small network, the same every time but for its norm."""
    torch.manual_seed(3)
    layers = nn.Conv2d(2, 4, 3, bias=False), norm, nn.ReLU(), nn.Flatten(), nn.Linear(16, 1)
    return nn.Sequential(*layers).double()


def trained(x: Tensor) -> list[Tensor]:
    """Train on ``(steps, samples, 2, 4, 4)``, with what other processes there are."""
    net = network(nn.BatchNorm2d(4))
    run: nn.Module = net
    if dist.is_initialized():
        run = DistributedDataParallel(convert(net))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for batch in x:
        loss = (run(batch) - batch.mean((1, 2, 3)).unsqueeze(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return list(net.state_dict().values())


def test_trains_under_ddp_as_one_process_does() -> None:
    x = torch.randn(5, 6, 2, 4, 4, dtype=torch.float64)
    x[:, 3:] += 2  # local statistics would not do
    first, second = processes.run(trained, [(x[:, :3],), (x[:, 3:],)])
    start = network(nn.BatchNorm2d(4)).state_dict().values()
    for mine, other, exact, before in zip(first, second, trained(x), start, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-10)
        assert torch.equal(mine, other)
        assert not torch.equal(mine, before)
