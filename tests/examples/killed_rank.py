"""Run an example as a script does, in a process that ends as by a power cut at a step.

torchrun --nproc-per-node 2 tests/examples/killed_rank.py EXAMPLE RANK STEP [arguments]
"""

import importlib
import sys

from lightning.pytorch import Callback, Trainer
from typing_extensions import override

from tests.processes import kill


class KillRank(Callback):
    """Kill the process of one rank when a step is about to start."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank = rank
        self.step = step

    @override
    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        if (trainer.global_rank, trainer.global_step) == (self.rank, self.step):
            kill()


if __name__ == "__main__":
    _, name, rank, step, *arguments = sys.argv
    importlib.import_module(f"examples.{name}").main(arguments, KillRank(int(rank), int(step)))
