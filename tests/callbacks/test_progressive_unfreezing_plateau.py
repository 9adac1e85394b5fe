"""Progressive unfreezing: phases that end at a plateau, and the best weights of each."""

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from typing_extensions import override

from lightning_practices.callbacks import EarlyStopping, ProgressiveUnfreezing
from lightning_practices.callbacks._unfreezing.progress import Progress
from lightning_practices.callbacks._unfreezing.schedule import Phase, Plateau
from tests.callbacks.scripted import FILTERS, same, state_of
from tests.callbacks.unfreezing import BODY, HEAD, STEM, Each, Net, fit, runs, unfreezing

pytestmark = FILTERS

FLAT = {"monitor": "val_loss", "patience": 2}


def until(phase: dict[str, Any], **ends: Any) -> dict[str, Any]:
    return {**phase, "until": ends}


def test_nan_is_not_the_best_though_it_is_the_first() -> None:
    module = Net([torch.nan, 3, 3, 3])
    fit(module, unfreezing(until(HEAD, plateau=FLAT), STEM), max_epochs=5)
    assert runs(module.trained) == [("h", 16), ("hs", 4)]


def test_what_was_flat_once_ends_the_phase() -> None:
    # Checks go on until gradients are no longer accumulated, and may even improve.
    plateau = Plateau("loss", patience=2)
    progress = Progress()
    found = []
    for value in (2.0, 2.0, 2.0, 1.0, 1.0):
        progress.look(plateau, value, 0)
        found.append(progress.reason(Phase("1", ("head",), plateau=plateau), 0, 0))
    assert found == [None, None, *["loss no longer improves"] * 3]


def test_nothing_to_monitor() -> None:
    phase = until(HEAD, plateau={"monitor": "loss"})
    message = r"phase 1/\d of ProgressiveUnfreezing watches 'loss', .*; logged are: val_loss"
    with pytest.raises(Exception, match=message):
        fit(Net([1.0]), unfreezing(phase, STEM))
    fit(module := Net(), unfreezing(phase, STEM), check_val_every_n_epoch=9)
    assert module.trained == ["h"] * 12


def test_nothing_to_monitor_after_a_phase_or_a_fit_with_something() -> None:
    seen = until(HEAD, plateau={**FLAT, "patience": 1})
    with pytest.raises(Exception, match=r"phase 2/\d of ProgressiveUnfreezing watches 'loss'"):
        fit(Net([1.0]), unfreezing(seen, until(BODY, plateau={"monitor": "loss"}), STEM))
    fit(Net([1.0]), again := unfreezing(until(HEAD, plateau=FLAT), STEM), max_epochs=1)
    with pytest.raises(Exception, match=r"phase 1/\d of ProgressiveUnfreezing watches 'val_loss'"):
        fit(Net(), again)


@pytest.mark.parametrize("restore", [True, False])
def test_restore_best(restore: bool) -> None:
    checked: dict[int, dict[str, Tensor]] = {}
    begun: dict[int, dict[str, Tensor]] = {}

    def note(where: dict[int, dict[str, Tensor]]) -> Any:
        return lambda trainer, module: where.update({trainer.global_step: state_of(module)})

    phases = [
        {**until(HEAD, plateau=FLAT), "restore_best": restore},
        {**until(BODY, plateau=FLAT, epoch=2), "restore_best": restore},
        STEM,
    ]
    module = Net([3, 1, 2, 2, 4, 5, 6])
    notes = Each("on_validation_end", note(checked)), Each("on_train_batch_start", note(begun))
    fit(module, unfreezing(*phases), *notes, max_epochs=7)
    assert runs(module.trained) == [("h", 16), ("hb", 8), ("hbs", 4)]
    # What the next phase begins with, in place of what the last check has seen.
    for end, best in ((16, 8), (24, 20)):
        assert same(begun[end], checked[best if restore else end])
        assert not same(checked[end], checked[best])


def test_a_new_fit_knows_nothing_of_the_best_of_another() -> None:
    phase = {**until(HEAD, plateau=FLAT), "restore_best": True}
    callback = unfreezing(phase, STEM)
    fit(Net([1, 2]), callback, max_epochs=2)
    fit(module := Net([3, 2, 3, 3]), callback, max_epochs=5)
    assert runs(module.trained) == [("h", 16), ("hs", 4)]


def test_a_new_fit_of_another_network() -> None:
    class Deeper(Net):
        def __init__(self) -> None:
            super().__init__()
            del self.head
            self.neck = nn.Linear(4, 4)
            self.head = nn.Linear(4, 2)

        @override
        def forward(self, rows: Tensor) -> Tensor:
            return self.head(self.neck(self.body(self.stem(rows))))  # type: ignore[no-any-return]

    callback = ProgressiveUnfreezing()
    fit(Net(), callback)
    fit(module := Deeper(), callback)
    assert runs(module.trained) == [("h", 4), ("hb", 4), ("hbs", 4)]


def test_beside_early_stopping_and_checkpoints(tmp_path: Any) -> None:
    module = Net([5, 4, 4, 4, 4, 4, 4])
    phases = [until(HEAD, plateau=FLAT), STEM]
    saving = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", save_top_k=-1)
    stopping = EarlyStopping("val_loss", patience=4)
    trainer = fit(module, stopping, saving, unfreezing(*phases), max_epochs=9)
    assert runs(module.trained) == [("h", 16), ("hs", 8)]
    assert trainer.current_epoch == 6
    checkpoint = torch.load(tmp_path / "epoch=3.ckpt", weights_only=True)
    state = checkpoint["callbacks"]["ProgressiveUnfreezing"]
    assert (state["phase"], state["is_flat"], state["waited"], state["best"]) == (0, True, 2, 4)
    assert (state["best_step"], state["epoch"], state["step"]) == (8, 0, 0)
