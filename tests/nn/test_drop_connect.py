import copy
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import parametrizations

import lightning_kernels
from lightning_practices.nn import DropConnectLinear

# Parameters of both variants: one mask for the batch, one for each sample.
both = pytest.mark.parametrize("per_sample", [False, True])


def seeded(layer: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(7)
    y: Tensor = layer(x)
    return y


def factors(layer: DropConnectLinear, *samples: int) -> Tensor:
    """Return what a call after the seed above multiplies the weights by, for each of samples."""
    torch.manual_seed(7)
    ones = torch.ones_like(layer.weight.detach())
    return lightning_kernels.dropout(ones.expand(*samples, -1, -1), layer.p)


def product(layer: DropConnectLinear, x: Tensor, factor: Tensor) -> Tensor:
    """Return the linear layer with its weights multiplied, sample by sample."""
    if factor.dim() == 2:
        return F.linear(x, layer.weight * factor, layer.bias)
    weights = layer.weight * factor
    return torch.stack([F.linear(x[n], weights[n], layer.bias) for n in range(len(x))])


@pytest.mark.parametrize("bias", [True, False])
def test_is_built_printed_and_saved_like_torchs(bias: bool, device: str) -> None:
    theirs = nn.Linear(6, 5, bias, device, torch.float64)
    torch.manual_seed(0)
    ours = DropConnectLinear(6, 5, bias, device, torch.float64, p=0.25)
    assert isinstance(ours, nn.Linear)
    assert repr(ours) == f"DropConnect{repr(theirs)[:-1]}, p=0.25, per_sample=False)"
    torch.manual_seed(0)
    again = nn.Linear(6, 5, bias, device, torch.float64)
    ours.schedule_rate(device)
    for source, target in ((ours, theirs), (theirs, ours)):
        target.load_state_dict(source.state_dict())
        assert list(target.state_dict()) == list(again.state_dict())
        for name, value in target.state_dict().items():
            assert torch.equal(value, again.state_dict()[name])


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_probability_outside_zero_to_one_raises(p: float) -> None:
    with pytest.raises(ValueError, match=f"between 0 and 1, but got {p}"):
        DropConnectLinear(6, 5, p=p)
    layer = DropConnectLinear(6, 5)
    layer.p = p
    with pytest.raises(ValueError, match=f"between 0 and 1, but got {p}"):
        layer(torch.randn(2, 6))


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_evaluation_is_torchs_bit_for_bit_and_draws_nothing(
    dtype: torch.dtype, per_sample: bool, device: str
) -> None:
    theirs = nn.Linear(6, 5, dtype=dtype, device=device)
    ours = DropConnectLinear(6, 5, dtype=dtype, device=device, per_sample=per_sample).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 3, 6, dtype=dtype, device=device)
    before = torch.get_rng_state()
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(6,), (1, 6), (4, 6), (4, 3, 6), (2, 3, 2, 6)])
@both
@pytest.mark.parametrize("bias", [True, False])
def test_result_and_gradients_are_those_of_the_masked_product(
    bias: bool, per_sample: bool, shape: tuple[int, ...], device: str
) -> None:
    layer = DropConnectLinear(6, 5, bias, device, torch.float64, p=0.4, per_sample=per_sample)
    x = torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)
    factor = factors(layer, *shape[:1] if per_sample and len(shape) > 1 else ())
    assert {round(value, 12) for value in factor.unique().tolist()} == {0, round(1 / 0.6, 12)}
    if factor.dim() == 3 and len(factor) > 1:
        assert not torch.equal(factor[0], factor[1])
    leaves = (x, *layer.parameters())
    y, expected = seeded(layer, x), product(layer, x, factor)
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    torch.testing.assert_close(
        torch.autograd.grad(y, leaves, grad), torch.autograd.grad(expected, leaves, grad)
    )
    assert torch.autograd.gradcheck(lambda x, *_: seeded(layer, x), leaves)


@both
@pytest.mark.parametrize("shape", [(0, 6), (0, 3, 6), (2, 0, 6)])
def test_empty_batches(shape: tuple[int, ...], per_sample: bool, device: str) -> None:
    layer = DropConnectLinear(6, 5, device=device, per_sample=per_sample)
    y = layer(torch.randn(shape, device=device))
    y.sum().backward()
    assert y.shape == (*shape[:-1], 5)
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_over_many_draws_is_the_linear_layer(
    dtype: torch.dtype, per_sample: bool, device: str
) -> None:
    layer = DropConnectLinear(6, 5, dtype=dtype, device=device, p=0.3, per_sample=per_sample)
    x = torch.randn(6, dtype=dtype, device=device)
    with torch.no_grad():
        if per_sample:
            draws = layer(x.expand(4000, 6))
        else:
            draws = torch.stack([layer(x) for _ in range(150)])
    weight, bias = (parameter.detach().double() for parameter in layer.parameters())
    variance = (weight * x).square().sum(1) * 0.3 / 0.7
    error = draws.double().mean(0) - F.linear(x.double(), weight, bias)
    assert (error.abs() < 5 * (variance / len(draws)).sqrt()).all()
    # The kurtosis is below 3, as that of a single draw is, which bounds the error of the variance.
    ratio = draws.double().var(0) / variance
    assert (ratio - 1).abs().max() < 5 * math.sqrt(2 / len(draws))


@both
def test_everything_is_dropped_at_one_and_nothing_at_zero(per_sample: bool, device: str) -> None:
    layer = DropConnectLinear(6, 5, device=device, dtype=torch.float64, per_sample=per_sample)
    x = torch.randn(4, 6, dtype=torch.float64, device=device)
    assert layer.bias is not None
    layer.p = 1.0
    assert torch.equal(layer(x), layer.bias.expand(4, 5))
    layer.p = 0.0
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


@both
def test_a_scheduled_rate_is_read_at_each_call(per_sample: bool, device: str) -> None:
    layer = DropConnectLinear(100, 100, False, device, p=0.0, per_sample=per_sample)
    layer.schedule_rate(device)
    x = torch.eye(100, device=device)
    x = x.expand(2, -1, -1)  # so that the result is the weights
    assert torch.equal(layer(x)[0], layer.weight.T)
    layer.p = 0.25
    dropped = (layer(x) == 0).double()
    assert torch.equal(dropped[0], dropped[1]) != per_sample
    assert abs(dropped[0].mean().item() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 10_000)
    layer.p = 1.0
    assert not layer(x).any()


@both
def test_compiles_in_one_graph_and_once_for_all_rates(per_sample: bool, device: str) -> None:
    # In float64, which ATen computes: nothing compiles under the interpreter.
    layer = DropConnectLinear(6, 5, device=device, dtype=torch.float64, per_sample=per_sample)
    layer.schedule_rate(device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled: Any = torch.compile(layer, backend=counter, fullgraph=True)
    x = torch.randn(4, 6, dtype=torch.float64, device=device, requires_grad=True)
    for p in (0.5, 0.2, 1.0):
        layer.p = p
        results = []
        for run in (layer, compiled):
            y = seeded(run, x)
            results.append([y, *torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))])
        torch.testing.assert_close(results[1], results[0])
    assert counter.frame_count == 1
    torch.compiler.reset()


@both
@pytest.mark.parametrize("bias", [True, False])
def test_autocast_gives_the_type_of_torchs_layer(bias: bool, per_sample: bool, device: str) -> None:
    layer = DropConnectLinear(6, 5, bias, device, p=0.4, per_sample=per_sample)
    x = torch.randn(4, 3, 6, device=device)
    factor = factors(layer, *[4] if per_sample else [])
    with torch.autocast(device, torch.bfloat16):
        y, expected = seeded(layer, x), product(layer, x, factor)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


@both
def test_drops_of_a_parametrized_weight(per_sample: bool, device: str) -> None:
    layer = DropConnectLinear(6, 5, device=device, dtype=torch.float64, per_sample=per_sample)
    parametrizations.weight_norm(layer)
    x = torch.randn(4, 6, dtype=torch.float64, device=device)
    factor = factors(layer, *[4] if per_sample else [])
    y, expected = seeded(layer, x), product(layer, x, factor)
    torch.testing.assert_close(y, expected)
    leaves = tuple(layer.parameters())
    assert len(leaves) == 3  # bias, length and direction
    torch.testing.assert_close(
        torch.autograd.grad(y.square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
    )


def test_copies_keep_their_options_and_follow_torchs_generator(device: str) -> None:
    x = torch.randn(4, 6, device=device)
    layer = DropConnectLinear(6, 5, device=device, p=0.25, per_sample=True)
    expected = seeded(layer, x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(twin) == repr(layer)
        assert torch.equal(seeded(twin, x), expected)
        assert not torch.equal(twin(x), expected)
