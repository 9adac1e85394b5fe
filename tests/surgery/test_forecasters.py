"""Fused models of neuralforecast and darts, where they are installed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_practices.surgery import fuse
from tests import forecasters
from tests.surgery.clients import needs

pytestmark = pytest.mark.filterwarnings("ignore")  # these projects warn much

_TRANSFORMER: dict[str, Any] = {"d_model": 8, "nhead": 2, "num_encoder_layers": 1,
                                "num_decoder_layers": 1, "dim_feedforward": 16}  # fmt: skip
# The model, its options, the number of replaced layers, and the classes that aren't served.
NEURALFORECAST: dict[str, tuple[dict[str, Any], int, set[str]]] = {
    "NHITS": ({"mlp_units": 3 * [[8, 8]], "dropout_prob_theta": 0.1}, 9, {"TemporalNorm"}),
    "TFT": ({"hidden_size": 8, "n_head": 2}, 18, {"TemporalNorm"}),
    "PatchTST": (
        {"hidden_size": 8, "n_heads": 2, "linear_hidden_size": 8, "patch_len": 4, "stride": 2,
         "encoder_layers": 1}, 9, {"TemporalNorm"},
    ),
}  # fmt: skip
DARTS: dict[str, tuple[dict[str, Any], int]] = {
    "TransformerModel": (_TRANSFORMER, 16),
    "TFTModel": ({"hidden_size": 8, "num_attention_heads": 2, "add_relative_index": True}, 14),
    "TiDEModel": ({"hidden_size": 8, "dropout": 0.1, "use_layer_norm": True}, 3),
}


def agree(fitted: forecasters.Fitted, replaced: int) -> Any:
    before = fitted.forecast()
    assert (fitted.forecast() == before).all()
    report = fuse(fitted.module)
    assert len(report.replaced) == replaced
    after = fitted.forecast()
    assert np.isfinite(after).all()
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    return report


@needs("neuralforecast")
@pytest.mark.parametrize("name", NEURALFORECAST)
def test_a_forecast_of_neuralforecast(name: str, tmp_path: Path) -> None:
    options, replaced, left = NEURALFORECAST[name]
    report = agree(forecasters.neuralforecast(name, tmp_path, **options), replaced)
    assert {layer.cls.rpartition(".")[2] for layer in report.not_served} == left
    assert not report.skipped


@needs("darts")
@pytest.mark.parametrize("name", DARTS)
def test_a_forecast_of_darts(name: str, tmp_path: Path) -> None:
    options, replaced = DARTS[name]
    report = agree(forecasters.darts(name, tmp_path, **options), replaced)
    # Its dropout may also be on in evaluation, by a method of its own.
    assert {layer.reason for layer in report.skipped} == {"MonteCarloDropout overrides forward"}
    assert not report.not_served


@needs("darts")
def test_dropout_of_darts_is_on_in_forecasts_if_asked(tmp_path: Path) -> None:
    model = forecasters.darts_model("TransformerModel", tmp_path, **_TRANSFORMER)
    train, validation = forecasters.darts_series()
    model.fit(train, val_series=validation)
    fuse(model.model)
    pairs = [[model.predict(2, mc_dropout=on).values() for _ in range(2)] for on in (False, True)]
    assert [np.array_equal(*pair) for pair in pairs] == [True, False]
