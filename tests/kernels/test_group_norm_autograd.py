"""What ``lightning_kernels.group_norm`` keeps, and what else than a backward pass goes through."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_kernels import group_norm
from tests.kernels.group_norms import LAST, Layout, both, make
from tests.kernels.reference import guard_launches, run

OPS = torch.ops.lightning_kernels


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("layout", [None, LAST], ids=str)
def test_second_derivatives_are_right(layout: Layout, activation: str | None, device: str) -> None:
    tensors = make((3, 6, 2, 3), layout, device=device)
    direction = torch.randn(3, 6, 2, 3, device=device)

    def penalty(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        norm = both(3, activation)[x.dtype != torch.float32]
        # The weight depends on the bias, as it may in a model.
        y = norm(x, w * b, b) * direction.to(x.dtype)
        grads = torch.autograd.grad(y.tanh().sum(), (x, w, b), create_graph=True)
        return sum((g**2).sum() for g in grads)  # type: ignore[return-value]

    one = torch.ones((), device=device)
    ours = run(penalty, tensors, one)
    exact = run(penalty, [t.double() for t in tensors], one.double())
    for mine, right in zip(ours, exact, strict=True):
        assert (mine.double() - right).norm() <= 1e-5 * right.norm()


def test_functorch_transforms_and_forward_mode(device: str) -> None:
    x, weight, bias = make((5, 12), device=device)
    tangent = torch.randn_like(x)
    ours, torchs = (lambda x, f=f: f(x, weight, bias) for f in both(3, "relu"))
    mine, right = (torch.func.jvp(f, (x,), (tangent,)) for f in (ours, torchs))
    torch.testing.assert_close(mine, right)
    mine, right = (torch.func.grad(lambda x, f=f: f(x).square().sum())(x) for f in (ours, torchs))
    torch.testing.assert_close(mine, right)
    batch = torch.stack([x, tangent])
    torch.testing.assert_close(torch.func.vmap(ours)(batch), torch.func.vmap(torchs)(batch))


@pytest.mark.parametrize("changed", [0, 1])
def test_a_tensor_changed_before_backward_is_noticed(changed: int, device: str) -> None:
    tensors = [t.requires_grad_() for t in make((4, 6), device=device)]
    y = both(2)[0](*tensors)
    with torch.no_grad():
        tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.kernel
@pytest.mark.parametrize("shape", [(4, 6, 3, 3), (1, 6, 90, 70)], ids=str)
def test_two_numbers_per_group_are_kept(shape: tuple[int, ...], device: str) -> None:
    leaves = [t.requires_grad_() for t in make(shape, LAST, device=device)]
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        both(2, "silu")[0](*leaves)
    own = {t.data_ptr() for t in leaves}
    assert [tuple(t.shape) for t in kept if t.data_ptr() not in own] == [(2, 2 * shape[0])]


@pytest.mark.parametrize("size", [6, 0])  # a kernel's, and one that goes to ATen
def test_autocast_keeps_the_inputs_type(size: int, device: str) -> None:
    x, weight, bias = make((size, 6, 2), dtype=torch.bfloat16, device=device)
    with torch.autocast(device, torch.bfloat16):
        y = both(3, "gelu")[0](x, weight, bias)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, both(3, "gelu")[0](x, weight, bias))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)  # the latter is ATen's
@pytest.mark.parametrize("shape", [(4, 6, 2, 3), (1, 4, 97, 91)], ids=str)
def test_autocast_can_be_matched(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, bias = (t.requires_grad_() for t in make(shape, LAST, dtype, "cuda"))
    with torch.autocast("cuda", torch.bfloat16):
        y = group_norm(x, 2, weight, bias, activation="silu", autocast="match")
        unmatched = torch.func.vmap(lambda x: group_norm(x, 2))(x[None])  # ATen's
        right = F.silu(F.group_norm(x, 2, weight, bias))
    assert unmatched.dtype == dtype
    assert y.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    torch.testing.assert_close(y.float(), right.float(), rtol=1e-5, atol=1e-5)
    for a, b in zip(
        *(torch.autograd.grad(z.sum(), (x, weight, bias)) for z in (y, right)), strict=True
    ):
        torch.testing.assert_close(a, b.to(a.dtype))


@pytest.mark.kernel
@pytest.mark.parametrize("shape", [(2, 4, 3, 2), (1, 2, 97, 173)], ids=str)
def test_an_output_wider_than_the_input(shape: tuple[int, ...], device: str) -> None:
    x, weight, bias = (t.requires_grad_() for t in make(shape, LAST, torch.bfloat16, device))
    grad = torch.randn(shape, device=device)
    wide = OPS.group_norm(x, 2, weight, bias, 1e-5, "silu", 0.0, torch.float32)[0]
    narrow = group_norm(x, 2, weight, bias, activation="silu")
    assert wide.dtype == torch.float32
    assert torch.equal(wide.bfloat16(), narrow)
    mine = torch.autograd.grad(wide, (x, weight, bias), grad)
    right = torch.autograd.grad(
        F.silu(F.group_norm(x.double(), 2, weight.double(), bias.double())),
        (x, weight, bias), grad.double(),
    )  # fmt: skip
    for a, b in zip(mine, right, strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-2 if a.dtype == torch.bfloat16 else 1e-5, atol=1e-4
        )


@pytest.mark.parametrize("layout", [None, LAST], ids=str)
def test_compiled_in_one_graph(layout: Layout, device: str) -> None:
    tensors = make((2, 6, 4, 3), layout, device=device)
    function = both(3, "silu")[0]
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    grad = torch.randn_like(tensors[0])
    results = zip(run(compiled, tensors, grad), run(function, tensors, grad), strict=True)
    for a, b in results:
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        assert a.stride() == b.stride()


# torch's own check reads .grad of a tensor that is not a leaf
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.kernel
@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((2, 4, 3, 2), None),
        pytest.param((2, 4, 3, 2), LAST, marks=pytest.mark.full),
        pytest.param((1, 2, 97, 173), None, marks=pytest.mark.full),
    ],
)
def test_opcheck(shape: tuple[int, ...], layout: Layout, device: str) -> None:
    x, weight, bias = (t.requires_grad_() for t in make(shape, layout, device=device))
    numbers = 1e-5, "silu", 0.0
    torch.library.opcheck(OPS.group_norm.default, (x, 2, weight, bias, *numbers, torch.float16))
    with torch.no_grad():
        y, statistics = OPS.group_norm(x, 2, weight, None, *numbers, None)
        detached = x.detach(), 2, weight.detach(), None
    for needs in ([True, True, False], [False, True, False]):
        arguments = (y, *detached, statistics, *numbers, needs)
        torch.library.opcheck(OPS.group_norm_backward.default, arguments)


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("shape", "groups", "layout", "dtype"),
    [
        ((2, 10, 3, 5), 2, None, torch.float16),
        ((2, 34, 3, 3), 17, LAST, torch.float32),  # a slab that ends beyond the last channel
        ((1, 6, 79, 75), 2, None, torch.float32),
        ((1, 6, 79, 75), 2, LAST, torch.float16),
    ],
)
def test_kernels_touch_only_their_tensors(
    shape: tuple[int, ...], groups: int, layout: Layout, dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch, device: str,
) -> None:  # fmt: skip
    tensors = make(shape, layout, dtype, device)
    grad = torch.randn_like(tensors[0])
    function = both(groups, "silu")[0]
    expected = run(function, tensors, grad)
    guard_launches(monkeypatch)
    results = run(function, tensors, grad)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"num_groups": 3}, RuntimeError, "num_groups.*8 channels.*3"),
    ({"num_groups": -2}, RuntimeError, "num_groups.*-2"),
    ({"weight": torch.ones(7)}, RuntimeError, r"group_norm expects weight.*\[8\].*\[7\]"),
    ({"bias": torch.ones(8, device="meta")}, RuntimeError, "bias on c.*meta"),
    ({"input": torch.ones(1, 8), "num_groups": 8}, ValueError, "more than 1 value"),
    ({"input": torch.ones(8)}, RuntimeError, r"\(N, C, \*\).*\[8\]"),
    ({"input": torch.ones(4, 8, dtype=torch.int32)}, RuntimeError, "floating.*int32"),
    ({"input": torch.ones(4, 8, dtype=torch.complex64)}, RuntimeError, "floating.*complex64"),
]


def _on(device: str, arguments: dict[str, Any]) -> dict[str, Any]:
    valid: dict[str, Any] = {"input": torch.randn(4, 8), "num_groups": 2}
    return {
        key: value.to(device) if isinstance(value, Tensor) and not value.is_meta else value
        for key, value in (valid | arguments).items()
    }


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments(
    arguments: dict[str, Any], error: type[Exception], message: str, device: str
) -> None:
    call = _on(device, arguments)
    with pytest.raises(error, match=message):
        group_norm(**call)
    if call["input"].is_floating_point():  # else torch's CPU raises the same class, its GPU another
        with pytest.raises(error):
            F.group_norm(call.pop("input"), **call)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"activation": "tanh"}, ValueError, "relu, relu6.*'tanh'"),
        ({"activation": "relu", "activation_parameter": 0.2}, ValueError, "0.2.*'relu'"),
        ({"num_groups": 0}, RuntimeError, "at least 1.* got 0"),
        ({"bias": torch.ones(8, dtype=torch.float64)}, RuntimeError, "bias.*float32.*float64"),
        ({"autocast": "torch"}, ValueError, "'input' or 'match'.*'torch'"),
    ],
)
def test_bad_arguments_of_our_own(
    arguments: dict[str, Any], error: type[Exception], message: str, device: str
) -> None:
    with pytest.raises(error, match=message):
        group_norm(**_on(device, arguments))
