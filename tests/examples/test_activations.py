"""The comparison of activations, in a short form."""

from pathlib import Path

import pytest
import torch

from examples import activations as example
from tests.examples.scripts import assert_like_the_committed, run_main


def test_networks_have_their_activation_and_weights_that_fit() -> None:
    torch.manual_seed(0)
    x, *_ = example.make_data(0)
    for name, activation in example.ACTIVATIONS.items():
        network = example.make_network(activation, 20)
        assert sum(type(layer) is activation for layer in network) == 19
        with torch.no_grad():
            spread = float(network[:-1](x).std(0).mean())
        assert (spread > 0.05) is (name != "sigmoid"), name  # whose signals are all alike


def test_the_script_draws_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "STEPS", 20)
    picture = tmp_path / "activations.png"
    run_main(example, "--out", picture, "--seeds", 2)
    assert_like_the_committed(picture, example)
