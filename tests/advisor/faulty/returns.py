"""Training steps that return no loss."""

from typing import Any

from tests.advisor.programs import Arguments, Task, digit_loaders, faulty, mlp


def _returned() -> Arguments:
    return Task(mlp(64, 32, 10)), digit_loaders()


@faulty("LP130", mended=_returned, source="questions: training_step without a return")
def the_return_is_forgotten() -> Arguments:
    class Forgotten(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            super().training_step(batch, batch_idx)

    return Forgotten(mlp(64, 32, 10)), digit_loaders()


@faulty("LP130", mended=_returned, source="a condition on the batch that never holds")
def no_batch_is_large_enough() -> Arguments:
    class Picky(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) if len(batch[0]) > 64 else None

    return Picky(mlp(64, 32, 10)), digit_loaders()
