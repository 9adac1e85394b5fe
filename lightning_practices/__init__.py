"""Training best practices for PyTorch Lightning, with fused kernels behind them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_kernels import __version__ as __version__
else:

    def __getattr__(name: str) -> Any:
        """Return the version, which takes an import of torch: not for the help of the command."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import lightning_kernels

        return lightning_kernels.__version__
