"""Triton, or a stand-in where Triton is too old or not installed (macOS, Windows).

With the stand-in the modules that define kernels can be imported. Their kernels are never launched:
if :data:`HAS_TRITON` is false, :mod:`lightning_kernels._core.dispatch` sends every tensor to ATen.
"""

import os
import re
import warnings
from typing import Any

__all__ = ["HAS_TRITON", "INTERPRETED", "tl", "triton"]


class _Absent:
    """Stand-in for ``triton`` and ``triton.language``. Every attribute and call returns itself.

    So ``@triton.jit`` and ``tl.constexpr`` can be evaluated where kernels are defined.
    """

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self


_TRUE = frozenset({"1", "true", "on", "y", "yes"})  # that Triton takes for yes in a variable
_OLDEST = (3, 6)  # the Triton of the oldest supported torch


def _is_new_enough(version: str) -> bool:
    """Say whether a version of Triton can compile the kernels; warn if not."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    is_new = numbers is not None and tuple(map(int, numbers.groups())) >= _OLDEST
    if not is_new:
        oldest = ".".join(map(str, _OLDEST))
        warnings.warn(
            f"lightning_kernels needs Triton {oldest} or newer, but found {version}, so PyTorch's"
            " own operators compute everything. torch brings the Triton that fits to it: `pip"
            " install --upgrade torch triton`",
            RuntimeWarning,
            stacklevel=2,
        )
    return is_new


try:
    import triton
    import triton.language as tl
except ImportError:
    HAS_TRITON = False
    if os.environ.get("TRITON_INTERPRET", "0").lower() in _TRUE:
        warnings.warn(
            "TRITON_INTERPRET is set, but there is no Triton that could interpret the kernels, so"
            " PyTorch's own operators compute everything: install Triton (`pip install triton`, on"
            " Linux), or unset TRITON_INTERPRET",
            RuntimeWarning,
            stacklevel=2,
        )
else:
    HAS_TRITON = _is_new_enough(triton.__version__)
if not HAS_TRITON:
    triton = tl = _Absent()

# Triton decides when ``jit`` decorates a kernel, at import, whether to compile or interpret it.
INTERPRETED: bool = HAS_TRITON and bool(triton.knobs.runtime.interpret)
