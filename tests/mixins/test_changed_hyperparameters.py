"""A hyperparameter that changes after construction is that of the module that is loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.tuner.tuning import Tuner
from torch import nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices import mixins
from tests.callbacks.scripted import FILTERS
from tests.mixins.test_saved_arguments import OWN, Quiet, Task, held, saved

pytestmark = FILTERS


class Options(Task):
    """A base with an argument that may change in place, and its own optimizer."""

    def __init__(self, lr: float = 0.1, options: dict[str, Any] | None = None) -> None:
        options = {"depth": 1} if options is None else options
        super().__init__()
        self.save_hyperparameters()

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.hparams["lr"])


class Through(mixins.OptimizerMixin, mixins.EarlyStoppingMixin, Options):
    pass


class Fixed(mixins.OptimizerMixin, Options):
    """A class that takes none of the arguments of the next class."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()


class Named(mixins.OptimizerMixin, Options):
    def __init__(self, lr: float = 0.1, **others: Any) -> None:
        super().__init__(lr=lr, **others)


class BelowNamed(Named):
    def __init__(self, width: int = 1, **others: Any) -> None:
        super().__init__(**others)


class OwnBase(mixins.OptimizerMixin, LightningModule):
    def __init__(self, lr: float = 0.1, options: Any = None, **practices: Any) -> None:
        super().__init__(**practices)
        options = {"depth": 1} if options is None else options
        self.save_hyperparameters()
        self.net = nn.Linear(1, 1)


class BelowOwnBase(OwnBase):
    def __init__(self, width: int = 1, **others: Any) -> None:
        super().__init__(**others)


class Mute(Quiet):
    """A base that saves nothing, so that the hyperparameters are those set by hand."""

    def __init__(self, lr: float = 0.1, options: Any = None) -> None:
        super().__init__()
        self.seen = lr, options


class BelowMute(mixins.OptimizerMixin, Mute):
    pass


@pytest.mark.parametrize(
    "kind", [Through, Fixed, Named, BelowNamed, OwnBase, BelowOwnBase, BelowMute]
)
def test_a_hyperparameter_left_at_its_default_may_change(kind: Any, tmp_path: Path) -> None:
    module = kind()
    module.hparams.lr = 0.75
    module.hparams.setdefault("options", {})["depth"] = 9
    for _ in range(2):  # of the loaded module too
        path = saved(module, tmp_path)
        module = kind.load_from_checkpoint(path, weights_only=True)
        if kind is BelowMute:
            assert module.seen == (0.75, {"depth": 9})
            return
        assert (module.hparams["lr"], module.hparams["options"]) == (0.75, {"depth": 9})
    if issubclass(kind, Options):
        assert Options.load_from_checkpoint(path).hparams["lr"] == 0.75
    if kind is not Fixed:
        assert kind.load_from_checkpoint(path, lr=0.5).hparams["lr"] == 0.5


def test_the_rate_that_the_finder_gives_the_optimizer_of_the_next_class(tmp_path: Path) -> None:
    module = Through()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, max_epochs=1,
    )  # fmt: skip
    rows: Any = DataLoader(torch.ones(24, 3), batch_size=1)  # type: ignore[arg-type]
    found = Tuner(trainer).lr_find(module, rows, num_training=20, early_stop_threshold=None)
    assert found is not None
    rate = found.suggestion()
    assert module.hparams["lr"] == rate
    assert rate != 0.1
    loaded: Any = Through.load_from_checkpoint(saved(module, tmp_path))
    assert loaded.configure_optimizers().param_groups[0]["lr"] == rate


def test_what_the_own_class_derives_is_derived_again(tmp_path: Path) -> None:
    class Deriving(mixins.OptimizerMixin, Options):
        def __init__(self, width: int = 2, **others: Any) -> None:
            super().__init__(lr=width / 8, **others)

    module = Deriving()
    module.hparams["lr"] = 0.75
    module.hparams["options"] = {"depth": 2}
    loaded = Deriving.load_from_checkpoint(saved(module, tmp_path), width=4)
    assert (loaded.hparams["lr"], loaded.hparams["options"]) == (0.5, {"depth": 2})


def test_what_a_class_changes_itself_has_not_changed(tmp_path: Path) -> None:
    class Changing(Task):
        def __init__(self, lr: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.hparams["lr"] *= 2

    class Pass(mixins.OptimizerMixin, Changing):
        pass

    path = saved(Pass(), tmp_path)
    assert "lr" not in held(path)[OWN]
    assert Pass.load_from_checkpoint(path).hparams["lr"] == 0.2
