"""Progressive unfreezing: the head first, then the blocks below it, phase by phase.

- ``progressive_unfreezing``: the callback.
- ``schedule``: the form of a schedule, and its phases; read from and written to YAML.
- ``plan``: the phases applied to a model: which parameters each phase trains, and how fast.
- ``progress``: how far a phase has come, and how it is shown.
- ``groups``: parameter groups by block, in the optimizers and schedulers of the module.
- ``freezing``: freezing of all parameters that a phase doesn't train, under DDP and FSDP2 too.
- ``sharded``: resuming in mid-schedule under FSDP2.
- ``checks``: which Trainers are refused.
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
