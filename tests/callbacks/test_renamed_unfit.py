"""Copies of weights that don't fit a renamed module are named in an error, or in a warning."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from tests.callbacks.renaming import (
    FILES,
    HOLDERS,
    InPlace,
    Renamed,
    fit,
    fit_with_checkpoints,
    new_name,
)
from tests.callbacks.scripted import FILTERS

pytestmark = FILTERS


@pytest.fixture(scope="module", params=HOLDERS)
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """Return the checkpoints of a fit."""
    folder = tmp_path_factory.mktemp("fit")
    fit_with_checkpoints(request.param, folder)
    return request.param, folder


class Marking(Renamed):
    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint["layout"] == 1:
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {new_name(name): value for name, value in state.items()}
            checkpoint["layout"] = 2


class Half(InPlace):
    """Renames the state_dict alone: of any other dict it doesn't rename the bias."""

    calls = 0

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.calls += 1
        if self.calls > 1:
            state = checkpoint["state_dict"]
            state["body.0.bias"] = state.pop("trunk.0.bias")


class Reshaped(InPlace):
    calls = 0

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.calls += 1
        if self.calls > 1:
            checkpoint["state_dict"]["head.weight"] = torch.zeros(1, 5)


NAMED = {
    "ema": "the (averages|weights under training) of WeightAveraging",
    "swa": "the (averages|weights under training) of WeightAveraging",
    "early stopping": r"the best weights of EarlyStopping\(monitor='val_loss'\)",
    "both": "the weights under training of WeightAveraging",
    "unfreezing": "the best weights of ProgressiveUnfreezing",
    "snapshots": "the snapshot of step 4 of SnapshotEnsemble",
}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            Half,
            "the names of {} in the checkpoint don't fit Half, missing trunk.0.bias and unexpected"
            r" body.0.bias: .*changes|{} .* don't fit Half, missing trunk.0.bias and unexpected"
            " body.0.bias: .*in the same way",
        ),
        (Reshaped, r"the shapes of {} .*Reshaped: head.weight: \(1, 5\) .*, \(1, 4\) now"),
        (
            Marking,
            r"{} .* missing trunk.0.bias, trunk.0.weight, .* and unexpected body.0.bias, .* and 2"
            " more: Marking.on_load_checkpoint gets each copy .* not by another entry",
        ),
    ],
)
def test_names_that_do_not_fit_are_an_error(
    whole: tuple[str, Path], kind: type[Renamed], message: str
) -> None:
    name, folder = whole
    expected = message.replace("{}", NAMED[name])
    with pytest.raises(MisconfigurationException, match=expected):
        fit(kind(), *HOLDERS[name]("trunk"), resume=folder / FILES[2])


def test_an_error_of_the_hook_says_what_it_was_called_for(
    whole: tuple[str, Path],
) -> None:
    class Raises(InPlace):
        calls = 0

        @override
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            super().on_load_checkpoint(checkpoint)
            self.calls += 1
            if self.calls > 1:
                raise KeyError("a user's mistake")

    name, folder = whole
    with pytest.raises(KeyError, match="a user's mistake") as caught:
        fit(Raises(), *HOLDERS[name]("trunk"), resume=folder / FILES[2])
    (note,) = caught.value.__notes__
    assert note.startswith("on_load_checkpoint of Raises was called for a copy of the weights: it")
    assert note.endswith("or `pop(key, None)`")


class Lax(Renamed):
    """Takes a checkpoint with other names, as it loads without strict names."""

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False


@pytest.mark.filterwarnings("ignore:the names of the")
def test_without_strict_names_a_warning_names_what_is_left_out(
    whole: tuple[str, Path],
) -> None:
    name, folder = whole
    message = (
        f"{NAMED[name]} .* don't fit Lax, missing trunk.0.bias, .* and unexpected body.0.bias, .*"
        "missing entries are those that the module has now"
    )
    with pytest.warns(UserWarning, match=message):
        fit(Lax(), *HOLDERS[name]("trunk"), resume=folder / FILES[2])
