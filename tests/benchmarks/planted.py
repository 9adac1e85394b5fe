"""Made-up measurements, with a story that reports and comparisons must tell."""

from pathlib import Path
from typing import Any

from benchmarks.results import Results
from benchmarks.rows import Row

ENVIRONMENT = {
    "gpu": "NVIDIA H200",
    "cpu": "x86_64",
    "cpu_cores": 16,
    "driver": "580.1",
    "python": "3.12.3",
    "torch": "2.11.0",
    "triton": "3.6.0",
    "lightning": "2.6.0",
    "revision": "abc1234",
    "date": "2026-11-20T10:00:00+00:00",
}
COPY_GBYTES_PER_S = 4000.0
SIZES = {"1x128": 128, "256x1024": 2**18, "8192x4096": 2**25}
MISSING = "ModuleNotFoundError: No module named 'quack'"


def kernel_row(
    provider: str, shape: str = "8192x4096", microseconds: float = 40.0, **more: Any
) -> Row:
    """Return a good row of layer norm, forward in bf16."""
    moved = SIZES[shape] * 4
    gbytes_per_s = moved / microseconds / 1e3
    return {
        "op": "layer_norm",
        "shape": shape,
        "dtype": "bf16",
        "layout": "contiguous",
        "direction": "forward",
        "provider": provider,
        "status": "ok",
        "reason": None,
        "microseconds": microseconds,
        "spread": 0.5,
        "gbytes_per_s": gbytes_per_s,
        "percent_of_floor": 100 * gbytes_per_s / COPY_GBYTES_PER_S,
        "ratio_to_best_peer": 1.25 if provider == "ours" else None,
        "ratio_to_eager": 2.0 if provider == "ours" else None,
        "host_us": 9.0,
        "peak_mib": 64.0,
        "saved_bytes": 65536,
        "timer": "graph",
        **more,
    }


def bad_row(provider: str, status: str, reason: str, **more: Any) -> Row:
    """Return a row of a provider without a figure."""
    row = kernel_row(provider, **more)
    figures = list(row)[list(row).index("microseconds") :]
    return {**row, **dict.fromkeys(figures), "status": status, "reason": reason}


def kernel_rows() -> list[Row]:
    """Return three shapes of four providers: two are measured, one is missing, one wrong."""
    rows = []
    for shape, numel in SIZES.items():
        floor = numel * 4 / COPY_GBYTES_PER_S / 1e3
        rows += [
            kernel_row("ours", shape, 2 + 1.1 * floor),
            kernel_row("eager", shape, 4 + 2 * floor),
            bad_row("quack-kernels", "missing", MISSING, shape=shape),
            bad_row("flag-gems", "wrong", "error 0.5 | allowed 0.01", shape=shape),
        ]
    return rows


def fit_rows() -> list[Row]:
    """Return one model in two variants, and a third that failed."""
    row = {"model": "resnet50", "status": "ok", "reason": None, "spread": 0.2}
    return [
        {
            **row, "variant": "plain", "images_per_s": 2560.0, "milliseconds_per_step": 100.0,
            "ratio_to_plain": 1.0, "peak_mib": 20000.0, "share_of_replaced_ops": 0.4,
        },
        {
            **row, "variant": "ours", "images_per_s": 3200.0, "milliseconds_per_step": 80.0,
            "ratio_to_plain": 0.8, "peak_mib": 15000.0, "share_of_replaced_ops": 0.2,
        },
        {**row, "variant": "ours compiled", "status": "failed", "reason": "no compiler"},
    ]  # fmt: skip


def cpu_row(ratio: float, spread: float = 0.02, **more: Any) -> Row:
    """Return a row of dropout on the CPU."""
    return {
        "op": "dropout", "peer": "torch.nn.functional.dropout", "shape": "256x1024",
        "dtype": "float32", "direction": "forward", "status": "ok", "reason": None,
        "ratio": ratio, "spread": spread, "microseconds": 120.0, **more,
    }  # fmt: skip


def save(path: Path, rows: list[Row], **environment: Any) -> Results:
    """Write a file of results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    results = Results(path, {**ENVIRONMENT, **environment}, rows)
    results.save()
    return results
