"""At which steps the advisor looks."""

_GROWTH = 2  # at the start, a look is this share of the steps so far after the one before
_SPREAD = 0.5  # of the intervals, so that they have no common divisor with what alternates
_GOLDEN = 0.6180339887498949


def next_look(step: int, every: int) -> int:
    """Return the optimizer step of the first look after ``step``.

    Looks are frequent at the start of a fit, when most faults show: 0, 1, 2, 3, 5, 8, 12, and so
    on. Later intervals are between 0.75 and 1.25 times ``every``, and differ from each other. The
    steps of the looks depend on ``every`` alone, so that all ranks and resumed fits agree.

    Args:
        step: Optimizer steps taken; -1 before the first.
        every: The mean interval.
    """
    place = count = 0
    while place <= step:
        count += 1
        spread = 1 + _SPREAD * (count * _GOLDEN % 1 - 0.5)
        place += max(1, round(min(every, place // _GROWTH) * spread))
    return place
