"""What the kernels of ``add_dropout_layer_norm`` keep, read and touch, and what compilers see."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_kernels import add_dropout_layer_norm, add_dropout_rms_norm
from lightning_kernels._add_norm import add_norm as _add_norm
from tests.kernels.reference import guard_launches

OPS = torch.ops.lightning_kernels
kernel = pytest.mark.kernel


def draw(device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Return x, residual, layer scale, weight and bias."""
    x, residual = torch.randn(2, 6, 3, 10, device=device).to(dtype)
    parameters = torch.randn(3, 10, device=device)
    return tuple(t.requires_grad_() for t in (x, residual, *parameters))


def seeded(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """Return results and gradients."""
    torch.manual_seed(1)
    x, residual, scale, weight, bias = tensors
    y, z = add_dropout_layer_norm(
        x, residual, (10,), weight, bias, p=0.3, drop_path=0.4, layer_scale=scale
    )
    grads = torch.autograd.grad(y.float().square().sum() + z.float().pow(3).sum(), tensors)
    return [y.detach(), z.detach(), *grads]


@kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_rerun_is_bitwise_equal_and_touches_only_its_tensors(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, device: str
) -> None:
    tensors = draw(device, dtype)
    expected = seeded(tensors)
    assert all(torch.equal(a, b) for a, b in zip(seeded(tensors), expected, strict=True))
    guard_launches(monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(seeded(tensors), expected, strict=True))


@kernel
def test_what_is_kept_for_the_backward_pass(device: str) -> None:
    x, residual, scale, weight, bias = draw(device)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    rates: Any = {"p": 0.3, "drop_path": 0.3}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        z = add_dropout_layer_norm(x, residual, (10,), weight, bias, **rates)[1]
        own = {t.data_ptr() for t in (z, weight, bias)}
        assert [tuple(t.shape) for t in kept if t.data_ptr() not in own] == [(2, 18)]
        kept.clear()
        z = add_dropout_rms_norm(x, residual, (10,), **rates)[1]
        assert [tuple(t.shape) for t in kept if t.data_ptr() != z.data_ptr()] == [(1, 18)]
        kept.clear()
        add_dropout_rms_norm(x, residual, (10,), layer_scale=scale, **rates)
    assert sum(t.data_ptr() == x.data_ptr() for t in kept) == 1


@kernel
def test_what_is_dropped_beside_a_residual_is_not_read(device: str) -> None:
    """Neither branch nor gradient: what is nan there shows in no other."""
    x, residual, scale, weight, bias = (t.detach() for t in draw(device))
    ones, zeros = torch.ones_like(x), torch.zeros_like(x)
    torch.manual_seed(2)
    kept = add_dropout_layer_norm(ones, zeros, (10,), drop_path=0.5)[1][:, 0, 0] > 0
    assert 0 < kept.sum() < 6
    x[~kept] = math.nan
    infinite = torch.full_like(scale, math.inf)
    torch.manual_seed(2)
    z = add_dropout_layer_norm(x, residual, (10,), drop_path=0.5, layer_scale=infinite)[1]
    assert torch.equal(z[~kept], residual[~kept])
    assert z[kept].isinf().all()
    leaves = [t.requires_grad_() for t in (x, residual, scale, weight, bias)]
    x, residual, scale, weight, bias = leaves
    for create_graph in (False, True):
        torch.manual_seed(2)
        y, z = add_dropout_layer_norm(
            x, residual, (10,), weight, bias, drop_path=0.5, layer_scale=scale
        )
        grads = torch.autograd.grad(
            y.sum() + z.sum(), leaves, retain_graph=True, create_graph=create_graph
        )
        assert not any(g.isnan().any() for g in grads)
        assert torch.equal(grads[0][~kept], torch.zeros_like(grads[0][~kept]))
        bad = torch.where(kept[:, None, None], z.detach(), math.nan)
        (grad,) = torch.autograd.grad(z, x, bad, create_graph=create_graph)
        assert torch.equal(grad[~kept], torch.zeros_like(grad[~kept]))


def test_without_a_residual_nan_stays_nan(device: str) -> None:
    z = add_dropout_layer_norm(
        torch.full((20, 2, 4), math.nan, device=device), None, (4,), p=0.5, drop_path=0.5
    )[1]
    assert z.isnan().all()


@kernel
def test_changed_results_are_noticed(device: str) -> None:
    x, residual, *_ = draw(device)
    y, z = add_dropout_layer_norm(x, residual, (10,))
    z.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@kernel
@pytest.mark.parametrize("scaled", [False, True])
def test_rows_that_are_too_long_are_composed(
    scaled: bool, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    x, residual, scale, weight, bias = draw(device)
    options: Any = {"layer_scale": scale} if scaled else {}
    expected = add_dropout_layer_norm(x, residual, (10,), weight, bias, **options)
    monkeypatch.setattr(_add_norm, "add_norm_operator", None)
    with pytest.raises(TypeError, match="not callable"):
        add_dropout_layer_norm(x, residual, (10,), weight, bias, **options)
    monkeypatch.setattr(_add_norm, "_LONGEST_SCALED" if scaled else "_LONGEST", 9)
    results = add_dropout_layer_norm(x, residual, (10,), weight, bias, **options)
    torch.testing.assert_close(results, expected)
    z = add_dropout_layer_norm(x * 0 + 1, residual * 0, (10,), p=0.5, drop_path=0.5, **options)[1]
    assert 0 < (z != 0).sum() < z.numel() / 2


def test_compiles_whole(device: str) -> None:
    tensors = draw(device)
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def block(x: Tensor, residual: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> Any:
        y, z = add_dropout_layer_norm(
            x, residual, (10,), weight, bias, p=0.5, drop_path=0.2, layer_scale=scale
        )
        return add_dropout_layer_norm(y, z, (10,), weight, bias, training=False)[0], z

    y, z = block(*tensors)
    x, residual, scale, weight, bias = tensors
    kept = ((z - residual) / (scale * x)).detach().abs() > 0.5
    right = residual + scale * x * kept / (0.5 * 0.8)
    torch.testing.assert_close(z, right)
    norm = torch.nn.functional.layer_norm
    right_y = norm(norm(right, [10], weight, bias) + right, [10], weight, bias)
    torch.testing.assert_close(y, right_y)
    for mine, other in zip(
        torch.autograd.grad(y.pow(3).sum() + z.square().sum(), tensors),
        torch.autograd.grad(right_y.pow(3).sum() + right.square().sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())
    assert not torch.equal(block(*tensors)[1] == residual, z == residual)


def test_functorch_and_forward_mode(device: str) -> None:
    x, residual = torch.randn(2, 4, 6, device=device)
    (y, z), (_, tangent), *_ = torch.func.jvp(
        lambda x: add_dropout_layer_norm(x, residual, (6,)), (x,), (torch.full_like(x, 3.0),)
    )
    assert torch.equal(z, x + residual)
    torch.testing.assert_close(tangent, torch.full_like(x, 3.0))
    assert y.shape == x.shape


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's check
@kernel
def test_opcheck(device: str) -> None:
    x, residual, scale, weight, bias = draw(device)
    state = torch.tensor([3, 8], device=device)
    rates = (0.3, None, 0.4, None)
    both = (x, residual, scale, weight, bias, 10, 1e-5, True, *rates)
    torch.library.opcheck(OPS.add_norm.default, (*both, state, 0, 0))
    bare = (x, None, None, None, None, 10, 1e-5, False, *rates)
    torch.library.opcheck(OPS.add_norm.default, (*bare, None, 3, 8))
    with torch.no_grad():
        y, z, statistics = OPS.add_norm(*both, state, 0, 0)
    saved = [t.detach() for t in (x, scale, weight, bias)]
    options = (statistics, True, torch.float32, *rates, state, 0, 0)
    for needs, grads in (([True] * 5, (y, z)), ([True, False, True, False, False], (None, z))):
        torch.library.opcheck(OPS.add_norm_backward.default, (z, *grads, *saved, *options, needs))


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements() -> None:
    x = torch.ones(2**19 + 8, 4, 1024, device="cuda", dtype=torch.bfloat16)
    z = add_dropout_rms_norm(x, x, (1024,), p=0.5)[1]
    tail = z[-16:].float()
    assert set(tail.unique().tolist()) == {1.0, 3.0}
    assert (tail == 3).float().mean().item() == pytest.approx(0.5, abs=0.02)
