"""What autograd, ``torch.library`` and compilers see of ``dropout_activation``."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from lightning_kernels import dropout_activation
from tests.kernels.reference import guard_launches
from tests.kernels.test_dropout_activation import LAYOUTS

OPS = torch.ops.lightning_kernels


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_replays_the_mask(reentrant: bool, device: str) -> None:
    leaf = (torch.rand(50, 8, device=device) + 1).requires_grad_()
    seen: list[Tensor] = []

    def block(x: Tensor) -> Tensor:
        y = dropout_activation(x, "relu", 0.5)
        seen.append(y.detach())
        return y.square()

    checkpoint(block, leaf, use_reentrant=reentrant).sum().backward()
    assert torch.equal(*seen)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, 2 * seen[0] * (seen[0] != 0) / 0.5)


@pytest.mark.kernel
def test_only_the_inputs_are_kept_for_the_backward_pass(device: str) -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = torch.ones(4, 3, device=device, requires_grad=True)
    bias = torch.ones(3, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        dropout_activation(x, "gelu", 0.5, bias=bias)
    assert [t.data_ptr() for t in kept] == [x.data_ptr(), bias.data_ptr()]


@pytest.mark.kernel
def test_changed_inputs_are_noticed(device: str) -> None:
    x = torch.ones(4, 3, device=device, requires_grad=True) * 1
    y = dropout_activation(x, "gelu", 0.5)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(("training", "with_bias"), [(True, True), (False, False)])
def test_compiles_whole(training: bool, with_bias: bool, device: str) -> None:
    torch._dynamo.reset()
    x = (torch.rand(30, 12, device=device) + 1).requires_grad_()
    bias = torch.rand(12, device=device, requires_grad=True) if with_bias else None

    @torch.compile(fullgraph=True, backend="aot_eager")
    def block(x: Tensor, bias: Tensor | None, p: Tensor) -> Tensor:
        return dropout_activation(x.exp(), "gelu", p, training, bias=bias)

    y = block(x, bias, torch.tensor(0.5, device=device))
    mask = (y.detach() != 0) / 0.5 if training else 1.0
    expected = F.gelu(x.exp() if bias is None else x.exp() + bias) * mask
    torch.testing.assert_close(y, expected)
    inputs = [x] if bias is None else [x, bias]
    for mine, right in zip(
        torch.autograd.grad(y.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, right)


def test_functorch_and_forward_mode(device: str) -> None:
    x = torch.rand(40, 5, device=device) + 1
    y, tangent, *_ = torch.func.jvp(
        lambda x: dropout_activation(x, "relu", 0.5), (x,), (torch.full_like(x, 3.0),)
    )
    torch.testing.assert_close(tangent, 3 * y / x)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's check
@pytest.mark.kernel
@pytest.mark.parametrize("layout", ["contiguous", "permuted", "columns"])
def test_opcheck(layout: str, device: str) -> None:
    x = LAYOUTS[layout](torch.randn(6, 4, 10, 8, device=device)).requires_grad_()
    bias = torch.randn(x.shape[-1], device=device, requires_grad=True)
    state = torch.tensor([3, 8], device=device)
    for options in ((bias, "gelu", 0.0, True), (None, "elu", 0.5, True), (bias, None, 0.0, False)):
        rest = (0.5, None, state, 0, 0)
        opcheck(OPS.dropout_activation.default, (x, *options, *rest))
        grad = OPS.dropout_activation(x, *options, *rest).detach()
        weight, *others = options
        weight = None if weight is None else weight.detach()
        for needs in ([True, weight is not None], [True, False]):
            opcheck(
                OPS.dropout_activation_backward.default,
                (grad, x.detach(), weight, *others, *rest, needs),
            )


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((6, 24), torch.float16), ((3, 7, 67), torch.float16), ((2, 4097), torch.float32)],
    ids=str,
)
def test_kernels_touch_only_their_tensors(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    x = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
    bias = torch.randn(shape[-1], device=device, requires_grad=True)

    def results() -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        y = dropout_activation(dropout_activation(x, "gelu", 0.3, bias=bias), "elu", 0.3)
        return y.detach(), *torch.autograd.grad(y.float().square().sum(), (x, bias))

    expected = results()
    guard_launches(monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(results(), expected, strict=True))


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements() -> None:
    x = torch.ones(2**20 + 1, 2048, device="cuda", dtype=torch.bfloat16)
    bias = torch.ones(2048, device="cuda")
    y = dropout_activation(x, "relu", 0.5, bias=bias)
    assert set(y[-1].unique().tolist()) == {0.0, 4.0}
    assert not torch.equal(y[-1], y[0])
