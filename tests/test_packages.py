"""Users of ``pytorch_lightning``: all that Lightning's other package runs runs there too."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning as twin
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_practices import mixins
from lightning_practices.callbacks import BestCheckpoint, EarlyStopping, ExactResume, Penalty
from lightning_practices.mixins import EarlyStoppingMixin, TrainingPractices
from lightning_practices.modules import LightningEnsemble
from lightning_practices.plugins import FusedSyncBatchNorm
from tests import refits
from tests.test_second_fit import CASES, made
from tests.twins import twin_module

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*recomputes the running statistics of batch norms only"),
    pytest.mark.filterwarnings("ignore:.*Please add the following callbacks"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),  # the members of an ensemble
]

twin_module("refits")
TWIN: Any = twin_module("refits")
FILES: dict[str, Any] = {"lightning": refits, "twin": TWIN}


def in_both(run: Any, folder: Path) -> list[str]:
    """Return the differences of what ``run`` returns for the files of either package."""
    one, other = (run(files, folder / name) for name, files in FILES.items())
    return refits.differences(one, other, {str(folder / "lightning"): str(folder / "twin")})


@pytest.mark.parametrize("case", [case for case in CASES if case != "SkipNonFinite"])
def test_a_fit_of_every_callback(case: str, tmp_path: Path) -> None:
    def run(files: Any, folder: Path) -> Any:
        module = files.Net()
        return files.outcome(files.fit(module, made(case, folder), "easy", folder), module)

    assert not in_both(run, tmp_path)


def test_a_poisoned_fit(tmp_path: Path) -> None:
    def run(files: Any, folder: Path) -> Any:
        callbacks = (CASES if files is refits else twin_module("test_second_fit").CASES)[
            "SkipNonFinite"
        ]()
        module = files.Net()
        return files.outcome(files.fit(module, callbacks, "easy", folder), module)

    assert not in_both(run, tmp_path)


def practised(files: Any) -> Any:
    class Practised(TrainingPractices, files.Net):  # type: ignore[misc]
        pass

    return Practised


OPTIONS: dict[str, Any] = {
    "optimizer": "sgd",
    "weight_averaging": "ema",
    "early_stopping": 1,
    "gradient_clipping": 0.1,
    "schedule": "cosine",
    "penalty": Penalty(l1=0.01, proximal=True),
}


def test_all_practices_in_a_mixin(tmp_path: Path) -> None:
    def run(files: Any, folder: Path) -> Any:
        module = practised(files)(**OPTIONS)
        trainer = files.fit(module, [], "easy", folder, enable_checkpointing=True, epochs=4)
        assert trainer.checkpoint_callback.best_model_path
        best = trainer.validate(module, files.data("easy"), ckpt_path="best", verbose=False)
        return {**files.outcome(trainer, module), "best": best}

    assert not in_both(run, tmp_path)


def test_a_fit_goes_on_in_the_other_package(tmp_path: Path) -> None:
    def run(files: Any, folder: Path, then: Any) -> Any:
        module = practised(files)(**OPTIONS)
        trainer = files.fit(module, [], "easy", folder, enable_checkpointing=True, max_steps=4)
        trainer.save_checkpoint(folder / "saved.ckpt")
        module = practised(then)(**OPTIONS)
        trainer = then.trainer_of([], folder, epochs=3, enable_checkpointing=True)
        trainer.fit(module, then.data("easy"), then.data("easy"), ckpt_path=folder / "saved.ckpt")
        return {"weights": module.state_dict(), "logged": trainer.logger.lines}

    expected = run(refits, tmp_path / "expected", refits)
    for name, files, then in (("there", refits, TWIN), ("back", TWIN, refits)):
        folders = {str(tmp_path / "expected"): str(tmp_path / name)}
        assert not refits.differences(expected, run(files, tmp_path / name, then), folders)


def test_a_fit_that_ended_goes_on(tmp_path: Path) -> None:
    def run(files: Any, folder: Path) -> Any:
        trainer = files.fit(files.Net(), [ExactResume()], "easy", folder, max_steps=refits.STEPS)
        trainer.save_checkpoint(folder / "saved.ckpt")
        module = files.Net()
        trainer = files.trainer_of([ExactResume()], folder, max_steps=refits.STEPS + 1)
        trainer.fit(module, files.data("easy"), files.data("easy"), ckpt_path=folder / "saved.ckpt")
        return {**files.outcome(trainer, module), "epoch": trainer.current_epoch}

    assert not in_both(run, tmp_path)


def test_the_trainers_know_their_kinds() -> None:
    both: list[tuple[Any, list[type]]] = [
        (EarlyStopping("val_loss"), [lightning.pytorch.callbacks.EarlyStopping, EarlyStopping]),
        (EarlyStopping("val_loss"), [twin.callbacks.EarlyStopping, twin.Callback]),
        (BestCheckpoint("val_loss"), [twin.callbacks.ModelCheckpoint, BestCheckpoint]),
        (ExactResume(), [twin.Callback, Callback]),
        (FusedSyncBatchNorm(), [twin.plugins.LayerSync]),
        (LightningEnsemble([nn.Linear(1, 1)], task="binary"), [LightningModule]),
        (LightningEnsemble([TWIN.Net()], task="binary"), [twin.LightningModule]),
    ]
    for item, kinds in both:
        for one in (item, copy.deepcopy(item), pickle.loads(pickle.dumps(item))):
            assert all(isinstance(one, kind) for kind in kinds)
            assert repr(type(one)) == repr(kinds[-1]) or type(one).__module__.startswith(
                "lightning_practices."
            )


def test_an_ensemble_of_either_packages_modules(tmp_path: Path) -> None:
    def run(files: Any, folder: Path) -> Any:
        members = []
        for seed in range(2):
            member = files.Net()
            torch.manual_seed(seed)
            nn.init.normal_(member.head.weight)
            members.append(member.eval())
        ensemble = LightningEnsemble(members, task="regression")
        trainer = files.trainer_of([], folder)
        rows = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
        listed: Any = [(row, row[:1]) for row in rows]
        pairs: Any = DataLoader(listed, batch_size=2)
        tested = trainer.test(ensemble, pairs, verbose=False)
        trainer.save_checkpoint(folder / "ensemble.ckpt", weights_only=False)
        again = LightningEnsemble.load_from_checkpoint(
            folder / "ensemble.ckpt", members=[files.Net(), files.Net()], weights_only=True
        )
        return {"tested": tested, "again": again(rows), "weights": ensemble.state_dict()}

    assert not in_both(run, tmp_path)


MIXINS = [getattr(mixins, name) for name in mixins.__all__]


@pytest.mark.parametrize("mixin", [one for one in MIXINS if isinstance(one, type)])
def test_bases_of_both_packages_are_refused(mixin: type) -> None:
    is_data = issubclass(mixin, mixins.DataPracticeMixin)
    kind: Any = LightningDataModule if is_data else LightningModule
    plain = type("Plain", (getattr(twin, kind.__name__),), {})
    with pytest.raises(TypeError, match="Mixed has bases of both packages of Lightning, "):
        type("Mixed", (mixin, plain, kind), {})
    with pytest.raises(TypeError, match=rf"Alone is no .*Alone\({mixin.__name__}, {kind.__name__}"):
        type("Alone", (mixin,), {})()


@pytest.mark.parametrize("case", CASES)
def test_a_trainer_and_a_module_of_different_packages_are_refused(case: str) -> None:
    trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    for one in CASES[case]():
        if type(one).__module__.startswith("lightning_practices."):
            with pytest.raises(
                TypeError, match=r"got Trainer of lightning\.pytorch, .* one package"
            ):
                one.setup(trainer, TWIN.Net(), "fit")


LATE = """
from lightning_practices.callbacks import BestCheckpoint, EarlyStopping
early = EarlyStopping("val_loss")
assert type(early) is EarlyStopping, type(early).__mro__
import pickle, sys
assert "pytorch_lightning" not in sys.modules
import pytorch_lightning as twin
trainer = twin.Trainer(logger=False, accelerator="cpu", callbacks=[early])
try:
    early.setup(trainer, twin.LightningModule(), "fit")
except TypeError as error:
    print(error)
assert isinstance(pickle.loads(pickle.dumps(early)), twin.callbacks.EarlyStopping)
"""


def test_a_callback_made_before_the_import() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LATE], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "EarlyStopping of lightning.pytorch" in run.stdout
    assert "before callbacks are made" in run.stdout


def test_a_mixin_does_not_hide_the_steps_of_the_client() -> None:
    class Client(twin.LightningModule):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            return "the client's"

    class Mine(EarlyStoppingMixin, Client):  # type: ignore[misc]
        pass

    assert Mine().training_step() == "the client's"
