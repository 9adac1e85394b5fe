"""The remedy of each error ends its finding, and the mended program trains."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_practices.advisor import advise, all_rules
from tests.advisor.programs import FAULTY, load_all

load_all()
pytestmark = [
    pytest.mark.plain,
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:Found .* module:UserWarning"),  # in eval mode, on purpose
]
ERRORS = {rule.id for rule in all_rules() if rule.severity == "error"}
MENDED = {name: one for name, one in FAULTY.items() if one.mended is not None}


def test_every_error_has_a_mended_program() -> None:
    assert {one.id for one in MENDED.values()} >= ERRORS


@pytest.mark.parametrize("name", MENDED)
def test_remedy_ends_the_finding_and_the_program_trains(name: str) -> None:
    program = FAULTY[name]
    assert program.mended is not None
    torch.manual_seed(0)
    module, data, *trainers = program.mended()
    report = advise(module, data, *trainers)
    assert program.id not in {one.id for one in report}, report
    losses: list[float] = []
    step = module.training_step

    def training_step(*args: object) -> object:
        result = step(*args)
        loss: Any = result["loss"] if isinstance(result, dict) else result
        losses.append(loss.detach().item())
        return result

    module.training_step = training_step  # type: ignore[assignment, method-assign]
    trainer = Trainer(
        max_steps=60, max_epochs=60, limit_val_batches=0, logger=DummyLogger(), accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    loaders = data if isinstance(data, tuple) else (data,)
    if hasattr(data, "prepare_data"):
        trainer.fit(module, datamodule=data)
    else:
        trainer.fit(module, *loaders)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10]), losses
