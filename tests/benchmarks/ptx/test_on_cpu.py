"""Functions of ``lightning_kernels`` whose compiled kernels are executed on the CPU."""

import math

import pytest
import torch

import lightning_kernels
from benchmarks.machine_code import compile_launch, record_launches
from benchmarks.ptx import Options, compiled_on_cpu

pytestmark = pytest.mark.plain


def test_every_launch_is_recorded() -> None:
    x = torch.randn(5, 77, requires_grad=True)
    with compiled_on_cpu() as record:
        lightning_kernels.layer_norm(x, (77,)).sum().backward()
    assert [launch.kernel for launch in record.launches] == [
        "_row_norm_forward_kernel",
        "_row_norm_backward_kernel",
    ]


def test_a_tensor_without_values_is_found() -> None:
    with compiled_on_cpu() as record:
        lightning_kernels.rms_norm(torch.empty(2, 32), (32,))
    assert "uninitialised" in {f.kind for f in record.findings}


def test_values_that_torch_wrote_count_as_written() -> None:
    with compiled_on_cpu() as record:
        lightning_kernels.rms_norm(torch.empty(2, 32).fill_(0.5), (32,))
    assert not record.findings


def test_a_mask_does_not_depend_on_the_order_of_ctas() -> None:
    x = torch.ones(5000)
    results = []
    for seed in range(3):
        torch.manual_seed(0)
        with compiled_on_cpu(options=Options(seed=seed)) as record:
            results.append(lightning_kernels.dropout(x, 0.3, training=True))
        assert not record.findings
    assert 0 < (results[0] == 0).sum() < 5000
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_two_sets_of_gradients_get_their_own_table() -> None:
    parameters = [torch.zeros(40), torch.zeros(3, 5, dtype=torch.bfloat16)]
    with compiled_on_cpu() as record:
        for _ in range(2):
            for p in parameters:
                p.grad = torch.ones_like(p)
            norm = lightning_kernels.clip_grad_norm_(parameters, 1.0)
            assert norm.item() == pytest.approx(55**0.5, rel=1e-3)
            torch.testing.assert_close(parameters[0].grad, torch.full((40,), 55**-0.5))
    assert {f.kind for f in record.findings} <= {"conflict"}


def test_the_traffic_is_that_of_the_static_report() -> None:
    size = 4 * 4096
    with record_launches() as launches:
        x = torch.empty(size, dtype=torch.bfloat16, device="cuda")
        lightning_kernels.dropout(x, 0.3, training=True)
    (launch,) = launches
    with compiled_on_cpu(multiprocessors=132) as record:
        lightning_kernels.dropout(torch.ones(size, dtype=torch.bfloat16), 0.3, training=True)
    (counters,) = record.launches
    assert counters.ctas == math.prod(launch.grid)
    traffic = compile_launch(launch, 90).traffic
    assert traffic.bytes_per_element == 4
    assert (counters.load_bytes, counters.store_bytes) == (2 * size, 2 * size)
    assert (counters.read_bytes, counters.written_bytes) == (2 * size, 2 * size)


def test_the_interpreter_can_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="without it"), compiled_on_cpu():
        pass
