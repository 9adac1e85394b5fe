"""The decay of an exponential moving average, and the share that the first weights keep."""

import math

_LARGEST_SHARE = 0.05  # of the first weights in the average at the end of a fit


def decay_after(averages: int, decay: float | None, warmup: bool) -> float | None:
    """Return the decay of the next average, after a number of ``averages``; ``None`` for SWA."""
    if decay is None or not warmup:
        return decay
    return min(decay, (1 + averages) / (10 + averages))


def too_much_of_first(averages: int, decay: float | None, warmup: bool, when: str) -> str | None:
    """Return a warning if the first weights are all or, in EMA, more than 5 % of the average.

    Their share is :math:`d^{n-1}` under a constant decay. A decay that is warmed up leaves less
    than 5 % from the third average on, and ``"swa"`` gives all weights the same share on purpose.

    Args:
        averages: The number :math:`n` of averages. The first one is the first weights.
        decay: The decay; ``None`` for SWA.
        warmup: Whether the decay is warmed up.
        when: The time of the last average, for the message: ``"when the fit ends"``.
    """
    if averages == 1:
        return (
            f"WeightAveraging averages only once, so the average {when} is the weights of one"
            " moment: give a lower start or frequency, or a longer fit"
        )
    if decay is None or warmup or not averages:
        return None
    share = decay ** (averages - 1)
    if share <= _LARGEST_SHARE:
        return None
    most = math.floor(1000 * _LARGEST_SHARE ** (1 / (averages - 1))) / 1000
    return (
        f"WeightAveraging(decay={decay:g}, decay_warmup=False) averages {averages} times, so"
        f" {share:.0%} of the average {when} is the first weights that it has averaged."
        " Validations, early stopping, checkpoints and the module after the fit use this average:"
        f" leave decay_warmup on, or give a decay of at most {most:g}"
    )
