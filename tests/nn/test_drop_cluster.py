import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from lightning_practices.nn import DropCluster2d

pytestmark = pytest.mark.plain

QUADRANTS = torch.tensor([[0, 1], [2, 3]]).repeat_interleave(3, 0).repeat_interleave(4, 1)  # (6, 8)


def fitted(p: float, device: str = "cpu", **kwargs: Any) -> DropCluster2d:
    layer = DropCluster2d(p, 4, **kwargs)
    layer.load_state_dict({"clusters": QUADRANTS})
    return layer.to(device)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
def test_clusters_are_dropped_whole_and_the_rest_is_rescaled(
    channels_last: bool, dtype: torch.dtype, inplace: bool, device: str
) -> None:
    layer = fitted(0.4, device, inplace=inplace)
    format_ = torch.channels_last if channels_last else torch.contiguous_format
    x = (torch.rand(16, 3, 6, 8, device=device) + 1).to(dtype).to(memory_format=format_)
    original = x.clone()
    y = layer(x)
    assert (y is x) == inplace
    assert y.is_contiguous(memory_format=format_)
    kept = y != 0
    assert torch.equal(kept, kept[:, :1].expand_as(kept))  # channels share
    for region in range(4):
        inside = kept[:, 0][:, QUADRANTS.to(device) == region]
        assert torch.equal(inside, inside[:, :1].expand_as(inside))
    scale = torch.tensor(kept.numel() / int(kept.sum()), dtype=dtype, device=device)
    assert torch.equal(y, torch.where(kept, original * scale, 0))
    assert 0 < kept.sum() < kept.numel()


def test_clusters_are_dropped_at_the_rate_and_apart(device: str) -> None:
    kept = fitted(0.3, device)(torch.ones(5000, 1, 6, 8, device=device))[:, 0] != 0
    draws = kept[:, [0, 0, -1, -1], [0, -1, 0, -1]].double()  # one position of each
    sigma = math.sqrt(0.3 * 0.7 / 5000)
    assert (draws.mean(0) - 0.7).abs().max() < 5 * sigma
    assert (draws.T.corrcoef() - torch.eye(4, device=device)).abs().max() < 5 / math.sqrt(5000)
    assert abs(torch.corrcoef(torch.stack([draws[1:, 0], draws[:-1, 0]]))[0, 1]) < 5 / math.sqrt(
        5000
    )


def test_gradient_is_the_mask(device: str) -> None:
    layer = fitted(0.4, device)
    x = torch.randn(4, 3, 6, 8, dtype=torch.float64, device=device, requires_grad=True)

    def seeded(x: Tensor) -> Tensor:
        torch.manual_seed(5)
        y: Tensor = layer(x)
        return y

    factor = seeded(torch.ones_like(x)).detach()
    grad = torch.randn_like(x)
    (result,) = torch.autograd.grad(seeded(x), x, grad)
    assert torch.equal(result, grad * factor)
    assert torch.autograd.gradcheck(seeded, x)


@pytest.mark.parametrize("scheduled", [False, True])
def test_everything_is_dropped_at_one_and_nothing_at_zero(scheduled: bool, device: str) -> None:
    layer = fitted(0.5, device)
    if scheduled:
        layer.schedule_rate(device)
    x = torch.randn(4, 3, 6, 8, device=device, requires_grad=True)
    layer.p = 1.0
    y = layer(x)
    assert torch.equal(y, torch.zeros_like(x))
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.zeros_like(x))
    layer.p = 0.0
    assert torch.equal(layer(x), x)


def test_evaluation_returns_its_input_and_draws_nothing(device: str) -> None:
    x = torch.randn(4, 3, 6, 8, device=device)
    before = torch.get_rng_state()
    for layer in (fitted(0.5, device), DropCluster2d(0.5, 4)):
        torch.set_rng_state(before)
        assert layer.eval()(x) is x
        assert torch.equal(torch.get_rng_state(), before)


def test_an_empty_batch(device: str) -> None:
    x = torch.empty(0, 3, 6, 8, device=device, requires_grad=True)
    y = fitted(0.5, device)(x)
    y.sum().backward()
    assert y.shape == x.shape


def test_compiles_in_one_graph_and_once_for_all_rates(device: str) -> None:
    layer = fitted(0.5, device)
    layer.schedule_rate(device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled: Any = torch.compile(layer, backend=counter, fullgraph=True)
    x = torch.randn(4, 3, 6, 8, device=device, requires_grad=True)
    for p in (0.5, 0.2, 0.0, 1.0):
        layer.p = p
        results = []
        for run in (layer, compiled):
            torch.manual_seed(2)
            y = run(x)
            results.append([y, torch.autograd.grad(y.square().sum(), x)[0]])
        torch.testing.assert_close(results[1], results[0])
    assert counter.frame_count == 1
    torch.compiler.reset()


def test_before_the_fit_it_trains_only_without_dropping() -> None:
    layer, x = DropCluster2d(0.0, 4), torch.randn(2, 3, 6, 8)
    assert layer(x) is x
    for _ in range(2):
        layer.p = 0.0
        assert layer(x) is x
        layer.p = 0.1
        with pytest.raises(RuntimeError, match=r"no clusters yet.*call fit_drop_clusters\(model"):
            layer(x)
        layer.schedule_rate()


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (
            torch.randn(2, 3, 8, 6),
            r"fitted to maps of 6 x 8 .*\(N, C, 6, 8\), but got \[2, 3, 8, 6\]",
        ),
        (torch.randn(3, 6, 8), r"but got \[3, 6, 8\]"),
        (torch.ones(2, 3, 6, 8, dtype=torch.int64), "floating-point input, got torch.int64"),
    ],
)
def test_another_input_raises_and_leaves_the_layer_working(bad: Tensor, match: str) -> None:
    layer = fitted(0.5)
    with pytest.raises(ValueError, match=match):
        layer(bad)
    assert layer(torch.ones(2, 3, 6, 8)).shape == (2, 3, 6, 8)


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_probability_outside_zero_to_one_raises(p: float) -> None:
    with pytest.raises(ValueError, match=f"between 0 and 1, but got {p}"):
        DropCluster2d(p, 4)
    layer = fitted(0.5)
    layer.p = p
    with pytest.raises(ValueError, match=f"between 0 and 1, but got {p}"):
        layer(torch.ones(2, 3, 6, 8))
    with pytest.raises(ValueError, match="from 1 on, but got 0"):
        DropCluster2d(0.5, 0)


def test_is_printed_and_copied_with_its_clusters() -> None:
    layer, x = fitted(0.25), torch.ones(16, 1, 6, 8)
    assert repr(layer) == "DropCluster2d(p=0.25, inplace=False, num_clusters=4)"
    torch.manual_seed(1)
    expected = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.manual_seed(1)
        assert torch.equal(twin(x), expected)
        assert not torch.equal(twin(x), expected)


@pytest.mark.parametrize("assign", [False, True])
def test_state_loads_into_a_layer_whatever_its_state(assign: bool) -> None:
    layer = fitted(0.5)
    layer.schedule_rate()
    state = layer.state_dict()
    assert list(state) == ["clusters"]
    other = DropCluster2d(0.5, 4).fit(torch.randn(9, 1, 6, 4))
    for twin in (DropCluster2d(0.5, 4), fitted(0.5), other):
        nn.Sequential(twin).load_state_dict({"0.clusters": state["clusters"]}, assign=assign)
        assert torch.equal(twin.clusters, layer.clusters)
    twin.load_state_dict(DropCluster2d(0.5, 4).state_dict(), assign=assign)
    assert twin.clusters.shape == (0, 0)
    with pytest.raises(RuntimeError, match="no clusters yet"):
        twin(torch.ones(1, 1, 6, 8))
    assert layer.clusters.shape == (6, 8)


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ({}, 'Missing key.*"clusters"'),
        ({"clusters": torch.zeros(6, 8)}, r"clusters can't be loaded: .*of torch.float32"),
        ({"clusters": QUADRANTS[0]}, r"clusters can't be loaded: .*\[8\] of torch.int64"),
        ({"clusters": QUADRANTS + 1}, r"from 0 to 3, for num_clusters=4, got 1 to 4"),
        ({"clusters": QUADRANTS - 1}, r"from 0 to 3, for num_clusters=4, got -1 to 2"),
        ({"clusters": "quadrants"}, "clusters"),
    ],
)
def test_a_damaged_state_raises_and_leaves_the_layer_working(
    state: dict[str, Any], match: str
) -> None:
    layer = fitted(0.5)
    before = layer.clusters.clone()
    with pytest.raises(RuntimeError, match=match):
        layer.load_state_dict(state)
    assert torch.equal(layer.clusters, before)
    assert layer(torch.ones(2, 3, 6, 8)).shape == (2, 3, 6, 8)
