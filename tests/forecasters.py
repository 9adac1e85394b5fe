"""Small forecasts by neuralforecast and darts, whose models are ``pytorch_lightning``'s."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.surgery.clients import needs

_INPUT, _HORIZON = 8, 2  # steps in time
_VALUES = np.sin(np.arange(60) / 3).astype("float32") + np.arange(60, dtype="float32") / 50


class Fitted(NamedTuple):
    """A fitted model, a function that forecasts with it, and the callbacks of the fit."""

    module: Any
    forecast: Callable[[], Any]
    callbacks: Sequence[Any]


def _trainer(callbacks: Sequence[Any], folder: Path) -> dict[str, Any]:
    return {
        "callbacks": list(callbacks), "accelerator": "cpu", "logger": False,
        "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
        "default_root_dir": folder,
    }  # fmt: skip


def neuralforecast(
    name: str, folder: Path, callbacks: Sequence[Any] = (), **options: Any
) -> Fitted:
    """Fit a model of neuralforecast, which logs ``valid_loss`` at every fifth of 20 steps."""
    import pandas
    from neuralforecast import NeuralForecast, models

    model = getattr(models, name)(
        h=_HORIZON, input_size=_INPUT, max_steps=20, val_check_steps=5, batch_size=4,
        windows_batch_size=8, learning_rate=0.03, **_trainer(callbacks, folder), **options,
    )  # fmt: skip
    library = NeuralForecast([model], freq=1)
    steps = np.arange(len(_VALUES))
    library.fit(pandas.DataFrame({"unique_id": "a", "ds": steps, "y": _VALUES}), val_size=8)
    (copy,) = library.models  # with copies of the callbacks
    return Fitted(
        copy, lambda: library.predict().iloc[:, 2:].to_numpy(), copy.trainer_kwargs["callbacks"]
    )


def darts_series() -> tuple[Any, Any]:
    """Return series for training and validation."""
    from darts import TimeSeries

    series = TimeSeries.from_values(_VALUES)
    return series[:44], series[36:]


def darts_model(name: str, folder: Path, callbacks: Sequence[Any] = (), **options: Any) -> Any:
    """Return a model of darts that isn't fitted."""
    from darts import models

    return getattr(models, name)(
        _INPUT, _HORIZON, n_epochs=4, batch_size=8, random_state=1, work_dir=folder,
        optimizer_kwargs={"lr": 0.03}, pl_trainer_kwargs=_trainer(callbacks, folder), **options,
    )  # fmt: skip


def darts(name: str, folder: Path, callbacks: Sequence[Any] = (), **options: Any) -> Fitted:
    """Fit a model of darts, which logs ``val_loss`` at the end of each of 4 epochs of 5 steps."""
    model = darts_model(name, folder, callbacks, **options)
    train, validation = darts_series()
    model.fit(train, val_series=validation)
    # Forecasts are samples, if the model has a likelihood.
    options = {"predict_likelihood_parameters": model.likelihood is not None}
    return Fitted(model.model, lambda: model.predict(_HORIZON, **options).values(), callbacks)


NHITS = [  # the fit, the model, its options, and the value that validation logs
    pytest.param(
        neuralforecast, "NHITS",
        {"n_pool_kernel_size": [2, 2, 1], "mlp_units": 3 * [[16, 16]]}, "valid_loss",
        id="neuralforecast", marks=needs("neuralforecast"),
    ),
    pytest.param(
        darts, "NHiTSModel", {"num_layers": 2, "layer_widths": 8}, "val_loss",
        id="darts", marks=needs("darts"),
    ),
]  # fmt: skip
