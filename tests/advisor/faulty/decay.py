"""Weight decay beyond reason."""

from typing import Any

import torch

from tests.advisor.programs import Arguments, Task, digit_loaders, faulty, mlp


@faulty("LP644", source="a decay of 1 in place of 1e-4: the loss stays at chance")
def decay_of_one() -> Arguments:
    def optimizer(parameters: Any) -> Any:
        return torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=1.0)

    return Task(mlp(64, 64, 10), optimizer=optimizer), digit_loaders()


@faulty("LP644", source="a decay of 10, meant for a rate of 1e-5")
def decay_of_ten() -> Arguments:
    def optimizer(parameters: Any) -> Any:
        return torch.optim.AdamW(parameters, 1e-2, weight_decay=10.0)

    return Task(mlp(64, 64, 10), optimizer=optimizer), digit_loaders()
