"""Training steps that rightly return no loss, always or for some batches."""

from typing import Any

import torch

from tests.advisor.programs import Arguments, Task, digit_loaders, healthy, mlp


@healthy
def means_of_classes_without_an_optimizer() -> Arguments:
    class Means(Task):
        def __init__(self) -> None:
            super().__init__(mlp(64, 10))
            self.register_buffer("sums", torch.zeros(10, 64))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            self.get_buffer("sums").index_add_(0, y, x.flatten(1))

        def configure_optimizers(self) -> Any:
            return None

    return Means(), digit_loaders()


@healthy
def a_batch_is_skipped() -> Arguments:
    class Skipping(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return loss if batch_idx != 0 else None

    return Skipping(mlp(64, 32, 10)), digit_loaders()
