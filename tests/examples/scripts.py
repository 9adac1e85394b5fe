"""Run an example in this process, and compare its picture with the committed one."""

import sys
from pathlib import Path
from types import ModuleType

import pytest


def run_main(example: ModuleType, *arguments: object) -> None:
    """Call the example's ``main`` with the arguments of a command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [example.__file__, *map(str, arguments)])
        example.main()


def assert_like_the_committed(picture: Path, example: ModuleType) -> None:
    """Compare the sizes in pixels, and about those of the files."""
    assert example.__file__
    made, committed = picture.read_bytes(), Path(example.__file__).with_suffix(".png").read_bytes()
    assert made.startswith(b"\x89PNG")
    assert made[16:24] == committed[16:24]  # width and height
    assert len(committed) / 1.5 < len(made) < 1.5 * len(committed)
