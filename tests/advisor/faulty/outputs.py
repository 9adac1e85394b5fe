"""Outputs that don't fit their losses."""

from torch import nn

from tests.advisor.programs import Arguments, Task, digit_loaders, faulty, mlp


def _logits() -> Arguments:
    return Task(mlp(64, 64, 10)), digit_loaders()


@faulty("LP201", "net.1", source="questions about a loss that stays near log(10)", mended=_logits)
def softmax_before_cross_entropy() -> Arguments:
    return Task(nn.Sequential(mlp(64, 64, 10), nn.Softmax(dim=1))), digit_loaders()
