"""``lightning_kernels.group_norm`` on whichever route this run has: is it right?"""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch._prims_common import suggest_memory_format

from lightning_kernels import group_norm
from tests.kernels.group_norms import ACTIVATIONS, LAST, LAST_3D, Layout, both, check, make
from tests.kernels.reference import run

# Shape, groups, layout: those of a program each way, then those that several share.
HELD: list[tuple[tuple[int, ...], int, Layout]] = [
    ((1, 2), 1, None),
    ((9, 12), 3, None),
    ((7, 6, 5), 2, None),
    ((2, 127, 3), 1, None),
    ((2, 6, 5, 7), 6, None),
    ((2, 6, 5, 7), 3, LAST),
    ((2, 34, 3, 3), 17, LAST),  # the last slab has fewer groups than the first
    ((2, 35, 3, 3), 7, None),  # likewise
    ((1, 3, 1, 2), 3, LAST),
    ((2, 8, 3, 2, 3), 2, None),
    ((2, 8, 3, 2, 3), 2, LAST_3D),
    ((2, 6, 2, 2, 2, 2), 2, None),
]
SHARED: list[tuple[tuple[int, ...], int, Layout]] = [
    ((2, 4, 97, 91), 2, None),
    ((1, 4, 97, 91), 2, LAST),
    ((1, 24, 34, 33), 2, LAST),
    # Several blocks of channels: of all a multiple of 8, of a slab one of 4.
    ((1, 600, 8, 7), 2, LAST),
    ((1, 280, 8, 7), 1, None),
    ((1, 34, 40, 41), 17, LAST),  # several groups in a slab that is shared, in the last one fewer
    ((1, 4, 18, 30, 31), 2, LAST_3D),
]
BACKWARD_SHARED = ((1, 60, 13, 15), 1, LAST)  # a program holds x, but not its gradient too


@pytest.mark.kernel
@pytest.mark.parametrize(("shape", "groups", "layout"), [*HELD, *SHARED, BACKWARD_SHARED], ids=str)
def test_as_right_as_torch(
    shape: tuple[int, ...], groups: int, layout: Layout, device: str
) -> None:
    check(shape, groups, layout, device, activation="silu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(("layout", "activation"), [(None, "silu"), (LAST, None)], ids=str)
def test_types(dtype: torch.dtype, layout: Layout, activation: str | None, device: str) -> None:
    check((4, 12, 6, 5), 3, layout, device, dtype, activation=activation)


@pytest.mark.kernel
@pytest.mark.parametrize(("dtype", "layout"), [(torch.bfloat16, None), (torch.float16, LAST)])
def test_types_of_shared_groups(dtype: torch.dtype, layout: Layout, device: str) -> None:
    check((1, 4, 95, 93), 2, layout, device, dtype)


@pytest.mark.parametrize(
    ("activation", "layout"), [*zip(ACTIVATIONS, [None, LAST] * 4, strict=True)], ids=str
)
def test_activations(activation: str, layout: Layout, device: str) -> None:
    check((3, 8, 5, 7), 4, layout, device, activation=activation)


@pytest.mark.parametrize(("name", "parameter"), [("leaky_relu", 0.3), ("elu", 1.7)])
def test_parameters_of_activations(name: str, parameter: float, device: str) -> None:
    x, weight, bias = make((3, 6, 5), device=device)
    y = group_norm(x, 2, weight, bias, activation=name, activation_parameter=parameter)
    right = getattr(F, name)(F.group_norm(x, 2, weight, bias), parameter)
    torch.testing.assert_close(y, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "activation", "present"),
    [
        ((3, 6, 61), None, (True, False)),
        ((3, 6, 61), "gelu", (False, True)),
        ((1, 2, 17_000), "gelu", (True, False)),
        pytest.param((1, 2, 17_000), None, (False, False), marks=pytest.mark.full),
    ],
    ids=str,
)
def test_weight_and_bias_are_optional(
    present: tuple[bool, bool], shape: tuple[int, ...], activation: str | None, device: str
) -> None:
    check(shape, shape[1] // 2, None, device, present=present, activation=activation)


def test_parameters_of_different_types(device: str) -> None:
    x, weight, bias = make((3, 6, 5), dtype=torch.bfloat16, device=device)
    y = group_norm(x, 2, weight, bias.bfloat16())
    right = F.group_norm(x.double(), 2, weight.double(), bias.bfloat16().double())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), right, rtol=0.01, atol=0.02)


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("shape", "layout", "eps"),
    [((2, 4, 9, 8), None, 0.1), ((2, 4, 97, 50), None, 1e-5), ((2, 6, 33, 40), LAST, 1e-5)],
    ids=str,
)
def test_a_large_mean_keeps_the_variance(
    shape: tuple[int, ...], layout: Layout, eps: float, device: str
) -> None:
    check(shape, 2, layout, device, offset=1e4, eps=eps)


@pytest.mark.parametrize("layout", [None, LAST], ids=str)
def test_shares_of_different_means_are_merged(layout: Layout, device: str) -> None:
    x, weight, bias = make((1, 4, 100, 90), device=device)
    x = (x + torch.linspace(0, 50, 9000, device=device).view(100, 90)).contiguous()
    x = x if layout is None else x.contiguous(memory_format=layout)
    y = both(2)[0](x, weight, bias)
    right = F.group_norm(x.double(), 2, weight.double(), bias.double())
    torch.testing.assert_close(y.double(), right, rtol=2e-6, atol=2e-6)


@pytest.mark.kernel  # torch's own is not exact
@pytest.mark.parametrize("layout", [None, LAST], ids=str)
@pytest.mark.parametrize("value", [7.25, 2.0**121])  # sums of these are exact
def test_a_constant_group_becomes_the_bias(value: float, layout: Layout, device: str) -> None:
    _, weight, bias = make((3, 4, 2, 3), device=device)
    x = torch.full((3, 4, 2, 3), value, device=device)
    x = x if layout is None else x.contiguous(memory_format=layout)
    y, *grads = run(both(2)[0], (x, weight, bias), torch.randn(3, 4, 2, 3, device=device))
    assert torch.equal(y, bias.view(4, 1, 1).expand(3, 4, 2, 3))
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize(
    ("shape", "layout", "poison", "activation"),
    [
        ((2, 4, 5, 7), None, math.nan, "relu"),
        ((2, 4, 5, 7), LAST, math.inf, None),
        ((2, 4, 70, 60), None, math.inf, None),
        pytest.param((2, 4, 70, 60), LAST, math.nan, "relu", marks=pytest.mark.full),
    ],
)
def test_a_bad_group_stays_that_group(
    shape: tuple[int, ...], layout: Layout, activation: str | None, poison: float, device: str
) -> None:
    tensors = make(shape, layout, device=device)
    grad = torch.randn(shape, device=device)
    clean = run(both(2, activation)[0], tensors, grad)
    tensors[0][1, 2, 2, 2] = poison
    y, grad_x, *_ = run(both(2, activation)[0], tensors, grad)
    bad = torch.zeros(shape, dtype=torch.bool, device=device)
    bad[1, 2:] = True
    assert y[bad].isnan().all()
    assert torch.equal(y[~bad], clean[0][~bad])
    assert torch.equal(grad_x[~bad], clean[1][~bad])


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3, 3)], ids=str)
def test_an_empty_batch(shape: tuple[int, ...], device: str) -> None:
    x, weight, bias = make(shape, device=device)
    y, grad_x, grad_weight, grad_bias = run(both(2, "relu")[0], (x, weight, bias), x)
    assert y.shape == grad_x.shape == x.shape
    assert not grad_weight.any()
    assert not grad_bias.any()


def _views(device: str) -> dict[str, Tensor]:
    x = torch.randn(4, 6, 5, 7, device=device)
    return {
        "transposed batch": x.transpose(0, 1)[:, :4],
        "sliced space": torch.randn(4, 6, 5, 9, device=device)[..., 1:8],
        "sliced channels, channels last": x.contiguous(memory_format=LAST)[:, 1:5],
        "expanded": x[:, :, :1, :1].expand(4, 6, 5, 7),
        "one pixel": torch.randn(9, 6, 1, 1, device=device).contiguous(memory_format=LAST),
        "length last": torch.randn(4, 5, 6, device=device).transpose(1, 2),
        "matrix": torch.randn(6, 10, device=device).t(),
    }


@pytest.mark.parametrize("name", _views("cpu"))
def test_strides_do_not_matter(name: str, device: str) -> None:
    x = _views(device)[name]
    grad = torch.randn(1, device=device).expand(x.shape)
    parameters = torch.randn(x.shape[1], 2, device=device)
    ours = both(2, "silu")[0]
    plain = run(ours, (x.contiguous(), *parameters.t().contiguous()), grad)
    leaves = [t.detach().requires_grad_() for t in (x, *parameters.unbind(1))]
    y = ours(*leaves)
    assert y.is_contiguous(memory_format=suggest_memory_format(x))
    for a, b in zip([y, *torch.autograd.grad(y, leaves, grad)], plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "layout"), [((2, 8, 5, 7), None), ((2, 8, 5, 7), LAST), ((2, 8, 3, 2, 2), LAST_3D)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_layout_is_kept(
    shape: tuple[int, ...], layout: Layout, dtype: torch.dtype, device: str
) -> None:
    leaf, *_ = make(shape, layout, dtype, device)
    y = group_norm(leaf.requires_grad_(), 2, activation="silu")
    (grad,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    assert y.stride() == grad.stride() == leaf.stride()


@pytest.mark.kernel
@pytest.mark.parametrize("shape", [(3, 8, 6, 5), (1, 8, 90, 80)], ids=str)
@pytest.mark.parametrize("layout", [None, LAST], ids=str)
def test_a_rerun_is_bitwise_equal(layout: Layout, shape: tuple[int, ...], device: str) -> None:
    tensors = make(shape, layout, torch.bfloat16, device)
    grad = torch.randn_like(tensors[0])
    first, second = (run(both(4, "silu")[0], tensors, grad) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("shape", "needed"),
    [
        *(((3, 8, 6), needed) for needed in [(0,), (1,), (2,), (0, 2), (1, 2)]),
        *(((1, 2, 8200), needed) for needed in [(0,), (2,)]),
    ],
)
def test_only_the_gradients_asked_for(
    shape: tuple[int, ...], needed: tuple[int, ...], device: str
) -> None:
    tensors = make(shape, device=device)
    grad = torch.randn_like(tensors[0])
    _, *all_grads = run(both(2, "gelu")[0], tensors, grad)
    leaves = [t.detach().requires_grad_(i in needed) for i, t in enumerate(tensors)]
    y = both(2, "gelu")[0](*leaves)
    grads = torch.autograd.grad(y, [leaves[i] for i in needed], grad)
    for gradient, i in zip(grads, needed, strict=True):
        torch.testing.assert_close(gradient, all_grads[i], rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=str)
@pytest.mark.parametrize("size", [(2**15 + 3, 64, 32, 32), (2, 16, 2**13, 2**13 + 1)], ids=str)
def test_more_than_two_to_the_31_elements(
    size: tuple[int, ...], layout: torch.memory_format, device: str
) -> None:
    x = torch.empty(size, device=device, dtype=torch.bfloat16, memory_format=layout).normal_()
    x[-1] += 3
    x.requires_grad_()
    y = group_norm(x, 8, activation="relu")
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    tail = x.detach()[-1:].float().requires_grad_()
    right = F.group_norm(tail, 8).relu()
    torch.testing.assert_close(y[-1:].float(), right, rtol=0.01, atol=0.01)
    (right_grad,) = torch.autograd.grad(right, tail, torch.ones_like(right))
    torch.testing.assert_close(grad[-1:].float(), right_grad, rtol=0.02, atol=0.02)


@pytest.mark.gpu
def test_more_than_65536_samples(device: str) -> None:
    check((65_537, 2, 3), 1, None, device, activation="silu")
