"""What autograd sees of batch norm: gradients on demand, of higher order, and saved tensors."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_kernels import batch_norm
from tests.kernels.batch_norms import LAST, both, make, running
from tests.kernels.reference import run


@pytest.mark.kernel
@pytest.mark.parametrize("layout", [None, LAST], ids=str)
def test_a_rerun_is_bitwise_equal(layout: torch.memory_format | None, device: str) -> None:
    tensors = make((9, 24, 11, 7), layout, torch.bfloat16, device)
    grad = torch.randn_like(tensors[0])
    first, second = (run(both(activation="relu")[0], tensors, grad) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("training", "activation"), [(True, None), (True, "relu"), (False, "relu"), (True, "gelu")]
)
@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (3,), (0, 3), (1, 2), (2, 3)], ids=str)
def test_only_the_gradients_asked_for(
    needed: tuple[int, ...], activation: str | None, training: bool, device: str
) -> None:
    tensors = make((13, 5), device=device)
    grad = torch.randn_like(tensors[0])
    _, *all_grads = run(both(training, activation)[0], tensors, grad)
    leaves = [t.detach().requires_grad_(i in needed) for i, t in enumerate(tensors)]
    y = both(training, activation)[0](*leaves)
    grads = torch.autograd.grad(y, [leaves[i] for i in needed], grad)
    assert all(torch.equal(g, all_grads[i]) for g, i in zip(grads, needed, strict=True))


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("layout", "activation", "training"),
    [
        (None, None, True),
        (None, "leaky_relu", True),
        (LAST, "relu", True),
        (LAST, "leaky_relu", False),
        (None, "silu", False),
    ],
    ids=str,
)
def test_second_derivatives_are_right(
    layout: torch.memory_format | None, activation: str | None, training: bool, device: str
) -> None:
    tensors = make((3, 9, 2, 3), layout, device=device)
    direction = torch.randn(3, 9, 2, 3, device=device)

    def penalty(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
        norm = both(training, activation)[x.dtype != torch.float32]
        # The residual depends on x and the weight on the bias, as they may in a model.
        y = norm(x, w * b, b, r * x) * direction.to(x.dtype)
        grads = torch.autograd.grad(y.tanh().sum(), (x, w, b, r), create_graph=True)
        return sum((g**2).sum() for g in grads)  # type: ignore[return-value]

    one = torch.ones((), device=device)
    ours = run(penalty, tensors, one)
    exact = run(penalty, [t.double() for t in tensors], one.double())
    for mine, right in zip(ours, exact, strict=True):
        assert (mine.double() - right).norm() <= 1e-5 * right.norm()


def test_functorch_transforms_and_forward_mode(device: str) -> None:
    x, weight, bias, residual = make((5, 12), device=device)
    tangent = torch.randn_like(x)
    ours, torchs = (lambda x, f=f: f(x, weight, bias, residual) for f in both(activation="relu"))
    mine, right = (torch.func.jvp(f, (x,), (tangent,)) for f in (ours, torchs))
    torch.testing.assert_close(mine, right)
    mine, right = (torch.func.grad(lambda x, f=f: f(x).square().sum())(x) for f in (ours, torchs))
    torch.testing.assert_close(mine, right)
    batch = torch.stack([x, tangent])
    ours, torchs = (lambda x, f=f: f(x, weight, bias, x) for f in both(False, "relu"))
    torch.testing.assert_close(torch.func.vmap(ours)(batch), torch.func.vmap(torchs)(batch))


@pytest.mark.parametrize("changed", [0, 1])
def test_a_tensor_changed_before_backward_is_noticed(changed: int, device: str) -> None:
    tensors = [t.requires_grad_() for t in make((4, 6), device=device)]
    y = both()[0](*tensors)
    with torch.no_grad():
        tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.kernel
def test_running_statistics_updated_before_backward_are_noticed(device: str) -> None:
    x, weight, bias, _ = (t.requires_grad_() for t in make((8, 6), device=device))
    statistics = running(x)
    y = batch_norm(x, *statistics, weight, bias)
    batch_norm(x, *statistics, weight, bias, training=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("options", "residual", "expected"),
    [
        ({}, False, [(3, 24)]),
        ({}, True, [(3, 24)]),
        ({"activation": "relu"}, False, [(3, 24)]),
        ({"activation": "gelu"}, True, [(3, 24)]),  # the residual is the graph's own
        ({"activation": "relu"}, True, [(3, 24), (4 * 9, 3)]),
        ({"activation": "leaky_relu", "training": False}, True, [(4 * 9, 3)]),
        ({"training": False}, True, []),
    ],
    ids=str,
)
def test_what_is_kept(
    options: dict[str, Any], residual: bool, expected: list[tuple[int, ...]], device: str
) -> None:
    tensors = make((4, 24, 3, 3), LAST, torch.bfloat16, device)[: 4 if residual else 3]
    statistics = running(tensors[0])
    leaves = [t.requires_grad_() for t in tensors]
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        x, weight, bias, *rest = leaves
        batch_norm(
            x, *statistics, weight, bias, **{"training": True} | options,
            residual=rest[0] if rest else None,
        )  # fmt: skip
    own = {t.data_ptr() for t in (*leaves, *statistics)}
    extra = [t for t in kept if t.data_ptr() not in own and t.numel() > 0]
    assert [tuple(t.shape) for t in extra] == expected
    keeps_residual = options.get("activation") == "gelu"
    assert residual is False or (leaves[3].data_ptr() in {t.data_ptr() for t in kept}) == (
        keeps_residual
    )
