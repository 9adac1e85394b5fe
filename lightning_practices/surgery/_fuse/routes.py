"""A file of measured times for each kind of GPU, so that later processes need not measure again."""

import json
import math
import os
import re
import warnings
from pathlib import Path
from typing import Any

import platformdirs
import torch

import lightning_kernels
from lightning_practices.files import write_file
from lightning_practices.timing import Times

_FORM = 1  # of the file


def cache_file(device: torch.device) -> Path | None:
    """Return the file for this GPU, torch, Triton and package; ``None`` for the CPU.

    Times on a CPU depend on what else it does, so they are not kept.
    """
    if device.type != "cuda":
        return None
    import triton

    parts = (
        torch.cuda.get_device_name(device), f"torch-{torch.__version__}",
        f"triton-{triton.__version__}", lightning_kernels.__version__,
    )  # fmt: skip
    name = "_".join(re.sub(r"[^\w.+-]+", "-", part) for part in parts)
    return Path(platformdirs.user_cache_dir("lightning-practices")) / "routes" / f"{name}.json"


def load(path: Path | None) -> dict[str, Times]:
    """Return the times in a file; none if it is missing, damaged or of another form."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
        if not isinstance(content, dict) or content.get("form") != _FORM:
            return {}
        return {key: _times(value) for key, value in content["times"].items()}
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError
    ):  # fmt: skip
        return {}


def store(path: Path | None, times: dict[str, Times]) -> None:
    """Add times to a file. Several processes may do so: a reader sees a whole file.

    If the folder can't be written to, a warning says so: nothing is lost but time.
    """
    if path is None or not times:
        return
    merged = load(path) | times
    content = {
        "form": _FORM,
        "times": {key: [t.torch, t.ours, t.noise] for key, t in sorted(merged.items())},
    }
    try:
        os.makedirs(path.parent, exist_ok=True)
        write_file(path, json.dumps(content, indent=1))
    except OSError as error:
        warnings.warn(
            f"fuse can't keep its measurements in {path}, so each process measures anew: {error}",
            RuntimeWarning,
            stacklevel=2,
        )


def _times(value: Any) -> Times:
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError(f"expected three numbers, but got {value!r}")
    times = Times(*(float(number) for number in value))
    if not (0 < times.torch < math.inf and 0 < times.ours < math.inf and 0 <= times.noise < 1e9):
        raise ValueError(f"expected times, but got {value!r}")
    return times
