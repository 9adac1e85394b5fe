"""The picture of initial weights, drawn as a user draws it, and what is on it."""

import math
from itertools import pairwise
from pathlib import Path

import pytest

from examples import initialisation
from lightning_practices.init import AuditedLayer
from tests.examples.scripts import assert_like_the_committed, run_main


@pytest.fixture(scope="module")
def made() -> initialisation.Audits:
    return initialisation.make_audits()


def row(made: initialisation.Audits, start: str) -> list[AuditedLayer]:
    (layers,) = (layers for name, layers in made.starts.items() if start in name)
    assert len(layers) == initialisation.LAYERS
    assert all(
        sum(layer.histogram) == initialisation.SAMPLES * initialisation.UNITS for layer in layers
    )
    return layers


def test_small_weights_let_activations_and_gradients_die_out(made: initialisation.Audits) -> None:
    layers = row(made, "0.01")
    factor = 0.01 * math.sqrt(initialisation.UNITS)
    for before, after in pairwise(layers[2:]):  # as good as linear
        assert after.std / before.std == pytest.approx(factor, rel=0.1)
        assert before.gradient_std / after.gradient_std == pytest.approx(factor, rel=0.1)


def test_large_weights_saturate(made: initialisation.Audits) -> None:
    for layer in row(made, "N(0, 1)"):
        assert layer.saturated > 0.9
        assert layer.histogram[0] + layer.histogram[-1] > 0.9 * sum(layer.histogram)


def test_xavier_suits_tanh_and_he_relu(made: initialisation.Audits) -> None:
    assert all(0.15 < layer.std < 0.7 for layer in row(made, "tanh, Xavier"))
    assert all(0.5 < layer.std < 1.3 for layer in row(made, "ReLU, He"))
    layers = row(made, "ReLU, Xavier")
    assert layers[-1].std / layers[0].std == pytest.approx(2**-4.5, rel=0.5)


@pytest.mark.parametrize("activation", initialisation.TEXTBOOK)
def test_auto_holds_over_thirty_layers(made: initialisation.Audits, activation: str) -> None:
    auto, textbook = made.auto[activation], made.textbook[activation]
    assert len(auto) == len(textbook) == initialisation.DEPTH
    assert all(0.2 < layer.std < 5 for layer in auto)
    assert all(0.2 < layer.gradient_std < 10 for layer in auto)
    if activation != "ReLU":
        assert textbook[-1].std < 0.25


def test_the_picture_is_drawn_where_it_is_told(
    made: initialisation.Audits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "new" / "initialisation.png"
    monkeypatch.setattr(initialisation, "make_audits", lambda: made)
    run_main(initialisation, "--out", out)
    assert capsys.readouterr().out == f"Wrote {out}\n"
    assert_like_the_committed(out, initialisation)
