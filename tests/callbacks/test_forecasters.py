"""Callbacks in the fits of neuralforecast and darts, where they are installed."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning  # before callbacks are made
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback

from lightning_practices.callbacks import (
    EarlyStopping,
    GradientClipping,
    LearningCurves,
    ProgressiveUnfreezing,
    WeightAveraging,
)
from tests import forecasters
from tests.callbacks.scripted import same, state_of
from tests.surgery.clients import needs

pytestmark = pytest.mark.filterwarnings("ignore")  # these projects warn much

CLIP = 1e-3  # far below the norms of the gradients


def witness(monitor: str) -> Any:
    """Return a callback of ``pytorch_lightning`` that records a fit."""

    class Witness(pytorch_lightning.Callback):
        def __init__(self) -> None:
            self.validated: list[tuple[float, Any]] = []  # the value and the weights
            self.norms: list[float] = []  # of the gradients
            self.trained: list[set[str]] = []  # the parameters that changed in each step
            self.before: Any = None

        def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
            self.before = {name: p.detach().clone() for name, p in module.named_parameters()}

        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            grads = [p.grad for p in module.parameters() if p.grad is not None]
            self.norms.append(torch.nn.utils.get_total_norm(grads).item())

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            now = module.named_parameters()
            self.trained.append({n for n, p in now if not torch.equal(p, self.before[n])})

        def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
            self.weights = state_of(module)

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            if not trainer.sanity_checking:
                self.validated.append((trainer.callback_metrics[monitor].item(), self.weights))

    return Witness()


@pytest.mark.parametrize(("fit", "name", "options", "monitor"), forecasters.NHITS)
def test_practices_in_the_fit_of_a_library(
    fit: Any, name: str, options: Any, monitor: str, tmp_path: Path
) -> None:
    fitted = fit(
        name,
        tmp_path,
        [
            EarlyStopping(monitor, patience=1),
            GradientClipping(CLIP),
            LearningCurves(tmp_path / "curves.png"),
            WeightAveraging("ema", decay=0.5),
            witness(monitor),
        ],
        **options,
    )
    stopping, _, curves, _, seen = fitted.callbacks
    values = [value for value, _ in seen.validated]
    best = min(range(len(values)), key=values.__getitem__)
    assert best == len(values) - 2  # the patience ends the fit
    assert stopping.best_score.item() == pytest.approx(values[best])
    assert same(state_of(fitted.module), seen.validated[best][1])
    assert seen.norms == pytest.approx([CLIP] * len(seen.norms), rel=1e-3)
    recorded = [value for _, value in curves.history[monitor]]
    assert recorded == pytest.approx(values)
    assert curves.path.is_file()


@pytest.mark.parametrize(("fit", "name", "options", "monitor"), forecasters.NHITS)
def test_the_average_is_validated(
    fit: Any, name: str, options: Any, monitor: str, tmp_path: Path
) -> None:
    def run(*callbacks: Callback) -> Any:
        fitted = fit(name, tmp_path, [*callbacks, witness(monitor)], **options)
        return fitted.module, fitted.callbacks[-1].validated

    (module, averaged), (plain, validated) = run(WeightAveraging("ema", decay=0.5)), run()
    assert same(state_of(module), averaged[-1][1])
    assert same(state_of(plain), validated[-1][1])
    assert not same(averaged[-1][1], validated[-1][1])


@pytest.mark.parametrize(("fit", "name", "options", "monitor"), forecasters.NHITS)
def test_blocks_are_unfrozen_from_the_last_one(
    fit: Any, name: str, options: Any, monitor: str, tmp_path: Path
) -> None:
    fitted = fit(name, tmp_path, [ProgressiveUnfreezing(), witness(monitor)], **options)
    trained = fitted.callbacks[-1].trained
    blocks = [{name.split(".")[1] for name in names} for names in trained]
    assert blocks == [{"2"}] * 10 + [{"0", "1", "2"}] * 10


@needs("darts")
def test_early_stopping_without_a_series_of_validation(tmp_path: Path) -> None:
    model = forecasters.darts_model(
        "NHiTSModel", tmp_path, [EarlyStopping("val_loss")], num_layers=2, layer_widths=8
    )
    train, _ = forecasters.darts_series()
    with pytest.raises(MisconfigurationException, match="this fit runs no validation"):
        model.fit(train)


@needs("darts")
def test_a_saved_model_goes_on_with_its_callbacks(tmp_path: Path) -> None:
    callbacks = [EarlyStopping("val_loss", patience=1), WeightAveraging("ema")]
    model = forecasters.darts_model("NHiTSModel", tmp_path, callbacks, num_layers=2, layer_widths=8)
    train, validation = forecasters.darts_series()
    model.fit(train, val_series=validation)
    model.save(str(tmp_path / "model.pt"))
    # darts loads no callbacks of other packages unless the file is trusted.
    loaded = type(model).load(str(tmp_path / "model.pt"), trusted=True)
    assert (loaded.predict(2).values() == model.predict(2).values()).all()
    loaded.fit(train, val_series=validation, epochs=2)
    stopping, averaging = loaded.trainer_params["callbacks"]
    assert (type(stopping), type(averaging)) == tuple(type(one) for one in callbacks)
    assert stopping.best_epoch in (0, 1)
    assert averaging.averaged == 10
