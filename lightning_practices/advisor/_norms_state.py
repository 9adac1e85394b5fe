"""The running statistics of batch norms before the first step."""

from lightning_practices.advisor._observation import Observation


def was_fresh(seen: Observation, name: str) -> bool:
    """Whether the running statistics of a batch norm were those of a new layer, 0 and 1.

    Args:
        seen: The observation.
        name: Name of the batch norm.
    """
    mean, variance = (seen.weights.get(f"{name}.running_{one}") for one in ("mean", "var"))
    if mean is None or variance is None:
        return False
    low, high = variance.statistics.low, variance.statistics.high
    return mean.statistics.low == 0 == mean.statistics.high and low == 1 == high
