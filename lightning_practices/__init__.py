"""Training best practices for PyTorch Lightning, with fused kernels behind them."""

__version__ = "0.1.0"
