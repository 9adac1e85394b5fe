"""One look for all pictures, said in one place."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib import rc_context, rcParams, style
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from lightning_practices.pictures import COLOURS, EDGE, FAINT, INK, STYLE, TEXT_SIZES, dress

pytestmark = pytest.mark.plain

ROOT = Path(__file__).parents[1]
LOOK = ROOT / "lightning_practices" / "pictures.py"
SOURCES = sorted(
    path
    for folder in ("lightning_practices", "examples", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if path != LOOK and path != ROOT / "benchmarks" / "plots.py"  # it has another order of colours
)


def test_a_dressed_axis_has_this_look_and_settings_are_left_alone() -> None:
    before = dict(rcParams)
    axis = Figure().subplots()
    dress(axis)
    assert dict(rcParams) == before
    shown = {side for side, spine in axis.spines.items() if spine.get_visible()}
    assert shown == {"left", "bottom"}
    assert to_hex(axis.spines["left"].get_edgecolor()) == EDGE.lower()
    assert [line.get_visible() for line in axis.get_xgridlines()] == [False] * 6
    assert {to_hex(line.get_color()) for line in axis.get_ygridlines()} == {FAINT.lower()}
    label = axis.get_xticklabels()[0]
    assert (label.get_fontsize(), to_hex(label.get_color())) == (TEXT_SIZES["tick"], INK)


def test_the_style_of_a_program_is_that_of_a_dressed_axis() -> None:
    with rc_context(), style.context(STYLE):
        of_program = Figure().subplots()
        (line,) = of_program.plot([0, 1])
    dressed = Figure().subplots()
    dress(dressed)
    assert line.get_color() == COLOURS[0]
    for side, spine in dressed.spines.items():
        assert of_program.spines[side].get_visible() == spine.get_visible()
        if spine.get_visible():
            assert of_program.spines[side].get_edgecolor() == spine.get_edgecolor()
    first, second = (axis.get_ygridlines()[0] for axis in (of_program, dressed))
    assert to_hex(first.get_color()) == to_hex(second.get_color())
    assert first.get_linewidth() == second.get_linewidth()


def test_no_other_file_repeats_the_colours() -> None:
    palette = "|".join(COLOURS)
    assert [path for path in SOURCES if re.search(palette, path.read_text(), re.IGNORECASE)] == []


def test_importing_the_look_loads_no_matplotlib() -> None:
    code = "import sys, lightning_practices.pictures; print('matplotlib' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
