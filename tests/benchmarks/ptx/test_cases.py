"""The compiled kernels of every function, executed: no errors, results as right as torch's."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import lightning_kernels
from benchmarks.ptx import Finding, Record, compiled_on_cpu
from benchmarks.replaced import our_kernels
from tests.amounts import few_and_many
from tests.benchmarks.ptx import cases, clips, drops
from tests.benchmarks.ptx.cases import Case, executed
from tests.kernels.test_activation_values import SHARES, all_numbers, half_unit
from tests.processes import DEADLINE

pytestmark = pytest.mark.plain

ROOT = Path(__file__).parents[3]


# Kernels in which lanes store copies of one sum that differ in the last digits, see
# `benchmarks.ptx`: by 1e-3 of a sum whose terms cancel, and by 1e-6 of most. An error in a layout
# would make them differ by much more than the limit.
UNEQUAL_SUMS = {"_group_norm_forward_kernel", "_group_norm_backward_kernel"}
ROUNDING = 2.0**-8


def errors(record: Record) -> list[Finding]:
    """Return the findings but the conflicts of :data:`UNEQUAL_SUMS`."""
    return [
        finding
        for finding in record.findings
        if finding.kind != "conflict"
        or finding.kernel not in UNEQUAL_SUMS
        or finding.apart > ROUNDING
    ]


def moves(record: Record, size: int) -> float:
    """Return how often tensors of ``size`` bytes or more are read or written, each as a whole."""
    tensors = [t for launch in record.launches for t in launch.traffic if t.size >= size]
    return sum(t.read_bytes + t.written_bytes for t in tensors) / size


@pytest.mark.parametrize("case", few_and_many(cases.FEW, cases.MANY), ids=str)
def test_no_errors_and_as_right_as_torch(case: Case) -> None:
    record = executed(case)
    assert record.launches
    assert not errors(record)
    if case.at_the_floor:
        assert moves(record, case.input_bytes) == sum(cases.ALL_OPS[case.op].moves)


@pytest.mark.parametrize(
    "case",
    few_and_many(cases.APPROXIMATE[4:6], cases.APPROXIMATE[:4] + cases.APPROXIMATE[6:]),
    ids=str,
)
def test_approximate_instructions_may_err_as_far_as_documented(case: Case) -> None:
    assert executed(case, 1.0).launches


@pytest.mark.parametrize("name", few_and_many(clips.FEW, clips.MANY))
def test_clipping_has_no_errors_and_is_as_right_as_torch(name: str) -> None:
    record = clips.executed(name)
    assert record.launches
    assert not errors(record)


def test_gradients_are_read_and_written_once() -> None:
    weights = [torch.ones(64, 64) for _ in range(6)]
    for weight in weights:
        weight.grad = torch.full((64, 64), 2.0)
    with compiled_on_cpu() as record:
        lightning_kernels.clip_grad_norm_(weights, 1.0)
    norm, clip = (
        [t for t in launch.traffic if t.name == "float32[64, 64]"] for launch in record.launches
    )
    assert [(t.read_bytes, t.written_bytes) for t in norm] == [(4 * 4096, 0)] * 6
    assert [(t.read_bytes, t.written_bytes) for t in clip] == [(4 * 4096, 4 * 4096)] * 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_activations_of_all_numbers(activation: str, dtype: torch.dtype) -> None:
    """The formulas for 16 bits as they are compiled, at all numbers of the type.

    ``tests/kernels/test_activation_values.py`` has their errors before they are rounded.
    """
    x = all_numbers(dtype).requires_grad_()
    with compiled_on_cpu() as record:
        y = lightning_kernels.dropout_activation(x, activation, training=False)
        (slope,) = torch.autograd.grad(y.sum(), x)
    assert not errors(record)
    wide = x.detach().double().requires_grad_()
    exact = getattr(F, activation)(wide)
    (exact_slope,) = torch.autograd.grad(exact.sum(), wide)
    share = 1 + SHARES[dtype]
    for ours, expected, least in ((y, exact.detach(), 1e-11), (slope, exact_slope, 1e-5)):
        limit = share * half_unit(expected, dtype) + least
        assert ((ours.detach().double() - expected).abs() <= limit).all()


@functools.cache
def kept(name: str) -> tuple[Record, tuple[Tensor, Tensor]]:
    with compiled_on_cpu() as record:
        return record, drops.DROPS[name].kept()


@pytest.fixture(scope="module")
def interpreted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what the interpreted dropouts keep, computed by a process of its own."""
    names = drops.DROPS if request.config.getoption("full") else drops.FEW
    file = tmp_path_factory.mktemp("interpreted") / "kept.pt"
    path = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "tests.benchmarks.ptx.drops", str(file), *names]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=DEADLINE)
    masks: dict[str, tuple[Tensor, Tensor]] = torch.load(file)
    return masks


@pytest.mark.parametrize("name", few_and_many(drops.FEW, drops.MANY))
def test_dropouts_keep_what_the_interpreter_keeps(
    name: str, interpreted: dict[str, tuple[Tensor, Tensor]]
) -> None:
    record, masks = kept(name)
    assert not errors(record)
    for compiled, expected in zip(masks, interpreted[name], strict=True):
        assert 0 < expected.sum() < expected.numel()
        assert torch.equal(compiled, expected)


def test_every_kernel_is_executed() -> None:
    records = [
        *map(executed, cases.FEW),
        *map(clips.executed, clips.FEW),
        *(record for record, _ in map(kept, drops.FEW)),
    ]
    names = {launch.kernel for record in records for launch in record.launches}
    assert names == our_kernels()
