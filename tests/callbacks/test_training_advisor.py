"""Faults that only training shows are found; healthy fits raise no alarm."""

import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_practices.advisor import Rule, all_rules, training_rules
from lightning_practices.callbacks import LearningCurves, TrainingAdvisor
from lightning_practices.callbacks._training_advisor.schedule import next_look
from tests.advisor.programs import HEALTHY, Task, digit_loaders, load_all, mlp
from tests.callbacks import (  # noqa: F401, they declare more
    faulty_fits_of_loss,
    faulty_fits_of_targets,
    faulty_fits_since_start,
)
from tests.callbacks.advised import MARKS, fit_of, fitted
from tests.callbacks.faulty_fits import FAULTY_FITS, Fit
from tests.processes import run

load_all()
pytestmark = MARKS
# Those that take longer than a second for their steps are measured by hand.
_SLOW = {
    "tuned.resnet_by_torchvisions_recipe", "tuned.vision_transformer", "sequences.gru_on_text",
    "sequences.lstm_on_text", "sequences.streamed_text_without_length",
    "sequences.a_model_that_computes_its_loss", "sequences.padded_sequences_with_a_mask",
    "tuned.thirty_layers_with_residuals", "sequences.decoder_on_text",
}  # fmt: skip
# Of these topics the programs are fitted: the others come close to what `advise` looks for.
_TOPICS = ("classifiers", "regressions", "sequences", "generative", "tuned")


@pytest.mark.parametrize("name", FAULTY_FITS)
def test_fault_is_found(name: str) -> None:
    torch.manual_seed(0)
    program = FAULTY_FITS[name]
    report = fit_of(program.make()).report
    (found,) = [one for one in report if one.id == program.id]
    assert found.step is not None
    if program.module:
        assert program.module in found.modules, report


@pytest.mark.parametrize(
    "name", [name for name in HEALTHY if name.startswith(_TOPICS) and name not in _SLOW]
)
def test_healthy_fit_raises_no_alarm(name: str) -> None:
    torch.manual_seed(0)
    module, data, *_ = HEALTHY[name]()
    train, val = data if isinstance(data, tuple) else (data, None)
    report = fitted(module, train, val, 70).report
    assert [one for one in report if one.severity != "hint"] == [], report


def test_every_rule_has_two_faulty_fits() -> None:
    ids = [one.id for one in FAULTY_FITS.values()]
    assert all(ids.count(rule.id) >= 2 for rule in training_rules())
    assert not {rule.id for rule in training_rules()} & {rule.id for rule in all_rules()}


def test_rules_can_be_ignored() -> None:
    made = FAULTY_FITS["never_zeroed"].make()
    advisor = fit_of(made, advisor=TrainingAdvisor(ignore=["LP815"]))
    assert "LP815" not in {*advisor.report.checked, *(one.id for one in advisor.report)}
    with pytest.raises(ValueError, match="ignore has 'LP9'"):
        TrainingAdvisor(ignore=["LP9"])


def test_a_rule_that_fails_ends_no_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: Any) -> Any:
        raise ZeroDivisionError("of nothing")
        yield

    own = Rule("LP899", "error", "p", "m", "h", "s", broken)
    rules = (own, *training_rules())
    monkeypatch.setattr(TrainingAdvisor, "_rules", property(lambda self: rules))
    report = fit_of(FAULTY_FITS["never_zeroed"].make()).report
    [failed] = [one for one in report if one.id == "LP000"]
    assert "rule LP899 failed: ZeroDivisionError: of nothing" in failed.message
    assert "LP815" in {one.id for one in report}


def test_each_finding_is_shown_once_and_all_in_the_end(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "lightning.pytorch"):
        fit_of(FAULTY_FITS["never_zeroed"].make())
    shown = [one for one in caplog.records if "LP815" in one.getMessage()]
    assert [one.levelname for one in shown] == ["WARNING", "INFO"]
    found, table = (one.getMessage() for one in shown)
    assert found.startswith("TrainingAdvisor: error LP815: ")
    assert "at step " in found
    assert "To mend it: optimizer.zero_grad()" in found
    assert "optimizer.zero_grad()" in table


def test_watching_changes_nothing() -> None:
    """Weights and losses are bit for bit those of a fit without the advisor."""
    found = []
    for advisor in (TrainingAdvisor(every_n_steps=1), None):
        torch.manual_seed(0)
        module = Task(nn.Sequential(mlp(64, 32, 32), nn.Dropout(), nn.Linear(32, 10)))
        callbacks: list[Callback] = [] if advisor is None else [advisor]
        torch.manual_seed(1)
        trainer = Trainer(
            max_steps=30, max_epochs=-1, logger=DummyLogger(), accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
            enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(module, *digit_loaders())
        found.append([*module.state_dict().values(), torch.get_rng_state()])
        assert not any(part._forward_hooks for part in module.modules())
        assert not trainer.optimizers[0]._optimizer_step_post_hooks
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_measures_are_those_of_the_step() -> None:
    """Root mean squares against those that float64 gives, for plain gradient descent."""
    torch.manual_seed(0)
    net = mlp(64, 16, 10).double()
    x, y = next(iter(digit_loaders()[0]))
    x = x.double()
    weight = net.get_parameter("1.weight")
    (gradient,) = torch.autograd.grad(functional.cross_entropy(net(x), y), [weight])
    rms = gradient.square().mean().sqrt().item()
    size = weight.detach().square().mean().sqrt().item()
    module = Task(net, optimizer=lambda p: torch.optim.SGD(p, lr=0.25))
    train = DataLoader(TensorDataset(x, y), len(x))
    advisor = fitted(module, train, steps=2, gradient_clip_val=1e-2)
    look = advisor._looks[0]
    seen, norms = look.weights["net.1.weight"], look.norms[0]
    assert [name for name, _ in look.layers(0)] == ["net.1.weight", "net.3.weight"]
    assert seen.gradient == pytest.approx(rms, rel=1e-5)
    assert seen.weight == pytest.approx(size, rel=1e-5)
    assert norms.after == pytest.approx(1e-2, rel=1e-4)
    assert seen.update == pytest.approx(0.25 * rms * norms.after / norms.before, rel=1e-4)
    assert look.losses[0].value == pytest.approx(advisor._history.series()["loss"].points()[0][1])


@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 3}, {"fast_dev_run": 2}])
def test_other_ways_to_fit(options: dict[str, Any]) -> None:
    advisor = fitted(Task(mlp(64, 32, 10)), *digit_loaders(), steps=40, **options)
    assert len(advisor._looks) >= 2
    assert all(look.weights["net.1.weight"].update > 0 for look in advisor._looks)
    assert [one for one in advisor.report if one.severity != "hint"] == []


def test_several_optimizers_are_measured_around_their_own_steps() -> None:
    module, data = HEALTHY["generative.adversarial_networks"]()[:2]
    look = fitted(module, data, steps=20)._looks[2]
    owners = {name.partition(".")[0]: one.optimizer for name, one in look.weights.items()}
    assert owners == {"net": 0, "critic": 1}
    assert all(one.update > 0 for one in look.weights.values())


def test_looks_are_frequent_first_and_have_no_common_divisor() -> None:
    places = [-1]
    while places[-1] < 2000:
        places.append(next_look(places[-1], 100))
    assert places[1:5] == [0, 1, 2, 3]
    gaps = [b - a for a, b in itertools.pairwise(places)][-10:]
    assert len(set(gaps)) > 5
    assert all(74 <= gap <= 126 for gap in gaps)
    assert sum(place % 2 for place in places[-10:]) in range(2, 9)
    assert next_look(places[-2], 100) == next_look(places[-1] - 1, 100) == places[-1]


def test_a_resumed_fit_finds_the_same(tmp_path: Path) -> None:
    def module() -> Task:
        torch.manual_seed(0)
        return Task(mlp(64, 64, 10), optimizer=lambda p: torch.optim.Adam(p, 1e-9))

    train = DataLoader(digit_loaders()[0].dataset, 64, drop_last=True)
    whole = fitted(module(), train, steps=90)
    # 44 steps are two epochs: in the middle of one the loader would begin anew
    saving = ModelCheckpoint(tmp_path, "half", every_n_train_steps=44, save_top_k=1)
    fitted(module(), train, steps=44, callbacks=[saving], enable_checkpointing=True)
    torch.load(tmp_path / "half.ckpt", weights_only=True)  # primitives and tensors alone
    resumed = TrainingAdvisor()
    trainer = Trainer(
        max_steps=90, max_epochs=-1, logger=DummyLogger(), accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, callbacks=[resumed],
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module(), train, ckpt_path=tmp_path / "half.ckpt")
    assert resumed.report.findings == whole.report.findings != []
    a, b = whole.state_dict(), resumed.state_dict()
    assert a["looks"] == b["looks"]
    assert torch.equal(a["losses"]["loss"].pop("bins"), b["losses"]["loss"].pop("bins"))
    assert a["losses"] == b["losses"]


def _on_two_ranks(rank: int) -> tuple[list[Any], list[int], list[Any]]:
    made = FAULTY_FITS["dead_convolution"].make()
    made.steps = 35
    warnings.simplefilter("ignore")
    advisor = fit_of(made, devices=2, strategy="ddp")
    weights = [one.weights for one in advisor._looks]
    return advisor.report.findings, [one.step for one in advisor._looks], weights


def test_ranks_agree() -> None:
    first, second = run(_on_two_ranks, [(0,), (1,)])
    assert repr(first) == repr(second)  # nan differs from itself
    assert "LP804" in {one.id for one in first[0]}


def test_findings_are_marked_on_the_curves(tmp_path: Path) -> None:
    curves = LearningCurves(tmp_path / "curves.svg")
    made = FAULTY_FITS["never_zeroed"].make()
    advisor = fit_of(Fit(made.module, made.train, steps=made.steps, callbacks=(curves,)))
    (step,) = [one.step for one in advisor.report if one.id == "LP815"]
    assert [(one.step, one.id, one.severity) for one in curves.marks][:1] == [
        (step, "LP815", "error")
    ]
    assert "LP815" in (tmp_path / "curves.svg").read_text()
