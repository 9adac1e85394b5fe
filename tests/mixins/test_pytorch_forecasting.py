"""The mixins before a real class of another project, where it is installed."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from lightning_practices.mixins import TrainingPractices
from lightning_practices.optim import Optimizer

forecasting: Any = pytest.importorskip("pytorch_forecasting", exc_type=ImportError)
pandas: Any = pytest.importorskip("pandas", exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore")  # that project warns much


class Mine(TrainingPractices, forecasting.TemporalFusionTransformer):  # type: ignore[misc]
    pass


def series() -> Any:
    steps = [*range(24)]
    frame = pandas.DataFrame({"step": steps, "y": [float(s % 5) for s in steps], "group": "a"})
    return forecasting.TimeSeriesDataSet(
        frame, time_idx="step", target="y", group_ids=["group"], max_encoder_length=4,
        max_prediction_length=2, time_varying_unknown_reals=["y"],
    )  # fmt: skip


def fit(module: Any, data: Any, folder: Path) -> tuple[Trainer, Path]:
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=1, limit_val_batches=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, data.to_dataloader(batch_size=4), data.to_dataloader(False, batch_size=4))
    trainer.save_checkpoint(folder / "net.ckpt")
    return trainer, folder / "net.ckpt"


def test_a_temporal_fusion_transformer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its checkpoints hold objects, and its load_from_checkpoint takes no weights_only.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    data, plain = series(), forecasting.TemporalFusionTransformer
    options = {"learning_rate": 0.01, "hidden_size": 4, "hidden_continuous_size": 4}
    module = Mine.from_dataset(data, **options, early_stopping=7)
    trainer, path = fit(module, data, tmp_path)
    (group,) = trainer.optimizers[0].param_groups
    assert (type(trainer.optimizers[0]).__name__, group["lr"]) == ("Adam", 0.01)
    loaded: Any = Mine.load_from_checkpoint(path)
    assert (loaded.early_stopping.patience, loaded.hparams["learning_rate"]) == (7, 0.01)
    assert type(plain.load_from_checkpoint(path)) is plain
    _, path = fit(plain.from_dataset(data, **options), data, tmp_path)
    loaded = Mine.load_from_checkpoint(path, optimizer=Optimizer("sgd", lr=0.5))
    assert (loaded.hparams["learning_rate"], loaded.early_stopping.patience) == (0.01, 10)
    trainer, _ = fit(loaded, data, tmp_path)
    assert type(trainer.optimizers[0]).__name__ == "SGD"
    with pytest.raises(TypeError, match="TrainingPractices and BaseModel both take an argument"):
        Mine.from_dataset(data, optimizer="ranger")
