"""Training best practices for PyTorch Lightning, with fused kernels behind them."""

from lightning_kernels import __version__ as __version__
