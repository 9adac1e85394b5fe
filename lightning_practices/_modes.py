"""Which modules act differently in training and eval mode."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def depends_on_mode(module: nn.Module) -> bool:
    """Return whether a module itself computes something else in eval mode."""
    if isinstance(module, _BatchNorm):
        return module.track_running_stats
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return float(module.dropout) > 0
    if "drop" not in type(module).__name__.lower():
        return False
    rates = (getattr(module, name, None) for name in ("p", "rate", "drop_prob", "drop_rate"))
    return any(isinstance(rate, int | float) and rate > 0 for rate in rates)
