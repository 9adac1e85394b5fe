"""``lightning_kernels.rms_norm`` on whichever route this run has; its rows are layer norm's."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_kernels import rms_norm
from tests.kernels.reference import assert_as_right_as_torch, run

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((1, 1), (1,)),
    ((2, 9, 127), (127,)),
    ((3, 4, 5, 6), (5, 6)),
    ((5, 128), (128,)),
    ((3, 8200), (8200,)),  # longer than a program holds, and no multiple of what it takes at once
]


def make(
    shape: Sequence[int], normalized: Sequence[int], dtype: torch.dtype, device: str
) -> list[Tensor]:
    parameter = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(shape, device=device).to(dtype)
    return [x, torch.randn(normalized, device=device, dtype=parameter)]


def both(
    normalized: Sequence[int], eps: float | None = None
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Return ours and torch's as functions of the tensors alone, torch's in the input's type."""

    def ours(x: Tensor, w: Tensor | None) -> Tensor:
        return rms_norm(x, normalized, w, eps)

    def torchs(x: Tensor, w: Tensor | None) -> Tensor:
        return F.rms_norm(x, [*normalized], None if w is None else w.to(x.dtype), eps)

    return ours, torchs


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "normalized"), SHAPES, ids=str)
def test_as_right_as_torch(
    shape: tuple[int, ...], normalized: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    def draw() -> tuple[list[Tensor | None], Tensor]:
        return [*make(shape, normalized, dtype, device)], torch.randn_like(like)

    like = torch.empty(shape, dtype=dtype, device=device)
    assert_as_right_as_torch(*both(normalized, eps=1e-6), draw)


def test_without_weight(device: str) -> None:
    def draw() -> tuple[list[Tensor | None], Tensor]:
        x = torch.randn(6, 33, device=device)
        return [x, None], torch.randn_like(x)

    assert_as_right_as_torch(*both((33,)), draw)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_default_eps_is_torchs(dtype: torch.dtype, device: str) -> None:
    x = torch.full((2, 8), 3e-4, device=device, dtype=dtype)  # squares of float32's eps in size
    ours, torchs = (function(x, None) for function in both((8,)))
    torch.testing.assert_close(ours, torchs, rtol=torch.finfo(dtype).eps, atol=0)
    if dtype != torch.float64:
        assert 0.5 < ours.float().mean().item() < 0.9


def test_a_large_mean_is_left_in(device: str) -> None:
    x = torch.randn(4, 64, device=device) + 1e4
    torch.testing.assert_close(rms_norm(x, (64,)), x / 1e4, rtol=1e-3, atol=0)


def heads(size: int, device: str, transposed: bool) -> Tensor:
    """Return queries of two samples, three tokens and four heads, a view into a projection."""
    projected = torch.randn(2, 3, 3 * 4 * size, device=device)
    queries = projected.view(2, 3, 3, 4, size)[:, :, 1]
    return queries.transpose(1, 2) if transposed else queries


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("size", [16, 9000])
def test_heads_of_a_projection(size: int, transposed: bool, device: str) -> None:
    x, weight = heads(size, device, transposed), torch.randn(size, device=device)
    grad = torch.randn(x.shape, device=device)
    expected = run(both((size,))[0], (x.contiguous(), weight), grad)
    leaf, w = x.detach().requires_grad_(), weight.requires_grad_()
    y = rms_norm(leaf, (size,), w)
    assert torch.equal(y, expected[0])
    gradients = torch.autograd.grad(y, (leaf, w), grad)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected[1:], strict=True))


@pytest.mark.kernel
def test_heads_are_not_copied(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = heads(16, device, transposed=True).requires_grad_()
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    monkeypatch.setattr(Tensor, "contiguous", None)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        rms_norm(x, (16,))
    assert {tuple(t.shape) for t in kept if t.data_ptr() != x.data_ptr()} == {(1, 24)}


@pytest.mark.parametrize("dims", [(2, 3, 4, 5, 6), (1, 3, 1, 5, 6)])
def test_rows_that_lie_anywhere(dims: tuple[int, ...], device: str) -> None:
    x = torch.randn(*dims, 8, device=device).permute(4, 2, 0, 1, 3, 5)
    assert torch.equal(rms_norm(x, (8,)), rms_norm(x.contiguous(), (8,)))
    odd = torch.randn(6, 16, device=device)[:, ::2]  # elements that are no neighbours
    assert torch.equal(rms_norm(odd, (8,)), rms_norm(odd.contiguous(), (8,)))
    same = torch.randn(8, device=device).expand(3, 8)
    assert torch.equal(rms_norm(same, (8,)), rms_norm(same.contiguous(), (8,)))


def test_second_derivatives_are_right(device: str) -> None:
    x, weight = make((5, 12), (12,), torch.float32, device)
    direction = torch.randn(5, 12, device=device)

    def penalty(x: Tensor, w: Tensor) -> Tensor:
        norm = rms_norm if x.dtype == torch.float32 else F.rms_norm
        y = norm(x, [12], w, 1e-6) * direction.to(x.dtype)
        grads = torch.autograd.grad(y.tanh().sum(), (x, w), create_graph=True)
        return sum((g**2).sum() for g in grads)  # type: ignore[return-value]

    ours = run(penalty, (x, weight), torch.ones((), device=device))
    exact = run(penalty, [t.double() for t in (x, weight)], torch.ones((), device=device))
    for mine, right in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_bad_row_stays_that_row(poison: float, device: str) -> None:
    x, weight = make((9, 40), (40,), torch.float32, device)
    clean = rms_norm(x, (40,), weight)
    x[4, 17] = poison
    y = rms_norm(x, (40,), weight)
    others = [row for row in range(9) if row != 4]
    assert y[4, 17].isnan()
    assert torch.equal(y[others], clean[others])


def test_compiled_in_one_graph(device: str) -> None:
    x, weight = make((6, 24), (24,), torch.float32, device)
    function = both((24,))[0]
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    grad = torch.randn_like(x)
    for a, b in zip(
        run(compiled, (x, weight), grad), run(function, (x, weight), grad), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"normalized_shape": (7,)}, RuntimeError, r"rms_norm.*\[7\].*\[4, 8\]"),
        ({"normalized_shape": 8}, TypeError, "sequence.*8"),
        ({"weight": torch.ones(7)}, RuntimeError, r"rms_norm expects weight.*\[8\].*\[7\]"),
        ({"weight": torch.ones(8, dtype=torch.float64)}, RuntimeError, "float32.*float64"),
        ({"input": torch.ones(4, 8, dtype=torch.int32)}, RuntimeError, "floating.*int32"),
        ({"autocast": "float32"}, ValueError, "'input' or 'match', but got 'float32'"),
    ],
    ids=str,
)
def test_bad_arguments(
    arguments: dict[str, object], error: type[Exception], message: str, device: str
) -> None:
    valid = {"input": torch.randn(4, 8), "normalized_shape": (8,)}
    call = {
        key: value.to(device) if isinstance(value, Tensor) else value
        for key, value in (valid | arguments).items()
    }
    with pytest.raises(error, match=message):
        rms_norm(**call)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_autocast_can_be_matched(name: str) -> None:
    import lightning_kernels

    ours, torchs = getattr(lightning_kernels, name), getattr(F, name)
    x = torch.randn(6, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16):
        y, right = ours(x, (32,), autocast="match"), torchs(x, (32,))
        assert ours(x, (32,)).dtype == torch.bfloat16
    assert y.dtype == right.dtype == torch.float32
    torch.testing.assert_close(y, right, rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    (expected,) = torch.autograd.grad(right.square().sum(), x)
    torch.testing.assert_close(grad, expected)
