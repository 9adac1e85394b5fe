"""Averaged weights in checkpoints, and in fits that go on from them."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from typing_extensions import override

from lightning_practices.callbacks import WeightAveraging
from tests.callbacks.averaging import (
    KEY,
    STATE,
    VALIDATION,
    Net,
    alike,
    averaged,
    fit,
)
from tests.callbacks.scripted import (
    FILTERS,
    At,
    State,
    fail,
    interrupt,
    same,
    saves,
    state_of,
)

pytestmark = FILTERS

ARGUMENTS: list[dict[str, Any]] = [
    {"decay": 0.6},
    {"decay": 0.6, "start": 6, "frequency": 3, "decay_warmup": True},
    {"kind": "swa", "start": 1},
    {"kind": "swa", "interval": "step", "start": 0.3},
]


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)  # type: ignore[no-any-return]


def final(arguments: dict[str, Any], **options: Any) -> Net:
    """Return a module of a fit that is never interrupted."""
    module = Net()
    fit(module, WeightAveraging(**arguments), **options)
    return module


def assert_goes_on(path: Path, arguments: dict[str, Any], expected: Net, **options: Any) -> None:
    """Resume from a checkpoint, and expect what was without."""
    module, averaging = Net(), WeightAveraging(**arguments)
    fit(module, averaging, resume=path, **options)
    assert all(same(state, expected.trained[step]) for step, state in module.trained.items())
    assert all(same(state, expected.seen[step]) for step, state in module.seen.items())
    assert same(state_of(module), state_of(expected))


# What they hold.


def test_a_checkpoint_holds_both(tmp_path: Path) -> None:
    module = Net()
    fit(module, WeightAveraging(decay=0.6, start=3), saves(tmp_path, every_n_train_steps=1))
    for step in range(1, 17):
        saved = load(tmp_path / f"step={step}.ckpt")
        count = max(step - 3, 0)
        assert saved["callbacks"][STATE]["averaged"] == count
        if not count:
            assert KEY not in saved
            assert same(saved["state_dict"], module.trained[step])
            continue
        expected = averaged([module.trained[s] for s in range(4, step + 1)], 0.6)
        assert alike(saved["state_dict"], expected)
        assert saved[KEY]["averages"] == "state_dict"  # written once
        assert same(saved[KEY]["current"], module.trained[step])
    loaded = Net.load_from_checkpoint(tmp_path / "step=9.ckpt", weights_only=True)
    expected = averaged([module.trained[s] for s in range(4, 10)], 0.6)
    assert alike(state_of(loaded), expected)


def test_the_weights_of_the_fit_are_not_touched_by_saving(tmp_path: Path) -> None:
    module, plain = Net(), Net()
    fit(module, WeightAveraging(decay=0.6), saves(tmp_path, every_n_train_steps=1))
    fit(plain)
    assert all(same(module.trained[step], plain.trained[step]) for step in plain.trained)


def test_the_best_checkpoint_is_what_was_validated(tmp_path: Path) -> None:
    module = Net(values=(3.0, 1.0, 2.0, 2.0))
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss")
    trainer = fit(module, WeightAveraging(decay=0.6), checkpoint)
    assert same(load(Path(checkpoint.best_model_path))["state_dict"], module.seen[8])
    trainer.validate(module, VALIDATION, ckpt_path="best", weights_only=True, verbose=False)
    assert same(module.seen[16], module.seen[8])  # step 16 is that of the Trainer still
    assert same(state_of(module), module.seen[8])


def test_a_state_of_other_names_and_values(tmp_path: Path) -> None:
    class Renamed(Net):
        @override
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            state = super().state_dict(*args, **kwargs)
            return {f"renamed.{name}": value.double() for name, value in state.items()}

        @override
        def get_extra_state(self) -> Any:
            return torch.tensor(3)

    module, plain = Renamed(), Net()
    fit(module, WeightAveraging(decay=0.6), saves(tmp_path, every_n_train_steps=6))
    fit(plain, WeightAveraging(decay=0.6), max_steps=6)
    saved = load(tmp_path / "step=6.ckpt")["state_dict"]
    assert saved.pop("renamed._extra_state") == 3
    assert same({n.removeprefix("renamed."): v.float() for n, v in saved.items()}, state_of(plain))


# Going on.


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_from_each_step(tmp_path: Path, arguments: dict[str, Any]) -> None:
    expected = final(arguments)
    fit(Net(), WeightAveraging(**arguments), saves(tmp_path, every_n_train_steps=1))
    for step in (1, 4, 7, 8, 11, 14, 16):
        assert_goes_on(tmp_path / f"step={step}.ckpt", arguments, expected)


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.parametrize("at_train_epoch_end", [True, False])
def test_from_each_epoch(
    tmp_path: Path, arguments: dict[str, Any], at_train_epoch_end: bool
) -> None:
    expected = final(arguments)
    save = saves(tmp_path, save_on_train_epoch_end=at_train_epoch_end)
    fit(Net(), WeightAveraging(**arguments), save)
    for step in (4, 8, 12):
        assert_goes_on(tmp_path / f"step={step}.ckpt", arguments, expected)
    module = Net()
    fit(module, WeightAveraging(**arguments), resume=tmp_path / "step=16.ckpt")
    # Where not even the end of an epoch is left to do, statistics aren't recomputed.
    right = expected.seen[16] if at_train_epoch_end else state_of(expected)
    assert same(state_of(module), right)


@pytest.mark.parametrize("arguments", [a | {"start": 2} for a in ARGUMENTS], ids=str)
def test_from_the_end_with_more_epochs(tmp_path: Path, arguments: dict[str, Any]) -> None:
    expected = final(arguments, max_epochs=6)
    module = Net()
    trainer = fit(module, WeightAveraging(**arguments))
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    saved = load(tmp_path / "after.ckpt")
    assert same(saved["state_dict"], state_of(module))
    assert_goes_on(tmp_path / "after.ckpt", arguments, expected, max_epochs=6)


def test_from_a_checkpoint_in_validation(tmp_path: Path) -> None:
    class Save(Callback):
        @override
        def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 8:
                trainer.save_checkpoint(tmp_path / "within.ckpt")

    expected = final(ARGUMENTS[0])
    fit(Net(), Save(), WeightAveraging(**ARGUMENTS[0]))
    assert alike(load(tmp_path / "within.ckpt")["state_dict"], expected.seen[8])
    assert_goes_on(tmp_path / "within.ckpt", ARGUMENTS[0], expected)


@pytest.mark.parametrize(("action", "ends"), [(fail, ValueError), (interrupt, SystemExit)])
def test_saved_on_an_exception(tmp_path: Path, action: Any, ends: type[BaseException]) -> None:
    expected = final(ARGUMENTS[0])
    save = ModelCheckpoint(tmp_path, save_on_exception=True, save_top_k=0)
    with pytest.raises(ends):
        fit(Net(), save, WeightAveraging(**ARGUMENTS[0]), At(8, action))
    (path,) = tmp_path.iterdir()
    saved = load(path)
    assert alike(saved["state_dict"], averaged([expected.trained[s] for s in range(1, 9)], 0.6))
    assert same(saved[KEY]["current"], expected.trained[8])


def test_what_was_loaded_is_left_to_others(tmp_path: Path) -> None:
    class Keep(Callback):
        @override
        def on_load_checkpoint(
            self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
        ) -> None:
            self.state = checkpoint["state_dict"]

    keep = Keep()
    fit(Net(), WeightAveraging(decay=0.6), saves(tmp_path, every_n_train_steps=6))
    fit(Net(), WeightAveraging(decay=0.6), keep, resume=tmp_path / "step=6.ckpt")
    assert same(keep.state, load(tmp_path / "step=6.ckpt")["state_dict"])


def test_other_runs_from_a_checkpoint_leave_what_the_fit_has_kept(tmp_path: Path) -> None:
    module = Net()
    trainer = fit(module, WeightAveraging(decay=0.6), saves(tmp_path, every_n_train_steps=6))
    path = tmp_path / "step=6.ckpt"
    trainer.validate(module, VALIDATION, ckpt_path=path, weights_only=True, verbose=False)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    saved = load(tmp_path / "after.ckpt")
    assert same(saved["state_dict"], load(path)["state_dict"])
    assert same(saved[KEY]["current"], module.trained[16])
    assert_goes_on(tmp_path / "after.ckpt", ARGUMENTS[0], final(ARGUMENTS[0], max_epochs=6),
                   max_epochs=6)  # fmt: skip


@pytest.mark.parametrize("name", ["step=16.ckpt", "after.ckpt"])
@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_a_fit_that_is_complete(
    tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    where = "lightning_practices.callbacks._averaging.weight_averaging.rank_zero_info"
    monkeypatch.setattr(where, lines.append)
    arguments: dict[str, Any] = {"ema": ARGUMENTS[0], "swa": {"kind": "swa", "start": 0}}[kind]
    expected = Net()
    trainer = fit(expected, WeightAveraging(**arguments), saves(tmp_path))
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    resumed, averaging = Net(), WeightAveraging(**arguments)
    trainer = fit(resumed, averaging, resume=tmp_path / name)
    assert not resumed.trained
    assert averaging.averaged == {"ema": 16, "swa": 4}[kind]
    assert lines == 2 * [
        f"WeightAveraging: the module has the average of {averaging.averaged} weights"
    ]
    right = expected.seen[16] if name == "step=16.ckpt" else state_of(expected)
    assert same(state_of(resumed), right)
    trainer.save_checkpoint(tmp_path / "again.ckpt")
    longer = final(arguments, max_epochs=6)
    assert_goes_on(tmp_path / "again.ckpt", arguments, longer, max_epochs=6)


def test_half_precision(tmp_path: Path) -> None:
    options: dict[str, Any] = {"precision": "bf16-true"}
    expected = final({"decay": 0.99}, **options)
    fit(Net(), WeightAveraging(decay=0.99), saves(tmp_path, every_n_train_steps=6), **options)
    saved = load(tmp_path / "step=6.ckpt")
    assert {v.dtype for v in saved[KEY]["averages"].values()} == {torch.float32, torch.int64}
    assert {v.dtype for v in saved[KEY]["current"].values()} == {torch.bfloat16, torch.int64}
    assert_goes_on(tmp_path / "step=6.ckpt", {"decay": 0.99}, expected, **options)


def test_saved_before_training_goes_on(tmp_path: Path) -> None:
    class Save(Callback):
        @override
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / "early.ckpt")

    fit(Net(), WeightAveraging(decay=0.6), saves(tmp_path, every_n_train_steps=6))
    before = load(tmp_path / "step=6.ckpt")
    fit(Net(), WeightAveraging(decay=0.6), Save(), resume=tmp_path / "step=6.ckpt")
    after = load(tmp_path / "early.ckpt")
    assert before[KEY]["averages"] == after[KEY]["averages"] == "state_dict"
    assert same(before[KEY]["current"], after[KEY]["current"])
    assert same(before["state_dict"], after["state_dict"])
    assert after["callbacks"][STATE]["averaged"] == 6


# With other arguments, other callbacks.


def test_with_another_decay(tmp_path: Path) -> None:
    plain = Net()
    fit(plain)
    fit(Net(), WeightAveraging(decay=0.6), saves(tmp_path, every_n_train_steps=6))
    module = Net()
    averaging = WeightAveraging(decay=0.7, decay_warmup=False)
    fit(module, averaging, resume=tmp_path / "step=6.ckpt")
    expected: State = averaged([plain.trained[s] for s in range(1, 7)], 0.6)
    for step in range(7, 17):
        for name in expected.keys() - {"net.1.num_batches_tracked"}:
            expected[name] = expected[name].lerp(plain.trained[step][name], 1 - 0.7)
    assert alike(state_of(module), expected)


@pytest.mark.parametrize(
    ("arguments", "step", "now"),
    [
        ({"kind": "swa"}, 12, {}),  # which starts after 2 epochs of 4, and after 9 of 12
        ({"kind": "swa"}, 10, {}),  # once the start is reached, before the first average
        ({"decay": 0.6, "start": 0.5, "frequency": 3}, 9, {}),
        ({"decay": 0.6, "start": 2}, 4, {"start": 40}),
        ({"kind": "swa", "start": 0.5}, 12, {"interval": "step"}),
    ],
    ids=str,
)
def test_a_start_that_was_reached_stays_reached(
    tmp_path: Path, arguments: dict[str, Any], step: int, now: dict[str, Any]
) -> None:
    first = WeightAveraging(**arguments)
    fit(Net(12 * [1.0]), first, saves(tmp_path, every_n_train_steps=1))
    resumed, module = WeightAveraging(**arguments | now), Net(12 * [1.0])
    fit(module, resumed, resume=tmp_path / f"step={step}.ckpt", max_epochs=12)
    if arguments.get("kind") == "swa":
        before = step // 4 - 2
        assert resumed.averaged == before + (48 - 12 if now else 12 - step // 4)
    else:
        start = 8 if arguments["start"] == 0.5 else 2
        assert resumed.averaged == (48 - start) // first.frequency


def test_with_another_kind(tmp_path: Path) -> None:
    plain = Net()
    fit(plain)
    fit(Net(), WeightAveraging(decay=0.6), saves(tmp_path, every_n_train_steps=6))
    module, averaging = Net(), WeightAveraging("swa", start=0, interval="step")
    with pytest.warns(UserWarning, match=r"averages of kind 'ema': .*'swa'\) begins anew"):
        fit(module, averaging, resume=tmp_path / "step=6.ckpt")
    assert averaging.averaged == 10
    assert all(same(module.trained[s], plain.trained[s]) for s in range(7, 17))
    expected = averaged([plain.trained[s] for s in range(7, 17)])
    assert alike(state_of(module), expected, but="1.")  # whose statistics are recomputed


def test_from_a_checkpoint_without_averages(tmp_path: Path) -> None:
    plain = Net()
    fit(plain, saves(tmp_path, every_n_train_steps=6))
    module, averaging = Net(), WeightAveraging(decay=0.6)
    fit(module, averaging, resume=tmp_path / "step=6.ckpt")
    assert averaging.averaged == 10
    assert alike(state_of(module), averaged([plain.trained[s] for s in range(7, 17)], 0.6))


def test_from_a_checkpoint_of_lightnings_own(tmp_path: Path) -> None:
    fit(Net(), EMAWeightAveraging(decay=0.6), saves(tmp_path, every_n_train_steps=6))
    with (
        pytest.raises(MisconfigurationException, match="saved by Lightning's WeightAveraging"),
        pytest.warns(UserWarning, match="add the following callbacks"),
    ):
        fit(Net(), WeightAveraging(decay=0.6), resume=tmp_path / "step=6.ckpt")


def test_it_can_be_pickled(tmp_path: Path) -> None:
    module, averaging = Net(), WeightAveraging(decay=0.6)
    fit(module, averaging)
    vars(averaging).pop("log")  # Lightning's: methods of the module, which has a Trainer
    vars(averaging).pop("log_dict")
    copied = pickle.loads(pickle.dumps(averaging))
    assert copied.averaged == 16
    assert same(copied._averages.kept, averaging._averages.kept)
