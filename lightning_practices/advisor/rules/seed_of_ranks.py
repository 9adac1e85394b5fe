"""The same random numbers on all ranks."""

import os
from collections.abc import Iterator

from lightning_practices.advisor._kinds import DROPOUTS
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule


@rule(
    "LP635", "hint",
    practice="Ranks draw different dropout masks",
    measures="PL_GLOBAL_SEED, the number of ranks, and dropout in the training step",
    healthy="one rank, or a seed for each rank",
    source="Lightning's seed_everything seeds all ranks alike",
)  # fmt: skip
def same_seed_on_all_ranks(seen: Observation) -> Iterator[Evidence]:
    ranks = 1 if seen.trainer is None else seen.trainer.world_size
    dropouts = tuple(
        dict.fromkeys(call.module for call in seen.step.calls if call.name in DROPOUTS)
    )
    if ranks > 1 and dropouts and (seed := os.environ.get("PL_GLOBAL_SEED")):
        yield Evidence(
            f"seed_everything({seed}) gives all {ranks} ranks the same seed: they draw the same"
            " dropout masks, for other samples",
            f"torch.manual_seed({seed} + self.global_rank) in on_fit_start",
            dropouts,
            {"ranks": ranks},
        )
