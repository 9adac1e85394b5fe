"""Augmentation at once and in a loop, with a planted cost."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from benchmarks import augmentation as command
from benchmarks.__main__ import main
from benchmarks.batches import make_images
from benchmarks.timers import CpuTimer
from lightning_practices.data import Augmentation
from tests.benchmarks.clock import Clock


def test_the_ratio_is_of_the_same_transforms() -> None:
    clock = Clock(drift=0.1)

    class Costly(v2.RandomHorizontalFlip):  # type: ignore[misc]  # torchvision carries no types
        def forward(self, *inputs: Any) -> Any:
            clock.pass_by(1e-3)
            return super().forward(*inputs)

    def slow(image: Tensor) -> Tensor:
        clock.pass_by(1e-3)
        return image

    images = make_images((6, 3, 4, 4), torch.float32, torch.device("cpu"))
    own = v2.Lambda(slow)
    for given, ratio in ((own, 1.0), ([own, own], 1.0), (Costly(), 1.0)):
        samples = command.compare(Augmentation(given), images, CpuTimer(clock), 3)
        assert float(command.figures(samples)[2]) == pytest.approx(ratio, rel=0.05)
    samples = {command.ONCE: [1e-3, 2e-3, 1e-3], command.LOOP: [5e-3, 10e-3, 4e-3]}
    assert command.figures(samples) == ["5.00 ms", "1.00 ms", "5.00", "0.50"]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        assert main(["augmentation", "--batch-size", "2", "--size", "16", "--repeats", "1"]) == 0
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    for name in command.TRANSFORMS:
        assert name in said
    assert "2 x 3 x 16 x 16" in said
