"""Overfit scikit-learn's digits on purpose, and show it in the learning curves.

Two twins learn from 150 digits, of which a fifth has a wrong label. The plain one learns the wrong
labels by heart: its training loss falls to 0, and its validation loss rises again after the marked
best step. The other uses dropout, smooths labels while training and lowers its learning rate: its
validation loss doesn't rise again. The picture has the losses of the plain twin above:

    python examples/curves.py
"""

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib import rc_context
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lightning_practices.callbacks import LearningCurves
from lightning_practices.files import replacing
from lightning_practices.mixins import LearningRateScheduleMixin
from lightning_practices.nn import Dropout, LabelSmoothingCrossEntropyLoss, LayerNorm
from lightning_practices.schedules import LearningRateSchedule

CLASSES, PIXELS, WIDTH = 10, 64, 256
TRAIN, WRONG, BATCH_SIZE = 150, 0.2, 50
EPOCHS, LEARNING_RATE = 80, 2e-3
DPI = 300  # makes a picture of about 1400 pixels, as wide as those of the other examples
WARMUP, SCALE = 10, 100  # steps of the warmup, and steps in which the rate falls to a tenth


class Plain(LightningModule):
    """A multilayer perceptron over the 64 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.network = self.make_network()
        self.loss: Callable[[Tensor, Tensor], Tensor] = self.make_loss()

    def make_network(self) -> nn.Sequential:
        """Return two hidden layers."""
        return nn.Sequential(
            nn.Linear(PIXELS, WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, CLASSES),
        )  # fmt: skip

    def make_loss(self) -> nn.Module:
        """Return the loss."""
        return nn.CrossEntropyLoss()

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        z = self.network(x)
        # Without smoothing, to compare with validation.
        self.log("train_loss", nn.functional.cross_entropy(z, y))
        return self.loss(z, y)

    @override
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", self.loss(self.network(x), y))

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)


class Regularised(LearningRateScheduleMixin, Plain):
    """The same with practices."""

    def __init__(self) -> None:
        super().__init__(
            schedule=LearningRateSchedule("exponential", warmup_steps=WARMUP, steps=SCALE)
        )

    @override
    def make_network(self) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(PIXELS, WIDTH), LayerNorm(WIDTH), nn.ReLU(), Dropout(0.5),
            nn.Linear(WIDTH, WIDTH), LayerNorm(WIDTH), nn.ReLU(), Dropout(0.5),
            nn.Linear(WIDTH, CLASSES),
        )  # fmt: skip

    @override
    def make_loss(self) -> nn.Module:
        return LabelSmoothingCrossEntropyLoss()


def make_loaders() -> list[DataLoader[tuple[Tensor, ...]]]:
    """Return few digits with some wrong labels to train on, and all others to validate."""
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32) / 16  # grey levels from 0 to 16
    y = torch.tensor(labels)
    order = torch.randperm(len(y))
    train, val = order[:TRAIN], order[TRAIN:]
    wrong = train[torch.rand(TRAIN) < WRONG]
    y[wrong] = (y[wrong] + torch.randint(1, CLASSES, wrong.shape)) % CLASSES
    return [
        DataLoader(TensorDataset(x[train], y[train]), BATCH_SIZE, shuffle=True),
        DataLoader(TensorDataset(x[val], y[val]), len(val)),
    ]


def fit(model: Plain, path: Path) -> LearningCurves:
    """Train, and draw the curves to ``path``."""
    train, val = make_loaders()
    curves = LearningCurves(path, every_n_train_steps=1)
    trainer = Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=1, callbacks=[curves],
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, train, val)
    return curves


def run(folder: Path) -> dict[str, LearningCurves]:
    """Fit both twins, and return the curves of each."""
    found = {}
    with rc_context({"savefig.dpi": DPI}):
        for twin in (Plain, Regularised):
            seed_everything(0, verbose=False)
            found[twin.__name__] = fit(twin(), folder / f"{twin.__name__}.png")
    return found


def stack(pictures: list[Path], out: Path) -> None:
    """Stack the left halves of pictures, the losses. On the right are the learning rates."""
    rows = [Image.open(picture).convert("RGB") for picture in pictures]
    sheet = Image.new("RGB", (rows[0].width // 2, sum(row.height for row in rows)))
    for i, row in enumerate(rows):
        sheet.paste(row, (0, i * row.height))
    with replacing(out) as part:
        sheet.save(part, optimize=True)


def main() -> None:
    """Draw the picture, and print the best and last losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(__file__).with_suffix(".png")
    parser.add_argument("--out", type=Path, default=default, help="file to draw to")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the data is in memory
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")  # there is no logger
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's, on torch 2.12 and later
    torch.set_num_threads(1)  # for a network this small, more threads only wait for each other
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder))
        stack([Path(folder, f"{name}.png") for name in found], arguments.out)
    for name, curves in found.items():
        step, last = curves.history["val_loss"][-1]
        print(
            f"{name}: best val_loss {curves.best_score:.3f} at step {curves.best_step},"
            f" {last:.3f} at step {step}"
        )
    print(f"Wrote {arguments.out}")


if __name__ == "__main__":
    main()
