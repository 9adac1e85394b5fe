"""``batch_norm`` over several processes: the same as one process on the joined batch."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_kernels import batch_norm, route
from tests import processes
from tests.kernels.reference import assert_as_right_as_torch, run

LAST = torch.channels_last
LAYOUTS = [torch.contiguous_format, LAST]
ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "gelu": F.gelu,
}
SPLITS = [(3, 3), (3, 1), (4, 0), (0, 4), (2, 1, 3), (0, 2, 3), (3, 0, 0)]


def share(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    grad: Tensor | None,
    running: tuple[Tensor, Tensor] | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Compute one process's share of the output, the gradients and the running statistics."""
    leaves = [None if t is None else t.requires_grad_() for t in (x, residual, weight, bias)]
    mean, variance = running or (None, None)
    y = batch_norm(
        x, mean, variance, weight, bias, True,
        residual=residual, process_group=dist.group.WORLD, **options,
    )  # fmt: skip
    assert y.numel() == 0 or y.stride() == x.stride()
    if grad is not None:
        y.backward(grad)
    grads = [None if leaf is None else leaf.grad for leaf in leaves]
    return {"y": y.detach(), "grads": grads, "running": running}


def shares(
    split: tuple[int, ...],
    tensors: Sequence[Tensor | None],
    grad: Tensor | None = None,
    running: tuple[Tensor, Tensor] | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Compute in all processes. ``tensors`` are x, residual, weight and bias."""
    x, residual, weight, bias = (None if t is None else t.detach() for t in tensors)
    pieces = [
        [None] * len(split) if t is None else torch.split(t, list(split))
        for t in (x, residual, grad)
    ]
    arguments = [
        (*both, weight, bias, its_grad, running, options)
        for *both, its_grad in zip(*pieces, strict=True)
    ]
    return processes.run(share, arguments)


def joined(split: tuple[int, ...], **options: Any) -> Callable[..., Tensor]:
    """Return what all processes compute together, as a function of x, residual, weight, bias."""

    class Joined(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Tensor | None) -> Tensor:
            ctx.save_for_backward(*tensors)
            return torch.cat([part["y"] for part in shares(split, tensors, **options)])

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            parts = shares(split, ctx.saved_tensors, grad, **options)
            x, residual, weight, bias = zip(*(part["grads"] for part in parts), strict=True)
            return (
                *(None if t[0] is None else torch.cat(t) for t in (x, residual)),
                *(None if t[0] is None else torch.stack(t).sum(0) for t in (weight, bias)),
            )

    return Joined.apply  # type: ignore[no-any-return]


def alone(activation: str | None = None) -> Callable[..., Tensor]:
    """Return what torch composes in one process."""

    def torchs(
        x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        y = F.batch_norm(x, None, None, weight, bias, True)
        return ACTIVATIONS[activation](y if residual is None else y + residual)

    return torchs


def make(
    shape: tuple[int, ...],
    layout: torch.memory_format = torch.contiguous_format,
    dtype: torch.dtype = torch.float32,
    offset: float | None = None,
    present: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[list[Tensor | None], Tensor]:
    """Return x, residual, weight and bias, the last three if ``present``, and a gradient.

    Without an ``offset`` each sample has another mean, so that processes differ.
    """
    x, residual, grad = (torch.randn(shape) for _ in range(3))
    means = torch.arange(len(x)) if offset is None else torch.full((len(x),), offset)
    x += means.reshape(-1, *[1] * (x.dim() - 1))
    x, residual, grad = (t.to(dtype).contiguous(memory_format=layout) for t in (x, residual, grad))
    parameter = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = (torch.randn(shape[1], dtype=parameter) for _ in range(2))
    optional = zip((residual, weight, bias), present, strict=True)
    return [x, *(t if there else None for t, there in optional)], grad


def running_of(channels: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return the same running mean and variance every time."""
    mean = torch.linspace(-1, 1, channels, dtype=dtype)
    return mean, mean.abs() + 0.5


@pytest.mark.parametrize(
    ("layout", "activation"), [(LAYOUTS[0], "relu"), (LAYOUTS[1], None)], ids=str
)
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_equals_one_process_on_the_joined_batch(
    split: tuple[int, ...],
    activation: str | None,
    layout: torch.memory_format,
) -> None:
    assert_as_right_as_torch(
        joined(split, activation=activation),
        alone(activation),
        lambda: make((sum(split), 5, 7, 6), layout),
        activation,
    )


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_float64_is_exact(split: tuple[int, ...]) -> None:
    tensors, grad = make((sum(split), 5, 7, 6), dtype=torch.float64, offset=100.0)
    mine = run(joined(split, activation="gelu"), tensors, grad)
    for actual, exact in zip(mine, run(alone("gelu"), tensors, grad), strict=True):
        torch.testing.assert_close(actual, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("split", "layout", "dtype"),
    [
        ((3, 2), LAYOUTS[0], torch.bfloat16),
        ((3, 2), LAYOUTS[1], torch.float16),
        ((0, 4), LAYOUTS[1], torch.bfloat16),
    ],
    ids=str,
)
def test_types(split: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype) -> None:
    assert_as_right_as_torch(
        joined(split), alone(), lambda: make((sum(split), 5, 7, 6), layout, dtype)
    )


@pytest.mark.parametrize("shape", [(5, 70), (5, 6, 13), (5, 3, 2, 3, 4)], ids=str)
def test_dimensions(shape: tuple[int, ...]) -> None:
    assert_as_right_as_torch(joined((3, 2)), alone(), lambda: make(shape))


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
@pytest.mark.parametrize("activation", ["leaky_relu", "elu", "gelu"])
def test_activations(activation: str, residual: bool) -> None:
    assert_as_right_as_torch(
        joined((3, 1), activation=activation),
        alone(activation),
        lambda: make((4, 5, 7, 6), present=(residual, True, True)),
    )


@pytest.mark.parametrize("present", [(True, False), (False, True), (False, False)], ids=str)
def test_weight_and_bias_are_optional(present: tuple[bool, bool]) -> None:
    assert_as_right_as_torch(
        joined((1, 3)), alone(), lambda: make((4, 5, 7, 6), present=(False, *present))
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_large_mean_keeps_the_variance(layout: torch.memory_format) -> None:
    assert_as_right_as_torch(
        joined((4, 0)), alone(), lambda: make((4, 5, 7, 6), layout, offset=1e4)
    )


def test_large_means_of_several_processes() -> None:
    (x, *_), _ = make((4, 64, 5, 4), offset=1e4)
    assert x is not None
    running, right = running_of(64), running_of(64, torch.float64)
    exact = F.batch_norm(x.double(), *right, training=True, momentum=1.0)
    parts = shares((3, 1), [x, None, None, None], running=running, momentum=1.0)
    # Each process's mean is sent as a float32: half a unit in the last place, as is the joint one,
    # x by the scale and the shift by it. In the variance it counts as a distance between means.
    rounding = torch.finfo(torch.float32).eps / 2 * x.max().item()
    apart = (x[:3].mean((0, 2, 3)) - x[3:].mean((0, 2, 3))).abs().max().item()
    in_variance = 2 * apart * rounding + rounding**2
    y, least = torch.cat([part["y"] for part in parts]), right[1].min().item()
    bound = 4 * rounding / least**0.5 + exact.abs().max().item() * in_variance / least / 2
    torch.testing.assert_close(y.double(), exact, rtol=1e-6, atol=bound)
    for part in parts:
        for actual, wanted, near in zip(
            part["running"], right, (2 * rounding, in_variance), strict=True
        ):
            torch.testing.assert_close(actual.double(), wanted, rtol=1e-6, atol=near)


def test_one_value_per_channel_in_each_process() -> None:
    x, grad = torch.randn(2, 64), torch.randn(2, 64)
    x[1] += 3 * x[1].sign() - x[0]  # well apart: two values near another are all rounding
    parts = shares((1, 1), [x, None, None, None], grad)
    y, grad_x = run(lambda x: alone()(x, None, None, None), [x.double()], grad.double())
    torch.testing.assert_close(torch.cat([part["y"] for part in parts]), y.float())
    torch.testing.assert_close(torch.cat([part["grads"][0] for part in parts]), grad_x.float())


@pytest.mark.parametrize(
    ("split", "momentum"), [*((split, 0.1) for split in SPLITS), ((2, 1, 3), 1.0)], ids=str
)
def test_running_statistics(split: tuple[int, ...], momentum: float) -> None:
    tensors, _ = make((sum(split), 5, 7, 6))
    running, right = running_of(5), running_of(5, torch.float64)
    parts = shares(split, tensors, running=running, momentum=momentum)
    assert tensors[0] is not None
    F.batch_norm(tensors[0].double(), *right, training=True, momentum=momentum)
    for part in parts:
        for actual, exact in zip(part["running"], right, strict=True):
            torch.testing.assert_close(actual.double(), exact, rtol=1e-6, atol=1e-7)
        if all(split):  # an empty batch goes through ATen, and rounds as it does
            assert all(map(torch.equal, part["running"], parts[0]["running"]))


def test_all_batches_empty() -> None:
    x, weight = torch.empty(0, 3, 4), torch.ones(3)
    parts = shares((0, 0), [x, None, weight, None], x, running_of(3))
    for part in parts:
        assert all(map(torch.equal, part["running"], running_of(3)))
        assert part["y"].shape == part["grads"][0].shape == x.shape
        assert torch.equal(part["grads"][2], torch.zeros(3))


def test_nan_stays_in_its_channel_and_reaches_every_process() -> None:
    tensors, grad = make((4, 5, 7, 6))
    clean = shares((3, 1), tensors, grad)
    x = tensors[0]
    assert x is not None
    x[3, 2, 1, 1] = torch.nan
    others = [0, 1, 3, 4]
    for part, before in zip(shares((3, 1), tensors, grad), clean, strict=True):
        assert part["y"][:, 2].isnan().all()
        assert torch.equal(part["y"][:, others], before["y"][:, others])
        assert torch.equal(part["grads"][0][:, others], before["grads"][0][:, others])


def routes(x: Tensor) -> str:
    share(x, None, None, None, torch.ones_like(x), None, {})
    return route(x)


@pytest.mark.kernel
def test_both_routes_meet_in_one_collective() -> None:
    x = torch.randn(3, 2)
    assert "aten" in processes.run(routes, [(x[:0],), (x,)])
    assert "aten" not in processes.run(routes, [(x[:1],), (x[1:],)])


def evaluate(x: Tensor | None) -> Tensor | None:
    if x is None:
        return None
    return batch_norm(x, *running_of(3), process_group=dist.group.WORLD)


def test_evaluation_waits_for_nobody() -> None:
    x = torch.randn(4, 3)
    y, _ = processes.run(evaluate, [(x,), (None,)])
    assert torch.equal(y, batch_norm(x, *running_of(3)))


def collectives(x: Tensor, needs: tuple[bool, ...]) -> tuple[int, list[Tensor | None]]:
    """Return how many collectives a forward and a backward pass take, and the gradients."""
    leaves = [x, *torch.eye(3)[:2].clone().unbind(), x.flip(0)]
    for leaf, need in zip(leaves, needs, strict=True):
        leaf.requires_grad_(need)
    x, weight, bias, residual = leaves
    with torch.profiler.profile() as profile:
        batch_norm(
            x, None, None, weight, bias, True, residual=residual, process_group=dist.group.WORLD
        ).backward(x.detach())
    events = [event.name for event in profile.events() if event.name.startswith("c10d::")]
    return len(events), [leaf.grad for leaf in leaves]


def test_one_collective_forward_and_one_backward() -> None:
    for x in (torch.randn(2, 3, 4), torch.randn(2, 3, 4).double()):
        arguments = [(x[:1], (True,) * 4), (x[1:], (True,) * 4)]
        full = processes.run(collectives, arguments)
        assert [count for count, _ in full] == [2, 2]
        for i in range(4):  # what is not needed is left out, and the collective with x's
            needs = tuple(i == k for k in range(4))
            parts = processes.run(collectives, [(piece, needs) for piece, _ in arguments])
            for (count, grads), (_, right) in zip(parts, full, strict=True):
                assert count == (2 if needs[0] else 1)
                assert torch.equal(grads[i], right[i])
                assert sum(grad is not None for grad in grads) == 1


def differentiate_twice(x: Tensor) -> None:
    x.requires_grad_()
    y = batch_norm(x, None, None, training=True, process_group=dist.group.WORLD)
    with pytest.raises(RuntimeError, match="no second derivative through several processes"):
        torch.autograd.grad(y.square().sum(), x, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_second_derivatives_raise(dtype: torch.dtype) -> None:
    processes.run(differentiate_twice, [(torch.randn(3, 2, dtype=dtype),)] * 2)


def within_groups(x: Tensor) -> Tensor:
    """Normalise within the first and the last process together, the middle one by itself."""
    outer, middle = dist.new_group([0, 2]), dist.new_group([1])
    mine, foreign = (middle, outer) if dist.get_rank() == 1 else (outer, middle)
    with pytest.raises(TypeError, match=r"ProcessGroup that this process is in, but got"):
        batch_norm(x, None, None, training=True, process_group=foreign)
    return batch_norm(x, None, None, training=True, process_group=mine)


def test_groups_of_some_processes() -> None:
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    first, middle, last = processes.run(within_groups, [(row,) for row in x.split(1)])
    together = F.batch_norm(x[::2], None, None, training=True)
    torch.testing.assert_close(torch.cat([first, last]), together)
    assert torch.equal(middle, batch_norm(x[1:2], None, None, training=True))


@pytest.mark.parametrize("group", ["world", 3])
def test_what_is_no_group_raises(group: Any) -> None:
    mean, variance = running_of(2)
    with pytest.raises(TypeError, match=f"process_group to be .* but got {group!r}"):
        batch_norm(torch.randn(3, 2), mean, variance, training=True, process_group=group)
    assert torch.equal(mean, running_of(2)[0])


def compiled(x: Tensor, grad: Tensor) -> bool:
    """Say whether what was compiled into one graph is what runs without, bit by bit."""
    results = []
    for function in (batch_norm, torch.compile(batch_norm, backend="aot_eager", fullgraph=True)):
        mine = x.clone().requires_grad_()
        y = function(
            mine, None, None, training=True, activation="relu", process_group=dist.group.WORLD
        )
        y.backward(grad)
        results.append((y.detach(), mine.grad))
    return all(map(torch.equal, *results))


@pytest.mark.kernel  # an operator of its own; ATen's route breaks the graph
def test_compiles_into_one_graph() -> None:
    x, grad = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    assert all(processes.run(compiled, [*zip(x.split(1), grad.split(1), strict=True)]))
