"""Learning curves as files: what kinds, where, whole or not at all; and what is refused."""

import errno
import os
import re
import sys
import threading
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger
from matplotlib import pyplot as plt

from lightning_practices.callbacks import LearningCurves
from lightning_practices.callbacks._curves import learning_curves as _learning_curves
from lightning_practices.callbacks._curves.draw import draw
from lightning_practices.callbacks._curves.file import rendered
from lightning_practices.callbacks._curves.series import Series
from lightning_practices.files import write_file
from tests.callbacks.curves import Logged, curves_in, fit, stand_in
from tests.callbacks.scripted import FILTERS, At

pytestmark = FILTERS

STARTS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".html": b"<!DOCTYPE html>"}


# Kinds.


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".html", ".PNG"])
def test_a_fit_leaves_a_file_of_each_kind(suffix: str, tmp_path: Path) -> None:
    open_before, backend = plt.get_fignums(), mpl.get_backend()
    file = tmp_path / "new" / f"curves{suffix}"
    curves = LearningCurves(file)
    fit(Logged(), curves)
    assert curves.file == file
    assert file.read_bytes().startswith(STARTS[suffix.lower()])
    assert list(file.parent.iterdir()) == [file]
    assert (plt.get_fignums(), mpl.get_backend()) == (open_before, backend)


def series() -> dict[str, Series]:
    found: dict[str, Series] = {"val_loss": Series(), "<b>&": Series()}
    for step, value in [(10, 3.0), (20, 1.25), (30, float("nan")), (40, 2.0)]:
        for one in found.values():
            one.add(step, value)
    return found


def test_the_page_holds_all_that_it_shows() -> None:
    page = rendered(draw(series(), None, "A <Net>"), series(), "A <Net>", ".html").decode()
    assert "<title>A &lt;Net&gt;</title>" in page
    (picture,) = re.findall(r"<svg .*</svg>", page, flags=re.DOTALL)
    root = ET.fromstring(picture)
    links = {
        value
        for element in root.iter()
        for name, value in element.attrib.items()
        if name.endswith(("href", "src"))
    }
    assert links
    assert all(link.startswith("#") for link in links)
    rest = page.replace(picture, "")
    assert not re.search(r"<script|<link|<img|https?:|url\(", rest)
    rows = re.findall(r"<tr><td>(.*?)</tr>", rest)
    expected = (
        "</td><td>2 <small>at 40</small></td><td>1.25 <small>at 20</small></td>"
        "<td>3 <small>at 10</small></td><td>1</td>"
    )
    assert rows == [f"val_loss{expected}", f"&lt;b&gt;&amp;{expected}"]


def test_any_thread_may_draw() -> None:
    def make() -> bytes:
        return rendered(draw(series(), None, "Net"), series(), "Net", ".png")

    made: list[bytes] = []
    threads = [threading.Thread(target=lambda: made.append(make())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [make()] * 3


# Places.


def test_a_relative_path_is_below_the_loggers_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    logger = CSVLogger(tmp_path / "logs", name="net", version=3)
    curves = LearningCurves("a/curves.svg")
    fit(Logged(), curves, logger=logger, log_every_n_steps=1)
    assert curves.file == tmp_path / "logs" / "net" / "version_3" / "a" / "curves.svg"
    assert curves.file.exists()


def test_without_a_logger_it_is_below_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    fit(Logged(), curves := LearningCurves(), default_root_dir=tmp_path)
    assert curves.file == tmp_path / "learning_curves.png"
    assert curves.file.exists()


def test_a_place_that_is_not_local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch)
    with pytest.raises(MisconfigurationException, match="below memory://root: give an absolute"):
        fit(Logged(), LearningCurves(), default_root_dir="memory://root")
    fit(Logged(), LearningCurves(tmp_path / "a.png"), default_root_dir="memory://root")
    assert (tmp_path / "a.png").exists()


def test_a_place_that_can_not_be_written_to_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Logged()
    before = [p.clone() for p in module.parameters()]
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(MisconfigurationException, match=r"can't make the folder of .*/file/a.png"):
        fit(module, LearningCurves(tmp_path / "file" / "a.png"))
    with pytest.raises(
        MisconfigurationException, match=r"can't write .*folder.png, which is a fol"
    ):
        fit(module, LearningCurves(tmp_path / "folder.png"))
    monkeypatch.setattr(os, "access", lambda *_: False)  # nothing is read-only for an administrator
    with pytest.raises(
        MisconfigurationException, match=r"can't write .*s.png, .*read-only folder: giv"
    ):
        fit(module, curves_in(tmp_path))
    assert all(a.equal(b) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "x" * 300 + "/curves.png"])
def test_a_name_that_is_too_long_is_refused_before_training(name: str, tmp_path: Path) -> None:
    module = Logged()
    before = [p.clone() for p in module.parameters()]
    with pytest.raises(MisconfigurationException, match=r"LearningCurves can't .* name too long"):
        fit(module, LearningCurves(tmp_path / name))
    assert all(a.equal(b) for a, b in zip(before, module.parameters(), strict=True))


def test_without_matplotlib_the_fit_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-practices\[plots\]'"):
        fit(Logged(), curves_in(tmp_path))
    fit(Logged(), curves_in(tmp_path), fast_dev_run=True)


# Whole or not at all.


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_a_warning_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = stand_in(monkeypatch)
    monkeypatch.setattr(_learning_curves, "write_file", full)
    curves = curves_in(tmp_path, every_n_epochs=1)
    room = At(16, lambda _: monkeypatch.setattr(_learning_curves, "write_file", write_file))
    message = r"could not draw .*curves.png: OSError: .*No space left on device; training goes on"
    with pytest.warns(UserWarning, match=message) as caught:
        trainer = fit(Logged(), curves, room, max_epochs=6)
    assert trainer.global_step == 24
    assert len([one for one in caught if "could not draw" in str(one.message)]) == 1
    assert drawn.steps == [4, 8, 12, 16, 20, 24]
    assert (tmp_path / "curves.png").exists()


def test_an_end_that_is_not_drawn_is_said_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    monkeypatch.setattr(_learning_curves, "write_file", full)
    with pytest.warns(UserWarning, match="could not draw") as caught:
        fit(Logged(), curves_in(tmp_path, every_n_epochs=1))
    said = [str(one.message) for one in caught if "could not draw" in str(one.message)]
    assert ["training goes on" in line for line in said] == [True, False]


# What can't be.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"path": "curves.jpg"},
            r"path has to be .* ends in .png, .svg, .pdf, .html, but got 'curves.jpg'",
        ),
        ({"path": "curves"}, "but got 'curves'"),
        ({"metrics": "loss"}, r"as in \['loss'\]"),
        ({"monitor": "loss", "mode": "least"}, "'min' or 'max', but got 'least'"),
        ({"mode": "max"}, "what is best of `monitor`: give monitor too"),
        ({"every_n_train_steps": 0}, "every_n_train_steps has to be a whole number from 1 on"),
        ({"every_n_epochs": -1}, "every_n_epochs has to be a whole .* but got -1"),
        ({"every_n_epochs": 1.5}, "every_n_epochs has to be a whole .* but got 1.5"),
        ({"metrics": 5}, "metrics has to be a list of names, but got 5"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        LearningCurves(**arguments)
