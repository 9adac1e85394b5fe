import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.nn import DropCluster2d, fit_drop_clusters
from lightning_practices.nn._drop_cluster import _Correlation

pytestmark = pytest.mark.plain

QUADRANTS = torch.tensor([[0, 1], [2, 3]]).repeat_interleave(3, 0).repeat_interleave(4, 1)  # (6, 8)


def planted(regions: Tensor, samples: int, channels: int = 3, noise: float = 0.5) -> Tensor:
    """Draw activations that have one value for each region, sample and channel, and noise."""
    values = torch.randn(samples, channels, int(regions.max()) + 1)
    return values[:, :, regions] + noise * torch.randn(samples, channels, *regions.shape)


def smooth(samples: int, height: int, width: int) -> Tensor:
    """Draw noise that is smooth over about two positions, as features of photographs are."""
    reach = torch.arange(-6, 7.0)
    weight = (-(reach**2) / 8).exp()
    x = torch.randn(samples, 1, height + 12, width + 12)
    x = F.conv2d(x, weight.view(1, 1, -1, 1))
    return F.conv2d(x, weight.view(1, 1, 1, -1))


def same(clusters: Tensor, regions: Tensor) -> bool:
    """Return whether both divide the positions alike, whatever the numbers."""
    pairs = torch.stack([clusters.flatten().cpu(), regions.flatten()]).unique(dim=1)
    return bool(pairs.shape[1] == len(pairs[0].unique()) == len(pairs[1].unique()))


def test_planted_regions_are_recovered_exactly(device: str) -> None:
    x = planted(QUADRANTS, 50).to(device)
    layer = DropCluster2d(0.5, 4).to(device)
    assert layer.fit(x) is layer
    assert layer.clusters.shape == (6, 8)
    assert layer.clusters.dtype == torch.int64
    assert same(layer.clusters, QUADRANTS)
    scattered = QUADRANTS.flatten()[torch.randperm(48)].view(6, 8)
    assert same(layer.fit(planted(scattered, 50).to(device)).clusters, scattered)


def test_opposite_regions_are_two_clusters() -> None:
    values = torch.randn(100, 2, 1, 1) * torch.where(QUADRANTS % 3 == 0, 1, -1)
    clusters = DropCluster2d(0.5, 2).fit(values + 0.1 * torch.randn(100, 2, 6, 8)).clusters
    assert same(clusters, (QUADRANTS % 3 == 0).long())


def test_batches_give_what_one_tensor_gives() -> None:
    x = smooth(90, 8, 8).view(30, 3, 8, 8) + 1e4 * torch.arange(3).view(3, 1, 1)
    x = x.double()
    whole = DropCluster2d(0.5, 6).fit(x).clusters
    parts = DropCluster2d(0.5, 6).fit(iter([x[:1], x[1:8], x[:0], x[8:]])).clusters
    assert torch.equal(parts, whole)


def test_the_correlation_is_that_of_each_channel_about_its_mean() -> None:
    x = smooth(200, 4, 5).view(50, 4, 4, 5).double() + torch.tensor([0, 1e3, -1e6, 1]).view(4, 1, 1)
    correlation = _Correlation()
    for batch in x.split(7):
        correlation.add(batch)
    centred = (x - x.mean(0)).flatten(2).flatten(0, 1)
    expected = torch.corrcoef(centred.T)
    torch.testing.assert_close(correlation.result(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_level_of_a_channel_does_not_matter(dtype: torch.dtype) -> None:
    levels = torch.tensor([0.0, 40.0, -200.0]).view(3, 1, 1)
    x = (planted(QUADRANTS, 100, noise=0.2) * 4 + levels).to(dtype)
    assert same(DropCluster2d(0.5, 4).fit(x).clusters, QUADRANTS)


def test_clusters_of_a_smooth_field_hang_together() -> None:
    clusters = DropCluster2d(0.5, 9).fit(smooth(300, 12, 12)).clusters
    sizes = clusters.flatten().bincount(minlength=9)
    assert sizes.min() >= 4  # of 16 on average
    assert sizes.max() <= 36

    def neighbours(clusters: Tensor) -> float:
        pairs = (
            (clusters[1:] == clusters[:-1]).flatten(),
            (clusters[:, 1:] == clusters[:, :-1]).flatten(),
        )
        return torch.cat(pairs).double().mean().item()

    # Nine squares of four by four would have 0.82, and chance gives 1 / 9.
    assert neighbours(clusters) > 0.7
    shuffled = clusters.flatten()[torch.randperm(144)].view(12, 12)
    assert neighbours(shuffled) < 0.25


def test_the_fit_is_the_same_again_and_draws_nothing() -> None:
    x = smooth(100, 8, 8)
    before = torch.get_rng_state()
    first = DropCluster2d(0.5, 6).fit(x).clusters
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(DropCluster2d(0.5, 6).fit(x).clusters, first)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_positions_that_never_change_are_one_cluster(dtype: torch.dtype, constant: float) -> None:
    x = planted(QUADRANTS, 51).to(dtype)
    regions = QUADRANTS.clone()
    regions[2:4, 2:6] = 4
    x[:, :, regions == 4] = constant * torch.rand(8, dtype=dtype)  # whose means are rounded
    clusters = DropCluster2d(0.5, 5).fit(x.split(17)).clusters
    assert same(clusters, regions)


def test_fewer_kinds_of_positions_than_clusters() -> None:
    x = planted(QUADRANTS, 50, noise=0)
    clusters = DropCluster2d(0.5, 7).fit(x).clusters
    assert same(clusters, QUADRANTS)
    assert clusters.max() < 7
    each = DropCluster2d(0.5, 48).fit(planted(QUADRANTS, 500, noise=5)).clusters
    assert same(each, torch.arange(48))


@pytest.mark.parametrize(
    ("bad", "error", "match"),
    [
        (torch.randn(5, 3, 8), ValueError, r"\(N, C, H, W\), got \[5, 3, 8\]"),
        (torch.ones(5, 3, 2, 2, dtype=torch.int64), ValueError, "of torch.int64"),
        (torch.full((5, 3, 2, 2), math.nan), ValueError, "hold nan or infinity"),
        (torch.tensor([0, math.inf]).expand(5, 1, 1, 2), ValueError, "hold nan or infinity"),
        (torch.randn(1, 3, 2, 2), ValueError, "no position changes over 1 sample"),
        (torch.ones(9, 3, 2, 2), ValueError, "no position changes over 9 sample"),
        (torch.ones(0, 3, 2, 2), ValueError, "no activations"),
        ([], ValueError, "no activations"),
        (
            [torch.randn(5, 3, 2, 2), torch.randn(5, 3, 2, 1)],
            ValueError,
            r"\[3, 2, 1\] after \[3, 2, 2\]",
        ),
        ([[1.0]], TypeError, "got list"),
        (torch.randn(9, 3, 1, 2), ValueError, "num_clusters=4 is more than the 1 x 2 positions"),
    ],
)
def test_what_cannot_be_learnt_from_raises_and_changes_nothing(
    bad: Any, error: type[Exception], match: str
) -> None:
    layer = DropCluster2d(0.5, 4).fit(planted(QUADRANTS, 50))
    before = layer.clusters.clone()
    with pytest.raises(error, match=match):
        layer.fit(bad)
    assert torch.equal(layer.clusters, before)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = DropCluster2d(0.5, 4)
        self.norm = nn.BatchNorm2d(3)
        self.dropout = nn.Dropout(0.5)
        self.pool = nn.MaxPool2d(2)
        self.deep = nn.Sequential(DropCluster2d(0.5, 2))

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(input=x))
        y: Tensor = self.deep(self.pool(self.dropout(x)))
        return y


def test_fits_all_layers_of_a_model_and_gives_back_its_modes() -> None:
    net, x = Net(), planted(QUADRANTS, 60)
    net.norm.eval()
    modes = {name: module.training for name, module in net.named_modules()}
    state = copy.deepcopy(net.norm.state_dict())
    assert fit_drop_clusters(net, [[x[:40], "label"], (x[40:],)]) == ("first", "deep.0")
    assert torch.equal(net.first.clusters, DropCluster2d(0.5, 4).fit(x).clusters)
    assert isinstance(net.deep[0], DropCluster2d)
    # Neither dropout nor batch statistics: just what evaluation has.
    expected = DropCluster2d(0.5, 2).fit(F.max_pool2d(x, 2)).clusters
    assert torch.equal(net.deep[0].clusters, expected)
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert all(torch.equal(v, state[k]) for k, v in net.norm.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())
    assert (net(x) == 0).any()


def test_forward_says_how_the_model_runs_and_needs_no_gradients() -> None:
    net, x = Net(), planted(QUADRANTS, 60)
    seen = []

    def forward(model: Net, batch: dict[str, Tensor]) -> None:
        assert not model.training
        seen.append(model(batch["image"]).requires_grad)

    fit_drop_clusters(net, ({"image": part} for part in x.split(30)), forward=forward)
    assert seen == [False, False]
    assert same(net.first.clusters, QUADRANTS)


def test_a_model_without_such_layers_is_not_run() -> None:
    batches = iter([torch.ones(1)])
    assert fit_drop_clusters(nn.Linear(1, 1), batches) == ()
    assert len(list(batches)) == 1


def broken(model: Any, batch: Tensor) -> None:
    model(batch)
    raise KeyError("broken")


@pytest.mark.parametrize(
    ("forward", "error", "match"),
    [
        (broken, KeyError, "broken"),
        (lambda model, batch: model.first(batch), ValueError, "no activations"),
        (lambda model, batch: model.deep(model.first(batch[..., :2, :1])), ValueError, "the 2 x 1"),
    ],
)
def test_if_anything_raises_no_layer_has_changed(
    forward: Callable[[Any, Tensor], Any], error: type[Exception], match: str
) -> None:
    net, x = Net(), planted(QUADRANTS, 60)
    net.dropout.eval()
    fit_drop_clusters(net, [x])
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(error, match=match) as caught:
        fit_drop_clusters(net, [-x.flip(-1) + torch.randn_like(x)], forward=forward)
    if error is ValueError:
        assert "no layer has changed" in caught.value.__notes__[0]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [m.training for m in (net, net.first, net.dropout)] == [True, True, False]
    assert not any(module._forward_hooks for module in net.modules())


def test_fits_under_inference_mode_and_autocast() -> None:
    net, x = Net(), planted(QUADRANTS, 60)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        fit_drop_clusters(net, [x])
    assert not net.first.clusters.is_inference()
    assert torch.equal(net.first.clusters, DropCluster2d(0.5, 4).fit(x).clusters)


class Module(LightningModule):
    """Warms up for an epoch, then learns its clusters and drops them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 1), DropCluster2d(0.0, 4), nn.Conv2d(4, 1, 1))

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch).square().mean()
        return loss

    @override
    def on_train_epoch_start(self) -> None:
        layer = self.net[1]
        assert isinstance(layer, DropCluster2d)
        if self.current_epoch == 1:
            assert fit_drop_clusters(self.net, data()) == ("1",)
        if self.current_epoch > 0:
            layer.p = 0.25

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def data() -> DataLoader[Tensor]:
    torch.manual_seed(3)
    x: Any = planted(QUADRANTS, 64)
    return DataLoader(x, batch_size=16)


def test_trains_and_resumes_from_a_checkpoint_with_its_clusters(tmp_path: Path) -> None:
    quiet: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": tmp_path,
    }  # fmt: skip
    module = Module()
    trainer = Trainer(max_epochs=2, **quiet)
    trainer.fit(module, data())
    clusters = module.net[1].clusters
    assert isinstance(clusters, Tensor)
    assert same(clusters, QUADRANTS)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    twin = Module()  # whose layer has not been fitted, and is not again
    trainer = Trainer(max_epochs=3, **quiet)
    trainer.fit(twin, data(), ckpt_path=tmp_path / "saved.ckpt", weights_only=True)
    assert trainer.current_epoch == 3
    assert torch.equal(twin.net[1].clusters, clusters)  # type: ignore[arg-type]
    assert not torch.equal(twin.net[0].weight, module.net[0].weight)  # type: ignore[arg-type]
