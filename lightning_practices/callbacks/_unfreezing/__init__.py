"""Progressive unfreezing: the head first, then the blocks below it, phase by phase.

- ``progressive_unfreezing``: the callback.
- ``schedule``: the phases of a schedule, read from and written to YAML.
- ``plan``: the phases applied to a model: which parameters each phase trains, at which rates.
- ``layout``: what has to stay the same in a schedule when a fit is resumed.
- ``progress``: the progress of a phase, and its display.
- ``groups``: splits the parameter groups of optimizers and schedulers by block.
- ``freezing``: freezes all parameters that a phase doesn't train, under DDP and FSDP2 too.
- ``sharded``: resumes in the middle of a schedule under FSDP2.
- ``length``: the phases of ``"auto"``, and a warning if the fit ends before the last phase begins.
- ``checks``: errors for unsupported Trainers and optimizers.
"""

from lightning_practices.callbacks._unfreezing.plan import BlocksBy, unfreezing_schedule
from lightning_practices.callbacks._unfreezing.progressive_unfreezing import ProgressiveUnfreezing
from lightning_practices.callbacks._unfreezing.schedule import UnfreezingSchedule, write_schedule

__all__ = [
    "BlocksBy",
    "ProgressiveUnfreezing",
    "UnfreezingSchedule",
    "unfreezing_schedule",
    "write_schedule",
]
