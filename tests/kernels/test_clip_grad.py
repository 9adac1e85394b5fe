"""Gradient clipping on whichever route this run has."""

import gc
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_kernels import (
    clip_grad_adaptive_,
    clip_grad_norm_,
    clip_grad_scale,
    clip_grad_value_,
    clip_grads_with_norm_,
)
from lightning_kernels._clip_grad import clip_grad as _clip_grad
from lightning_kernels._clip_grad import passes as _clip_grad_passes
from lightning_kernels._clip_grad import tensor_table as _tensor_table
from lightning_kernels._clip_grad.passes import served_table
from lightning_kernels._clip_grad.tensor_table import CHUNK_SIZE, TensorTable

NORMS = [0.5, 1, 2, 3.0, math.inf]
SIZES: list[tuple[int, ...]] = [(1,), (3, 5), (127,), (CHUNK_SIZE + 21,), (2, 16, 3), (), (0,)]


def parameters(
    device: str, dtypes: Sequence[torch.dtype] = (torch.float32,), scale: float = 1.0
) -> list[Tensor]:
    """Return parameters with gradients of many sizes, one without."""
    made: list[Tensor] = []
    for i, size in enumerate(SIZES):
        p = torch.zeros(size, device=device, dtype=dtypes[i % len(dtypes)], requires_grad=True)
        p.grad = (torch.randn(size, device=device) * scale).to(p.dtype)
        made.append(p)
    return [*made, torch.zeros(4, device=device, requires_grad=True)]


def grads_of(params: Sequence[Tensor]) -> list[Tensor]:
    return [p.grad.clone() for p in params if p.grad is not None]


def assert_norm(total: Tensor, grads: Sequence[Tensor], order: float) -> None:
    """Compare with float64; where torch's own functions serve, they may be as wrong as they are."""
    exact = exact_norm(grads, order)
    torchs = torch.nn.utils.get_total_norm([g.float() for g in grads if g.numel()], order).item()
    assert abs(total.item() - exact) <= max(2e-6 * exact, 1.5 * abs(torchs - exact))


def exact_norm(grads: Sequence[Tensor], order: float) -> float:
    """Return the norm of all gradients as one vector, in float64."""
    return float(torch.cat([g.flatten() for g in grads]).double().norm(order))


def twice(params: Sequence[Tensor], clip: Any, *args: Any, **options: Any) -> tuple[Tensor, Any]:
    """Clip fresh copies of the gradients, and return the result and the gradients after."""
    copies = []
    for p in params:
        copy = torch.zeros_like(p, requires_grad=True)
        copy.grad = None if p.grad is None else p.grad.clone()
        copies.append(copy)
    return clip(copies, *args, **options), grads_of(copies)


@pytest.mark.parametrize(
    ("order", "share"),
    [*((order, 0.1) for order in NORMS), *((2.0, share) for share in (0.999, 1.001, 10.0))],
)
def test_as_torch_in_float64(order: float, share: float, device: str) -> None:
    params = parameters(device)
    before = grads_of(params)
    norm = exact_norm(before, order)
    total = clip_grad_norm_(params, share * norm, order)
    assert total.device.type == device
    assert_norm(total, before, order)
    after = grads_of(params)
    if share > 1:
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    else:
        factor = share * norm / (total.double() + 1e-6)
        for a, b in zip(after, before, strict=True):
            torch.testing.assert_close(a.double(), b.double() * factor, rtol=4e-6, atol=0)


@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_mixed_types_are_summed_in_float32(order: float, device: str) -> None:
    params = parameters(device, (torch.float32, torch.bfloat16, torch.float16))
    before = grads_of(params)
    norm = exact_norm(before, order)
    total = clip_grad_norm_(params, 0.3 * norm, order)
    assert total.dtype == torch.float32
    assert_norm(total, before, order)
    factor = torch.tensor(0.3 * norm / (total.item() + 1e-6))
    for a, b in zip(grads_of(params), before, strict=True):
        exact = b.double() * factor.to(device)
        allowed = exact.abs() * torch.finfo(b.dtype).eps / 2 * 1.001
        assert ((a.double() - exact).abs() <= allowed + 4e-6 * exact.abs() + 6e-8).all()


def test_bfloat16_sums_do_not_saturate(device: str) -> None:
    p = torch.zeros(70_000, device=device, dtype=torch.bfloat16, requires_grad=True)
    p.grad = torch.ones_like(p)
    assert clip_grad_norm_([p], 1e9, 1).item() == 70_000


def test_the_lectures_examples(device: str) -> None:
    p = torch.zeros(2, device=device, requires_grad=True)
    p.grad = torch.tensor([0.9, 100.0], device=device)
    clip_grad_value_(p, 1.0)
    torch.testing.assert_close(p.grad, torch.tensor([0.9, 1.0], device=device))
    p.grad = torch.tensor([0.9, 100.0], device=device)
    clip_grad_norm_(p, 1.0)
    expected = torch.tensor([0.00899964, 0.9999595], device=device)
    torch.testing.assert_close(p.grad, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("order", "bad"),
    [(1, -math.inf), (2, math.nan), (2, math.inf), (math.inf, math.nan), (math.inf, -math.inf)],
)
def test_nan_and_infinity_as_in_torch(order: float, bad: float, device: str) -> None:
    params = [p for p in parameters(device) if p.numel()]  # torch's maximum wants elements
    assert params[1].grad is not None
    params[1].grad[1, 2] = bad
    ours, mine = twice(params, clip_grad_norm_, 1.0, order)
    torchs, theirs = twice(params, torch.nn.utils.clip_grad_norm_, 1.0, order)
    torch.testing.assert_close(ours, torchs, equal_nan=True)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_done_about_them(bad: float, dtype: torch.dtype, device: str) -> None:
    params = parameters(device, [dtype])
    assert params[0].grad is not None
    params[0].grad[0] = bad
    before = grads_of(params)

    def untouched(after: Sequence[Tensor]) -> bool:
        return all(
            torch.equal(a.nan_to_num(7.0, 8.0), b.nan_to_num(7.0, 8.0))
            for a, b in zip(after, before, strict=True)
        )

    total, after = twice(params, clip_grad_norm_, 1.0, nonfinite="skip")
    assert not total.isfinite()
    assert untouched(after)
    total, after = twice(params, clip_grad_norm_, 1.0, nonfinite="zero")
    assert not total.isfinite()
    assert not any(g.any() for g in after)
    for options in ({"nonfinite": "error"}, {"error_if_nonfinite": True}):
        with pytest.raises(RuntimeError, match="non-finite"):
            clip_grad_norm_(params, 1.0, **options)
        assert untouched(grads_of(params))


@pytest.mark.parametrize("nonfinite", ["skip", "zero", "error"])
def test_finite_gradients_are_clipped_whatever_is_asked_for(nonfinite: Any, device: str) -> None:
    params = parameters(device)
    _, expected = twice(params, torch.nn.utils.clip_grad_norm_, 0.5)
    _, after = twice(params, clip_grad_norm_, 0.5, nonfinite=nonfinite)
    for a, b in zip(after, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_contradicting_and_unknown_choices(device: str) -> None:
    params = parameters(device)
    with pytest.raises(ValueError, match="'propagate', 'error', 'skip', 'zero', but got 'ignore'"):
        clip_grad_norm_(params, 1.0, nonfinite="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contradicts nonfinite='skip'"):
        clip_grad_norm_(params, 1.0, error_if_nonfinite=True, nonfinite="skip")
    for value in (-1.0, math.nan):
        with pytest.raises(ValueError, match=f"0 or more, but got {value}"):
            clip_grad_value_(params, value)


@pytest.mark.parametrize("limit", [0.0, 0.5, 100.0, math.inf])
def test_by_value_as_torch(limit: float, device: str) -> None:
    params = parameters(device, (torch.float32, torch.bfloat16, torch.float16))
    assert params[1].grad is not None
    params[1].grad[0, 0] = math.nan
    params[1].grad[0, 1] = -math.inf
    _, after = twice(params, clip_grad_value_, limit)
    _, expected = twice(params, torch.nn.utils.clip_grad_value_, limit)
    for a, b in zip(after, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_nothing_to_clip(device: str) -> None:
    for params in ([], [torch.zeros(3, device=device, requires_grad=True)], ()):
        assert clip_grad_norm_(params, 1.0).item() == 0
        clip_grad_value_(params, 1.0)


def test_layouts(device: str) -> None:
    def base() -> Tensor:
        return torch.randn(6, 5, 4, 3, device=device)

    views = {
        "channels last": base().to(memory_format=torch.channels_last),
        "transposed": base().transpose(0, 3),
        "with gaps": base()[:, ::2],
        "misaligned": torch.randn(361, device=device)[1:].view(6, 5, 4, 3),
        "expanded": torch.randn(1, 5, 4, 3, device=device).expand(6, -1, -1, -1),
    }
    for name, view in views.items():
        p = torch.zeros(view.shape, device=device, requires_grad=True)
        p.grad = view
        before, norm = view.clone(), exact_norm([view], 2)
        if name == "expanded":  # torch refuses to write it
            with pytest.raises(RuntimeError, match="single memory location"):
                clip_grad_norm_(p, 1.0)
            continue
        assert clip_grad_norm_(p, 1.0).item() == pytest.approx(norm, rel=2e-6), name
        torch.testing.assert_close(p.grad, before / (norm + 1e-6), msg=name)
        assert p.grad.stride() == view.stride()


def test_the_same_gradient_twice_counts_once(device: str) -> None:
    p = torch.zeros(3, device=device, requires_grad=True)
    p.grad = torch.tensor([0.0, 3.0, 4.0], device=device)
    assert clip_grad_norm_([p, p], 1.0).item() == 5
    torch.testing.assert_close(p.grad, torch.tensor([0, 0.6, 0.8], device=device))


def test_clipping_is_noticed_by_autograd(device: str) -> None:
    p = torch.zeros(3, device=device, requires_grad=True)
    p.grad = torch.full((3,), 9.0, device=device)
    y = (p * p.grad).sum()
    clip_grad_norm_(p, 1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_a_rerun_is_bitwise_equal(device: str) -> None:
    params = parameters(device)
    totals, results = zip(*(twice(params, clip_grad_norm_, 0.7) for _ in range(3)), strict=True)
    assert len({total.item() for total in totals}) == 1
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_the_cpu_does_not_write_what_it_would_not_change() -> None:
    p = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    p.grad = torch.ones_like(p)
    version = p.grad._version
    clip_grad_norm_(p, 2.0)
    assert p.grad._version == version
    clip_grad_norm_(p, 1.0)
    assert p.grad._version > version


@pytest.mark.kernel
def test_the_table_is_kept_and_follows_the_gradients(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    made: list[int] = []
    describe = _tensor_table._describe

    def counted(tensors: Sequence[Tensor]) -> Tensor:
        made.append(len(tensors))
        return describe(tensors)

    monkeypatch.setattr(_tensor_table, "_describe", counted)
    params = parameters(device)
    for _ in range(3):
        clip_grad_norm_(params, 1e9)
    assert made == [6]
    params[2].grad = torch.full((127,), 50.0, device=device)
    params[0].grad = None
    total = clip_grad_norm_(params, 1e9)
    assert total.item() == pytest.approx(exact_norm(grads_of(params), 2), rel=2e-6)
    assert made == [6, 5]


@pytest.mark.kernel
def test_many_sets_of_tensors_leak_nothing(device: str) -> None:
    _tensor_table._tables.clear()
    keep = [torch.ones(8, device=device) for _ in range(200)]
    for i in range(100):
        served_table(keep[i:] + keep[:i])
    gc.collect()
    assert len(_tensor_table._tables) <= _tensor_table._MAX_TABLES
    assert all(not isinstance(part, Tensor) for key in _tensor_table._tables for part in key)


@pytest.mark.kernel
def test_pieces_cover_every_element_once_and_are_aligned(device: str) -> None:
    base = torch.zeros(3 * CHUNK_SIZE, device=device)
    half = torch.zeros(100, device=device, dtype=torch.float16)
    tensors = [base[1 : 2 * CHUNK_SIZE], base[2 * CHUNK_SIZE :], half[3:90], half[95:96]]
    seen: list[range] = []
    table = served_table(tensors)
    assert table is not None
    for address, size, code in table.pieces.tolist():
        item = _tensor_table.DTYPES[code].itemsize
        assert 0 < size <= CHUNK_SIZE
        assert address % 16 == 0 or size * item < 16
        seen.append(range(address, address + size * item, item))
    expected = sorted(
        t.data_ptr() + i * t.element_size() for t in tensors for i in range(t.numel())
    )
    assert sorted(place for places in seen for place in places) == expected


@pytest.mark.kernel
def test_two_launches_whatever_the_number(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    names: list[str] = []
    launch = _clip_grad_passes.launch_on

    def counted(table: TensorTable, kernel: Any, *args: Any, **constants: Any) -> None:
        names.append(kernel.fn.__name__)
        launch(table, kernel, *args, **constants)

    for module in (_clip_grad, _clip_grad_passes):
        monkeypatch.setattr(module, "launch_on", counted)
    params = parameters(device, (torch.float32, torch.bfloat16, torch.float16)) * 3
    clip_grad_norm_(params, 1.0)
    clip_grad_value_(params, 1e-3)
    assert names == ["_norm_kernel", "_clip_norm_kernel", "_clip_value_kernel"]


@pytest.mark.gpu
def test_no_wait_for_the_device() -> None:
    params = parameters("cuda", (torch.float32, torch.bfloat16))
    clip_grad_norm_(params, 1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        clip_grad_norm_(params, 1.0)
        clip_grad_value_(params, 0.1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("clip", [clip_grad_norm_, clip_grad_value_, clip_grad_adaptive_])
def test_a_captured_graph_keeps_its_table(clip: Any) -> None:
    params = parameters("cuda", (torch.float32, torch.bfloat16))
    grads = grads_of(params)
    before = [grad.clone() for grad in grads]
    clip(params, 0.01)  # compiles, outside of the capture
    expected = [grad.clone() for grad in grads]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        clip(params, 0.01)
    for size in range(2 * _tensor_table._MAX_TABLES):  # other tables, in the memory of old ones
        other = [torch.ones(size + 1, device="cuda", requires_grad=True)]
        other[0].grad = torch.ones_like(other[0])
        clip(other, 0.01)
    for _ in range(2):
        for grad, value in zip(grads, before, strict=True):
            grad.copy_(value)
        graph.replay()
        assert all(map(torch.equal, grads, expected))
    for grad, value in zip(grads, before, strict=True):
        grad.copy_(value)
    clip(params, 0.01)  # an eager call after the capture has a table of its own
    assert all(map(torch.equal, grads, expected))


@pytest.mark.gpu
def test_each_stream_has_a_table_of_its_own() -> None:
    params = parameters("cuda", (torch.float32,))
    _tensor_table._tables.clear()
    clip_grad_norm_(params, 1.0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        clip_grad_norm_(params, 1.0)
    torch.cuda.synchronize()
    assert len(_tensor_table._tables) == 2


@pytest.mark.kernel
def test_a_tensor_of_the_same_address_that_is_not_dense_has_no_table(device: str) -> None:
    memory = torch.zeros(64, device=device)
    assert served_table([memory[:8].view(2, 4)]) is not None
    assert served_table([torch.as_strided(memory, (2, 4), (8, 1))]) is None


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements() -> None:
    p = torch.empty(2**31 + 40_000, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    p.grad = torch.zeros_like(p)
    p.grad[-1] = 3.0
    p.grad[0] = 4.0
    assert clip_grad_norm_(p, 1.0).item() == 5
    assert p.grad[-1].item() == pytest.approx(0.6, rel=1e-2)


def test_an_iterator_without_parameters_warns_where_it_is_given() -> None:
    used = (p for p in [torch.ones(2, requires_grad=True)])
    assert len([*used]) == 1
    calls = {
        "norm": lambda p: clip_grad_norm_(p, 1.0),
        "value": lambda p: clip_grad_value_(p, 1.0),
        "with norm": lambda p: clip_grads_with_norm_(p, 1.0, torch.ones(())),
        "scale": lambda p: clip_grad_scale(p, 1.0),
        "adaptive": lambda p: clip_grad_adaptive_(p),
        "torch's": lambda p: torch.nn.utils.clip_grad_norm_(p, 1.0),
    }
    for name, call in calls.items():
        with pytest.warns(UserWarning, match="`parameters` is an empty generator") as caught:
            call(used)
        assert caught[0].filename == __file__, name
    empty: list[Tensor] = []
    clip_grad_norm_(empty, 1.0)
    clip_grad_adaptive_(empty)
