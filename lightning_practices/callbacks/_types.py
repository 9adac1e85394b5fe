"""Types in the signatures of several callbacks."""

from typing import Literal

Mode = Literal["min", "max"]
"""Whether a monitored value is to fall or to rise."""

Interval = Literal["step", "epoch"]
"""What a callback counts, optimizer steps or epochs."""
