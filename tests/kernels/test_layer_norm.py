"""``lightning_kernels.layer_norm`` on whichever route this run has."""

import math
import multiprocessing
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_kernels import layer_norm
from tests.kernels.reference import assert_as_right_as_torch, run
from tests.processes import DEADLINE

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((1, 1), (1,)),
    ((5, 3), (3,)),
    ((2, 9, 127), (127,)),
    ((33, 128), (128,)),
    ((3, 4, 5, 6), (5, 6)),
    ((2, 4097), (4097,)),
    ((7, 8), (7, 8)),
    ((3, 9000), (9000,)),  # longer than a program holds
]


def make(
    shape: Sequence[int], normalized: Sequence[int], dtype: torch.dtype, device: str
) -> list[Tensor]:
    """Return an input with a row-wise offset, a weight and a bias, none of them special."""
    x = torch.randn(shape, device=device) * 2 + torch.randn(shape[0], device=device).reshape(
        -1, *[1] * (len(shape) - 1)
    )
    parameter = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = (torch.randn(normalized, device=device, dtype=parameter) for _ in range(2))
    return [x.to(dtype), weight, bias]


def both(
    normalized: Sequence[int], eps: float = 1e-5
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Return ours and torch's as functions of the tensors alone, torch's in the input's type."""

    def ours(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        return layer_norm(x, normalized, w, b, eps)

    def torchs(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        w, b = (p if p is None or x.is_cpu else p.to(x.dtype) for p in (w, b))
        return F.layer_norm(x, list(normalized), w, b, eps)

    return ours, torchs


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("shape", "normalized", "dtype"),
    [
        *((*case, torch.float32) for case in SHAPES),
        *((*SHAPES[i], dtype) for i in (2, -1) for dtype in DTYPES[1:]),
    ],
    ids=str,
)
def test_as_right_as_torch(
    shape: tuple[int, ...], normalized: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    def draw() -> tuple[list[Tensor | None], Tensor]:
        return [*make(shape, normalized, dtype, device)], torch.randn_like(like)

    like = torch.empty(shape, dtype=dtype, device=device)
    assert_as_right_as_torch(*both(normalized), draw)


@pytest.mark.parametrize("present", [(True, False), (False, True), (False, False)], ids=str)
def test_weight_and_bias_are_optional(present: tuple[bool, bool], device: str) -> None:
    def draw() -> tuple[list[Tensor | None], Tensor]:
        x, *parameters = make((6, 33), (33,), torch.float32, device)
        pairs = zip(parameters, present, strict=True)
        return [x, *(p if there else None for p, there in pairs)], torch.randn_like(x)

    assert_as_right_as_torch(*both((33,)), draw)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_parameters_in_the_inputs_own_type(dtype: torch.dtype, device: str) -> None:
    def draw() -> tuple[list[Tensor | None], Tensor]:
        tensors = [t.to(dtype) for t in make((6, 33), (33,), dtype, device)]
        return [*tensors], torch.randn_like(tensors[0])

    assert_as_right_as_torch(*both((33,)), draw)


@pytest.mark.kernel
@pytest.mark.parametrize("eps", [1e-5, 1e-12, 0.1])
def test_a_large_mean_keeps_the_variance(eps: float, device: str) -> None:
    def draw() -> tuple[list[Tensor | None], Tensor]:
        # The mean's last digit decides, so many rows: a few could be luckier in torch.
        x, weight, bias = make((64, 257), (257,), torch.float32, device)
        return [x + 1e4, weight, bias], torch.randn_like(x)

    assert_as_right_as_torch(*both((257,), eps=eps), draw)


@pytest.mark.kernel
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_long_rows_merge_their_statistics(mean: float, device: str) -> None:
    def draw() -> tuple[list[Tensor | None], Tensor]:
        x, weight, bias = make((2, 12_300), (12_300,), torch.float32, device)
        slope = torch.linspace(0, 3, 12_300, device=device)  # blocks of different means
        return [x + slope + mean, weight, bias], torch.randn_like(x)

    assert_as_right_as_torch(*both((12_300,)), draw)


def test_a_constant_row_becomes_the_bias(device: str) -> None:
    x = torch.full((3, 64), 7.25, device=device)
    _, weight, bias = make((3, 64), (64,), torch.float32, device)
    y, *grads = run(both((64,))[0], (x, weight, bias), torch.randn(3, 64, device=device))
    assert torch.equal(y, bias.expand(3, 64))
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_bad_row_stays_that_row(poison: float, device: str) -> None:
    x, weight, bias = make((9, 40), (40,), torch.float32, device)
    grad = torch.randn(9, 40, device=device)
    clean_y, clean_grad, *_ = run(both((40,))[0], (x, weight, bias), grad)
    x[4, 17] = poison
    y, grad_x, *_ = run(both((40,))[0], (x, weight, bias), grad)
    others = [row for row in range(9) if row != 4]
    assert y[4].isnan().all()
    assert torch.equal(y[others], clean_y[others])
    assert torch.equal(grad_x[others], clean_grad[others])


@pytest.mark.parametrize("shape", [(0, 16), (3, 0, 16)], ids=str)
def test_an_empty_batch(shape: tuple[int, ...], device: str) -> None:
    x = torch.empty(shape, device=device)
    weight, bias = torch.ones(16, device=device), torch.ones(16, device=device)
    y, grad_x, grad_weight, grad_bias = run(both((16,))[0], (x, weight, bias), x)
    assert y.shape == grad_x.shape == x.shape
    assert torch.equal(grad_weight, torch.zeros(16, device=device))
    assert torch.equal(grad_bias, torch.zeros(16, device=device))


def test_strides_do_not_matter(device: str) -> None:
    x, weight, bias = make((24, 10, 6), (6,), torch.float32, device)
    grad = torch.randn(6, device=device).expand(10, 12, 6)
    plain = run(both((6,))[0], (x[::2].transpose(0, 1).contiguous(), weight, bias), grad)
    x = x[::2].transpose(0, 1)
    leaf = x.detach().requires_grad_()
    y = layer_norm(leaf, (6,), weight, bias)
    assert y.is_contiguous()
    assert torch.equal(y, plain[0])
    assert torch.equal(torch.autograd.grad(y, leaf, grad)[0], plain[1])


def test_strides_of_the_parameters_do_not_matter(device: str) -> None:
    x, weight, bias = make((6, 32), (32,), torch.float32, device)
    grad = torch.randn(6, 32, device=device)
    plain = run(both((32,))[0], (x, weight, bias), grad)
    spread = torch.stack([weight, bias], dim=1)  # each a column

    def strided(x: Tensor, both: Tensor) -> Tensor:
        return layer_norm(x, (32,), both[:, 0], both[:, 1])

    y, grad_x, grad_both = run(strided, (x, spread), grad)
    expected = [plain[0], plain[1], torch.stack(plain[2:], dim=1)]
    assert all(torch.equal(a, b) for a, b in zip((y, grad_x, grad_both), expected, strict=True))


@pytest.mark.gpu
def test_more_than_65536_rows(device: str) -> None:
    def draw() -> tuple[list[Tensor | None], Tensor]:
        tensors = make((65_537, 2), (2,), torch.float32, device)
        return [*tensors], torch.randn_like(tensors[0])

    assert_as_right_as_torch(*both((2,)), draw)


@pytest.mark.kernel
def test_a_rerun_is_bitwise_equal(device: str) -> None:
    tensors = make((300, 65), (65,), torch.bfloat16, device)
    grad = torch.randn(300, 65, device=device)
    first, second = (run(both((65,))[0], tensors, grad) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.kernel
@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 1), (1, 2)], ids=str)
def test_only_the_gradients_asked_for(needed: tuple[int, ...], device: str) -> None:
    tensors = make((20, 48), (48,), torch.float32, device)
    grad = torch.randn(20, 48, device=device)
    _, *all_grads = run(both((48,))[0], tensors, grad)
    leaves = [t.detach().requires_grad_(i in needed) for i, t in enumerate(tensors)]
    grads = torch.autograd.grad(
        layer_norm(leaves[0], (48,), leaves[1], leaves[2]), [leaves[i] for i in needed], grad
    )
    assert all(torch.equal(g, all_grads[i]) for g, i in zip(grads, needed, strict=True))


def test_second_derivatives_are_right(device: str) -> None:
    x, weight, bias = make((5, 12), (12,), torch.float32, device)
    direction = torch.randn(5, 12, device=device)

    def penalty(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        norm = layer_norm if x.dtype == torch.float32 else F.layer_norm
        y = norm(x, [12], w, b) * direction.to(x.dtype)
        grads = torch.autograd.grad(y.tanh().sum(), (x, w, b), create_graph=True)
        return sum((g**2).sum() for g in grads)  # type: ignore[return-value]

    ours = run(penalty, (x, weight, bias), torch.ones((), device=device))
    exact = run(penalty, [t.double() for t in (x, weight, bias)], torch.ones((), device=device))
    for mine, right in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool, device: str) -> None:
    tensors = make((6, 32), (32,), torch.float32, device)
    grad = torch.randn(6, 32, device=device)
    _, *plain = run(both((32,))[0], tensors, grad)
    leaves = [t.requires_grad_() for t in tensors]
    y = checkpoint(both((32,))[0], *leaves, use_reentrant=reentrant)
    y.backward(grad)
    assert all(torch.equal(leaf.grad, g) for leaf, g in zip(leaves, plain, strict=True))  # type: ignore[arg-type]


def test_functorch_transforms_and_forward_mode(device: str) -> None:
    x, weight, bias = make((5, 12), (12,), torch.float32, device)
    tangent = torch.randn_like(x)

    def ours(x: Tensor) -> Tensor:
        return layer_norm(x, (12,), weight, bias)

    def torchs(x: Tensor) -> Tensor:
        return F.layer_norm(x, (12,), weight, bias)

    for mine, right in zip(
        torch.func.jvp(ours, (x,), (tangent,)),
        torch.func.jvp(torchs, (x,), (tangent,)),
        strict=True,
    ):
        torch.testing.assert_close(mine, right)
    torch.testing.assert_close(
        torch.func.grad(lambda x: ours(x).square().sum())(x),
        torch.func.grad(lambda x: torchs(x).square().sum())(x),
    )
    torch.testing.assert_close(torch.func.vmap(ours)(x), torchs(x))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        mine = torch.autograd.forward_ad.unpack_dual(ours(dual)).tangent
        right = torch.autograd.forward_ad.unpack_dual(torchs(dual)).tangent
        assert mine is not None
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("changed", [0, 1])
def test_a_tensor_changed_before_backward_is_noticed(changed: int, device: str) -> None:
    tensors = [t.requires_grad_() for t in make((4, 16), (16,), torch.float32, device)]
    y = layer_norm(tensors[0], (16,), tensors[1], tensors[2])
    with torch.no_grad():
        tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.kernel
def test_two_numbers_per_row_are_kept(device: str) -> None:
    tensors = [t.requires_grad_() for t in make((40, 64), (64,), torch.bfloat16, device)]
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer_norm(tensors[0], (64,), tensors[1], tensors[2])
    own = {t.data_ptr() for t in tensors}
    assert [t.shape for t in kept if t.data_ptr() not in own] == [(2, 40)]


@pytest.mark.parametrize("size", [32, 20000])  # a row that a program holds, and a longer one
def test_autocast_keeps_the_inputs_type(size: int, device: str) -> None:
    x, weight, bias = make((6, size), (size,), torch.bfloat16, device)
    with torch.autocast(device, torch.bfloat16):
        y = layer_norm(x, (size,), weight, bias)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, layer_norm(x, (size,), weight, bias))


def test_an_error_in_a_backward_leaves_the_next_step_clean(device: str) -> None:
    tensors = make((4, 16), (16,), torch.float32, device)
    grad = torch.randn(4, 16, device=device)
    before = run(both((16,))[0], tensors, grad)
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = layer_norm(leaves[0], (16,), leaves[1], leaves[2])

    def fail(_: Tensor) -> None:
        raise ArithmeticError("in a hook")

    y.register_hook(fail)
    with pytest.raises(ArithmeticError, match="in a hook"):
        y.sum().backward()
    assert all(leaf.grad is None for leaf in leaves)
    after = run(both((16,))[0], tensors, grad)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def _in_a_fork(connection: "multiprocessing.connection.Connection") -> None:
    torch.set_num_threads(1)  # as a DataLoader's worker does: OpenMP's threads don't survive a fork
    connection.send(layer_norm(torch.arange(8.0).reshape(2, 4), (4,)).tolist())


def test_a_process_forked_after_use_works() -> None:
    expected = layer_norm(torch.arange(8.0).reshape(2, 4), (4,))
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_in_a_fork, args=(sender,))
    process.start()
    try:
        assert receiver.poll(timeout=DEADLINE)
        assert receiver.recv() == expected.tolist()
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"normalized_shape": (7,)}, RuntimeError, r"\[7\].*\[4, ?8\]"),
        ({"normalized_shape": ()}, RuntimeError, r"at least.*\[\]"),
        ({"normalized_shape": 8}, TypeError, r"sequence.*8"),
        ({"weight": torch.ones(7)}, RuntimeError, r"weight.*\[8\].*\[7\]"),
        ({"bias": torch.ones(1, 8)}, RuntimeError, r"bias.*\[8\].*\[1, 8\]"),
        ({"weight": torch.ones(8, dtype=torch.float64)}, RuntimeError, "float32.*float64"),
        ({"bias": torch.ones(8, device="meta")}, RuntimeError, "bias on c.*meta"),
        ({"input": torch.ones(4, 8, dtype=torch.int32)}, RuntimeError, "floating.*int32"),
        ({"input": torch.ones(4, 8, dtype=torch.bool)}, RuntimeError, "floating.*bool"),
        (
            {"input": torch.ones(4, 8, dtype=torch.complex64)},
            RuntimeError,
            "floating.*complex64",
        ),
    ],
    ids=str,
)
def test_bad_arguments(
    arguments: dict[str, object], error: type[Exception], message: str, device: str
) -> None:
    def on_device(value: object) -> object:
        movable = isinstance(value, Tensor) and value.device.type != "meta"
        return value.to(device) if movable else value  # type: ignore[attr-defined]

    valid = {"input": torch.randn(4, 8), "normalized_shape": (8,)}
    call = {key: on_device(value) for key, value in (valid | arguments).items()}
    with pytest.raises(error, match=message):
        layer_norm(**call)  # type: ignore[arg-type]
    with pytest.raises(error):  # and torch raises the same class
        F.layer_norm(**call)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements() -> None:
    x = torch.randn(2**19 + 3, 4096, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    y = layer_norm(x, (4096,))
    (grad,) = torch.autograd.grad(y, x, y.detach())
    tail = x.detach()[-3:].double().requires_grad_()
    right = F.layer_norm(tail, (4096,))
    torch.testing.assert_close(y[-3:].double(), right, rtol=0.01, atol=0.01)
    (right_grad,) = torch.autograd.grad(right, tail, y[-3:].double())
    torch.testing.assert_close(grad[-3:].double(), right_grad, rtol=0.01, atol=0.01)
