"""Healthy classifiers."""

from tests.advisor.programs import Arguments, Task, cnn, digit_loaders, healthy, mlp


@healthy
def mlp_on_digits() -> Arguments:
    return Task(mlp(64, 64, 64, 10)), digit_loaders()


@healthy
def cnn_on_digits() -> Arguments:
    return Task(cnn()), digit_loaders()
