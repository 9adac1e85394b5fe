"""``lightning_kernels.instance_norm`` on whichever route this run has."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_kernels import instance_norm
from tests.kernels.group_norms import ACTIVATIONS, LAST, LAST_3D, Layout, check, make
from tests.kernels.reference import run


@pytest.mark.parametrize(
    ("shape", "layout", "activation"),
    [
        ((3, 7, 50), None, "silu"),
        ((2, 5, 13, 9), None, None),
        ((2, 5, 13, 9), LAST, None),
        ((2, 5, 13, 9), LAST, "silu"),
        ((1, 3, 130, 128), None, "silu"),
        ((1, 3, 130, 128), LAST, "silu"),
        ((2, 6, 3, 4, 5), LAST_3D, None),
    ],
)
def test_as_right_as_torch(
    shape: tuple[int, ...], layout: Layout, activation: str | None, device: str
) -> None:
    check(shape, None, layout, device, activation=activation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", [None, LAST], ids=str)
def test_types(dtype: torch.dtype, layout: Layout, device: str) -> None:
    check((4, 12, 6, 5), None, layout, device, dtype)


def test_parameters_of_different_types(device: str) -> None:
    x, weight, bias = make((3, 6, 5), dtype=torch.bfloat16, device=device)
    y = instance_norm(x, None, None, weight, bias.bfloat16())
    right = F.instance_norm(x.double(), None, None, weight.double(), bias.bfloat16().double())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), right, rtol=0.01, atol=0.02)


@pytest.mark.parametrize("uses_input", [True, False])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("layout", [None, LAST], ids=str)
def test_running_statistics_are_torchs(
    layout: Layout, activation: str | None, uses_input: bool, device: str
) -> None:
    tensors = make((3, 4, 5, 6), layout, device=device)
    grad = torch.randn(3, 4, 5, 6, device=device)
    results = []
    for function in (instance_norm, F.instance_norm):
        running = [torch.linspace(0.5, 1.5, 4, device=device) for _ in range(2)]

        def call(x: Tensor, w: Tensor, b: Tensor, f: Any = function, r: Any = running) -> Any:
            if f is instance_norm:
                return instance_norm(
                    x, r[0], r[1], w, b, uses_input, 0.3, 1e-3, activation=activation
                )
            y = F.instance_norm(x, r[0], r[1], w, b, uses_input, 0.3, 1e-3)
            return ACTIVATIONS[activation](y) if activation else y

        results.append([*run(call, tensors, grad), *running])
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5)
    assert torch.equal(results[0][-1], torch.linspace(0.5, 1.5, 4, device=device)) != uses_input


@pytest.mark.parametrize("tracks", [False, True])
@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3)], ids=str)
def test_what_is_empty_changes_nothing(shape: tuple[int, ...], tracks: bool, device: str) -> None:
    x, weight, bias = make(shape, device=device)
    kept = torch.linspace(0.5, 1.5, 4, device=device)
    mean, variance = (kept.clone() if tracks else None for _ in range(2))

    def call(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return instance_norm(x, mean, variance, w, b, activation="silu")

    y, grad_x, grad_weight, grad_bias = run(call, (x, weight, bias), x)
    assert y.shape == grad_x.shape == x.shape
    assert not grad_weight.any()
    assert not grad_bias.any()
    assert all(t is None or torch.equal(t, kept) for t in (mean, variance))


@pytest.mark.parametrize("layout", [None, LAST], ids=str)
@pytest.mark.parametrize("samples", [1, 2])  # of one channels last torch's own gradients are wrong
def test_second_derivatives_are_right(samples: int, layout: Layout, device: str) -> None:
    tensors = make((samples, 5, 3, 2), layout, device=device)
    direction = torch.randn_like(tensors[0])

    def penalty(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            y = instance_norm(x, None, None, w, b, activation="silu")
        else:
            y = F.silu(F.instance_norm(x.contiguous(), None, None, w, b))
        grads = torch.autograd.grad((y * direction).tanh().sum(), (x, w, b), create_graph=True)
        return sum((g**2).sum() for g in grads)  # type: ignore[return-value]

    one = torch.ones((), device=device)
    mine = run(penalty, tensors, one)
    exact = run(penalty, [t.double() for t in tensors], one.double())
    for a, right in zip(mine, exact, strict=True):
        assert (a.double() - right).norm() <= 1e-5 * right.norm()


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=str)
def test_transforms_forward_mode_and_compilation(layout: torch.memory_format, device: str) -> None:
    x = torch.randn(2, 4, 3, 3, device=device).contiguous(memory_format=layout)
    functions: tuple[Callable[[Tensor], Tensor], ...] = instance_norm, F.instance_norm
    pairs = [torch.func.jvp(f, (x,), (x.flip(3),)) for f in functions]
    torch.testing.assert_close(*pairs)
    grads = [torch.func.grad(lambda x, f=f: f(x[None]).pow(3).sum()) for f in functions]
    torch.testing.assert_close(*(torch.func.vmap(grad)(x) for grad in grads))
    torch.compiler.reset()
    compiled = torch.compile(instance_norm, fullgraph=True, backend="aot_eager")
    running = [torch.linspace(0.5, 1.5, 4, device=device) for _ in range(4)]
    y, right = compiled(x, running[0], running[1]), instance_norm(x, running[2], running[3])
    torch.testing.assert_close([y, *running[:2]], [right, *running[2:]])


@pytest.mark.parametrize("tracks", [False, True])
def test_the_layout_is_kept(tracks: bool, device: str) -> None:
    x = torch.randn(2, 6, 5, 4, device=device).contiguous(memory_format=LAST)
    running = torch.ones(2, 6, device=device).unbind() if tracks else (None, None)
    assert instance_norm(x, *running, activation="relu").stride() == x.stride()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input": torch.ones(2, 4, 1, 1)}, ValueError, "more than 1 spatial element"),
        ({"input": torch.ones(2, 4)}, ValueError, r"\(N, C, \*\).*\[2, 4\]"),
        ({"use_input_stats": False}, RuntimeError, "running_mean and running_var"),
        ({"running_var": torch.ones(4)}, ValueError, "both running_mean and running_var"),
        ({"weight": torch.ones(3)}, RuntimeError, r"instance_norm expects weight.*\[4\].*\[3\]"),
        ({"input": torch.ones(2, 4, 3).int()}, RuntimeError, "floating.*int32"),
        ({"activation": "tanh"}, ValueError, "'tanh'"),
    ],
)
def test_bad_arguments(
    arguments: dict[str, Any], error: type[Exception], message: str, device: str
) -> None:
    valid = {"input": torch.randn(2, 4, 3)}
    call: dict[str, Any] = {
        k: v.to(device) if isinstance(v, Tensor) else v for k, v in (valid | arguments).items()
    }
    with pytest.raises(error, match=message):
        instance_norm(**call)
