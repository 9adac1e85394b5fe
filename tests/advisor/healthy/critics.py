"""Generators and critics that resemble the faulty ones."""

from tests.advisor.faulty.critics import Adversarial
from tests.advisor.programs import Arguments, digit_loaders, healthy


@healthy
def asks_for_real() -> Arguments:
    return Adversarial(), digit_loaders()


@healthy
def labels_turned_around() -> Arguments:
    class Turned(Adversarial):
        real, fake, asked = 0.0, 1.0, 0.0

    return Turned(), digit_loaders()


@healthy
def asks_for_no_decision() -> Arguments:
    class Even(Adversarial):
        asked = 0.5

    return Even(), digit_loaders()
