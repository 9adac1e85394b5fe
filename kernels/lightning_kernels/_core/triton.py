"""Triton where it is installed; elsewhere (macOS, Windows) a stand-in, so that kernels import.

A kernel that is defined with the stand-in is never launched: if :data:`HAS_TRITON` is false,
:mod:`lightning_kernels._core.dispatch` sends every tensor to ATen.
"""

from typing import Any

__all__ = ["HAS_TRITON", "INTERPRETED", "tl", "triton"]


class _Absent:
    """Answers every attribute and every call with itself, decorators and annotations included."""

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

# Triton decides at import whether ``jit`` compiles or interprets.
INTERPRETED: bool = HAS_TRITON and bool(triton.knobs.runtime.interpret)
