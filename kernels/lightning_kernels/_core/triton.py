"""Triton, or a stand-in where Triton is not installed (macOS, Windows).

With the stand-in the modules that define kernels can be imported. Their kernels are never launched:
if :data:`HAS_TRITON` is false, :mod:`lightning_kernels._core.dispatch` sends every tensor to ATen.
"""

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


try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = _Absent()
    HAS_TRITON = False
else:
    HAS_TRITON = True

# Triton decides when ``jit`` decorates a kernel, at import, whether to compile or interpret it.
INTERPRETED: bool = HAS_TRITON and bool(triton.knobs.runtime.interpret)
