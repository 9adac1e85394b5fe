"""Gradients that are accumulated by hand as they should be."""

from typing import Any

from tests.advisor.faulty.accumulation import Accumulated, accumulated
from tests.advisor.programs import Arguments, digit_loaders, healthy


@healthy
def accumulation_of_two_batches() -> Arguments:
    return accumulated()


@healthy
def accumulation_of_many_batches() -> Arguments:
    """More batches than the advisor looks at."""

    class Many(Accumulated):
        batches = 21

        def clear(self, optimizer: Any) -> None:
            for p in self.parameters():
                p.grad = None

    return Many(), digit_loaders()
