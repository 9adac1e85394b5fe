"""What autograd, ``torch.library`` and compilers see of stochastic depth."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from lightning_kernels import stochastic_depth
from tests.kernels.reference import guard_launches
from tests.kernels.stochastic_depths import CASES, composed, draw, kept_after, kept_of

OPS = torch.ops.lightning_kernels


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_replays_the_draw(reentrant: bool, device: str) -> None:
    leaf = torch.rand(50, 3, device=device, requires_grad=True)
    seen: list[Tensor] = []

    def block(x: Tensor) -> Tensor:
        y = stochastic_depth(x, 0.5, "row", residual=x)
        seen.append(y.detach())
        return y.square()

    checkpoint(block, leaf, use_reentrant=reentrant).sum().backward()
    assert torch.equal(*seen)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, 2 * seen[0] ** 2 / leaf.detach())


@pytest.mark.parametrize("case", ["NCHW", "channels last", "tokens", "each sample", "a number"])
def test_second_derivatives(case: str, device: str) -> None:
    shape, scale_shape, order = CASES[case]
    x = draw(shape, order, device).requires_grad_()
    residual = torch.randn(shape, device=device, requires_grad=True)
    scale = (torch.rand(scale_shape, device=device) + 1).requires_grad_()
    torch.manual_seed(7)
    y = stochastic_depth(x, 0.5, "row", residual=residual, layer_scale=scale)
    kept = kept_after(7, tuple(x.shape), 0.5, "row", device)
    inputs = (x, residual, scale)
    results = []
    for value in (y, composed(x, kept, 0.5, residual, scale)):
        first = torch.autograd.grad(value.pow(3).sum(), inputs, create_graph=True)
        results.append(
            torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), inputs)
        )
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4 * right.abs().max().item())


@pytest.mark.kernel
def test_what_is_kept_for_the_backward_pass(device: str) -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = torch.ones(4, 3, device=device, requires_grad=True)
    residual = torch.ones(4, 3, device=device, requires_grad=True)
    frozen, scale = torch.ones(3, device=device), torch.ones(3, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        stochastic_depth(x, 0.5, "row", residual=residual)
        assert not kept
        stochastic_depth(x, 0.5, "row", residual=residual, layer_scale=frozen)
        assert [t.data_ptr() for t in kept] == [frozen.data_ptr()]
        kept.clear()
        stochastic_depth(x, 0.5, "row", residual=residual, layer_scale=scale)
    assert [t.data_ptr() for t in kept] == [x.data_ptr(), scale.data_ptr()]


@pytest.mark.kernel
@pytest.mark.parametrize("case", ["NCHW", "channels last"])
def test_a_rerun_is_bitwise_equal(case: str, device: str) -> None:
    shape, scale_shape, order = CASES[case]
    x = draw(shape, order, device)
    scale = torch.rand(scale_shape, device=device, requires_grad=True)
    results = []
    for _ in range(2):
        torch.manual_seed(8)
        y = stochastic_depth(x, 0.5, "row", layer_scale=scale)
        results.append(torch.autograd.grad(y, scale, x)[0])
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("case", "training"), [("channels last", True), ("tokens", True), ("NCHW", False)]
)
def test_compiles_whole(training: bool, case: str, device: str) -> None:
    torch._dynamo.reset()
    shape, scale_shape, order = CASES[case]
    x = draw(shape, order, device).requires_grad_()
    residual = torch.zeros(shape, device=device, requires_grad=True)
    scale = (torch.rand(scale_shape, device=device) + 1).requires_grad_()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def block(x: Tensor, residual: Tensor, scale: Tensor, p: Tensor) -> Tensor:
        y = stochastic_depth(x, p, "row", training, residual=residual, layer_scale=scale)
        return stochastic_depth(y, 0.0, "batch", layer_scale=scale)

    y = block(x, residual, scale, torch.tensor(0.5, device=device))
    kept = kept_of(y, "row")
    expected = composed(x, kept, 0.5 if training else 0.0, residual, scale) * scale
    torch.testing.assert_close(y, expected)
    inputs = (x, residual, scale)
    for mine, right in zip(
        torch.autograd.grad(y.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-3)


def test_functorch_and_forward_mode(device: str) -> None:
    x = torch.rand(40, 5, device=device) + 1
    y, tangent, *_ = torch.func.jvp(
        lambda x: stochastic_depth(x, 0.5, "row"), (x,), (torch.full_like(x, 3.0),)
    )
    torch.testing.assert_close(tangent, 3 * y / x)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's check
@pytest.mark.kernel
@pytest.mark.parametrize("case", ["NCHW", "channels last", "batch in the middle"])
def test_opcheck(case: str, device: str) -> None:
    shape, scale_shape, order = CASES[case]
    x = draw(shape, order, device).requires_grad_()
    scale = torch.rand(scale_shape, device=device, requires_grad=True)
    dim = -len(scale_shape) % len(shape)
    state = torch.tensor([3, 8], device=device)
    for residual, weight in ((None, None), (torch.ones_like(x), scale)):
        arguments = (x, residual, weight, -1 if weight is None else dim, True, True)
        rest = (residual is not None, 0.5, None, torch.float32, state, 0, 0)
        opcheck(OPS.stochastic_depth.default, (*arguments, *rest))
    grad = torch.randn_like(OPS.stochastic_depth(*arguments, *rest).detach())
    for needs_x in (True, False):
        opcheck(
            OPS.stochastic_depth_backward.default,
            (
                grad,
                x.detach(),
                scale.detach(),
                dim,
                True,
                True,
                True,
                0.5,
                None,
                None,
                7,
                4,
                needs_x,
            ),
        )


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("NCHW", torch.float32),
        ("channels last", torch.float16),
        ("tokens", torch.float16),
        ("long", torch.float32),
    ],
    ids=str,
)
def test_kernels_touch_only_their_tensors(
    monkeypatch: pytest.MonkeyPatch, case: str, dtype: torch.dtype, device: str
) -> None:
    shape, scale_shape, order = CASES[case]
    tensors = (
        draw(shape, order, device).to(dtype).requires_grad_(),
        torch.randn(shape, device=device, dtype=dtype, requires_grad=True),
        torch.rand(scale_shape, device=device, requires_grad=True),
    )

    def results() -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        x, residual, scale = tensors
        y = stochastic_depth(x, 0.5, "row", residual=residual, layer_scale=scale)
        return y.detach(), *torch.autograd.grad(y.float().square().sum(), tensors)

    expected = results()
    guard_launches(monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(results(), expected, strict=True))


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements() -> None:
    x = torch.ones(3, 2**30, device="cuda", dtype=torch.bfloat16)
    while True:
        y = stochastic_depth(x, 0.5, "row", residual=x)
        kept = y[:, 0] == 3
        if 0 < kept.sum() < 3:
            break
    assert torch.equal(y[:, -4096:] == 3, kept[:, None].expand(3, 4096))
