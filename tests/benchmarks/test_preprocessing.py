"""Standardised batches and fits, with planted costs."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from typing_extensions import override

from benchmarks import preprocessing as command
from benchmarks.__main__ import main
from benchmarks.batches import make_images
from benchmarks.timers import CpuTimer
from lightning_practices.data import BatchPreprocessing, Standardize
from tests.benchmarks.clock import Clock


class Costly(Standardize):
    """Takes a millisecond for each piece of the data."""

    clock: Clock

    @override
    def _moments(self, x: Tensor, per: Any) -> Any:
        self.clock.pass_by(1e-3)
        return super()._moments(x, per)


def test_a_fit_is_timed_beside_reading_the_same_loader() -> None:
    clock = Clock(drift=0.1)

    class Loader:
        def __iter__(self) -> Iterator[Tensor]:
            for number in range(4):
                clock.pass_by(2e-3)
                yield torch.full((2, 3), float(number))

    layer = Costly()
    layer.clock = clock
    samples = command.compare_fits(Loader(), layer, CpuTimer(clock), 3)
    figures = command.figures(samples, command.LOADER, command.FIT, added=True)
    assert float(figures[2]) == pytest.approx(0.5, rel=0.05)  # 4 ms beside 8 ms
    assert torch.equal(layer.mean, torch.full((3,), 1.5))


def test_both_ways_of_a_batch_give_the_same() -> None:
    x = make_images((4, 3, 5, 5), torch.float32, torch.device("cpu"))
    plain, ours = command.ways(x)
    torch.testing.assert_close(plain(), ours()[0])
    assert isinstance(ours.func, BatchPreprocessing)


def test_figures_are_of_rounds() -> None:
    samples = {"a": [1e-3, 2e-3, 1e-3], "b": [5e-3, 10e-3, 4e-3]}
    assert command.figures(samples, "a", "b") == ["1.000 ms", "5.000 ms", "5.00", "0.50"]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        assert main(["preprocessing", "--batch-size", "4", "--repeats", "1"]) == 0
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    for text in ("4 x 3 x 224 x 224", "4 x 16", "JPEG files, 32 pixels", "in memory, 224 pixels"):
        assert text in said
