"""Progressive unfreezing: a fit that goes on from a checkpoint, whatever phase it is in."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from typing_extensions import override

from lightning_practices.callbacks import ProgressiveUnfreezing
from tests.callbacks.scripted import FILTERS, Stateful, same, saves, state_of, trainer_of
from tests.callbacks.unfreezing import (
    BODY,
    HEAD,
    SCHEDULE,
    STEM,
    Each,
    Net,
    rows,
    trained,
    unfreezing,
)

pytestmark = FILTERS

KEY = "ProgressiveUnfreezing"
FLAT = {"plateau": {"monitor": "val_loss", "patience": 2}}
# h: steps 1 to 6; hb to 14, best at 12; bs to 16, flat at once; hbs
PHASES: list[dict[str, Any]] = [
    {**HEAD, "until": {"step": 6}},
    {**BODY, "until": FLAT, "restore_best": True},
    {**STEM, "freeze": ["head"], "until": {"epoch": 1}},
    {"blocks": ["head"]},
]
SCRIPT = [9.0, 8.0, 5.0, 6.0, 7.0, 4.0]


class Cycle(Net):
    """Adam over one cycle, and the state after each batch."""

    def __init__(self) -> None:
        super().__init__(SCRIPT)
        self.states: list[tuple[Any, ...]] = []

    @override
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        scheduler = OneCycleLR(optimizer, 0.1, total_steps=30)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    @override
    def on_train_batch_end(self, *_: Any) -> None:
        (optimizer,) = self.trainer.optimizers
        options = [{**group, "params": len(group["params"])} for group in optimizer.param_groups]
        moments = {
            name: dict(optimizer.state[p])
            for name, p in self.named_parameters()
            if p in optimizer.state
        }
        modes = [module.training for module in self.modules()]
        self.states.append((state_of(self), trained(self), modes, moments, options))


class Bare(Cycle):
    @override
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        pass  # its groups have no names


def equal(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    weights, *flags, moments, options = a
    others, *other_flags, other_moments, other_options = b
    return (
        same(weights, others)
        and flags == other_flags
        and options == other_options
        and moments.keys() == other_moments.keys()
        and all(same(moments[name], other_moments[name]) for name in moments)
    )


def run(
    module: LightningModule, *callbacks: Callback, resume: Path | None = None, **options: Any
) -> Trainer:
    trainer = trainer_of(*callbacks, **{"max_epochs": 7} | options)
    data = Stateful(rows(), batch_size=2), Stateful(rows(), batch_size=8)
    trainer.fit(module, *data, ckpt_path=resume)
    return trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cycle, Path]:
    folder = tmp_path_factory.mktemp("whole")
    module = Cycle()
    run(module, unfreezing(*PHASES), saves(folder / "steps", every_n_train_steps=1))
    run(Cycle(), unfreezing(*PHASES), saves(folder / "epochs"))
    return module, folder


def test_the_phases_of_the_whole(whole: tuple[Cycle, Path]) -> None:
    found = [flags for _, flags, *_ in whole[0].states]
    assert found == ["h"] * 6 + ["hb"] * 14 + ["bs"] * 4 + ["hbs"] * 4


@pytest.mark.parametrize("step", [1, 4, 5, 6, 7, 8, 12, 13, 16, 18, 20, 21, 23, 24, 25])
def test_resuming_is_as_if_never_stopped(whole: tuple[Cycle, Path], step: int) -> None:
    # Of a checkpoint from before the validation of an epoch Lightning leaves that out.
    folder = "steps" if step % 4 else "epochs"
    module = Cycle()
    run(module, unfreezing(*PHASES), resume=whole[1] / folder / f"step={step}.ckpt")
    expected = whole[0].states[step:]
    assert len(module.states) == len(expected)
    for own, other in zip(module.states, expected, strict=True):
        assert equal(own, other)


def test_what_a_checkpoint_holds(whole: tuple[Cycle, Path]) -> None:
    states = {}
    for step in (6, 7, 16, 20):
        path = whole[1] / "epochs" / f"step={step}.ckpt"
        path = path if path.exists() else whole[1] / "steps" / f"step={step}.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        states[step] = checkpoint["callbacks"][KEY]
        weights = checkpoint.get("progressive_unfreezing_weights", {})
        assert bool(weights) == (step > 7)
        if step > 7:
            assert same(weights["best"], whole[0].states[11][0])
    stem, body, head = [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]  # positions of the parameters
    assert states[6].pop("layout") == {
        "trained": [head, [*body, *head], [*stem, *body], [*stem, *body, *head]],
        "scales": [0.75**2] * 4 + [0.75] * 4 + [1.0] * 2,
    }
    assert states[6] == {
        "phase": 0,
        "epoch": 0,
        "step": 0,
        "best": None,
        "best_step": None,
        "waited": 0,
        "is_flat": False,
    }
    assert [states[7][key] for key in ("phase", "epoch", "step")] == [1, 1, 6]
    assert [states[16][key] for key in ("best", "best_step", "waited")] == [5.0, 12, 1]
    assert [states[20][key] for key in ("phase", "waited", "is_flat")] == [1, 2, True]


def test_a_frozen_backbone_is_not_frozen_again(whole: tuple[Cycle, Path]) -> None:
    flags = []
    module = Cycle()
    module.on_train_batch_start = lambda *_: flags.append(trained(module))  # type: ignore[method-assign]
    run(module, unfreezing(*PHASES), resume=whole[1] / "steps" / "step=21.ckpt")
    assert flags == ["bs"] * 3 + ["hbs"] * 4


def resumed(whole: tuple[Cycle, Path], *phases: dict[str, Any], **options: Any) -> list[str]:
    module = Cycle()
    path = whole[1] / "steps" / "step=18.ckpt"
    run(module, unfreezing(*phases, **options), resume=path)
    return [flags for _, flags, *_ in module.states]


def test_the_ends_of_phases_may_be_changed(whole: tuple[Cycle, Path]) -> None:
    head, body, stem, last = PHASES
    body = {**body, "until": {"step": 13}}
    del body["restore_best"]
    stem = {**stem, "until": {"step": 5}}
    assert resumed(whole, head, body, stem, last) == ["hb"] + ["bs"] * 5 + ["hbs"] * 4


def test_best_weights_that_are_no_longer_wanted(whole: tuple[Cycle, Path]) -> None:
    head, body, *others = PHASES
    begun = []
    module = Cycle()
    note = Each("on_train_batch_start", lambda trainer, module: begun.append(state_of(module)))
    path = whole[1] / "steps" / "step=18.ckpt"
    run(module, note, unfreezing(head, {**body, "restore_best": False}, *others), resume=path)
    assert [flags for _, flags, *_ in module.states[:3]] == ["hb", "hb", "bs"]
    for (ended, *_), start in zip(module.states, begun[1:], strict=False):
        assert same(ended, start)


@pytest.mark.filterwarnings("ignore:.* are never trained")
def test_one_callback_goes_back_to_an_earlier_step(whole: tuple[Cycle, Path]) -> None:
    callback = unfreezing(*PHASES)
    run(Cycle(), callback, max_steps=7)  # its last batch began after 6
    run(module := Cycle(), callback, resume=whole[1] / "steps" / "step=6.ckpt")
    assert all(equal(*pair) for pair in zip(module.states, whole[0].states[6:], strict=True))


@pytest.mark.parametrize(
    ("phases", "options", "message"),
    [
        (
            [PHASES[0], {**BODY, "lr_scale": 0.5}, *PHASES[2:]],
            {},
            r"the learning rate of body.0.weight, multiplied by 0.75, now by 0.5",
        ),
        (
            [HEAD, {**BODY, "blocks": ["body.0"]}, STEM],
            {},
            "phase 2, which no longer trains body.1.weight, body.1.bias: only",
        ),
        (
            PHASES,
            {"decay": 0.5},
            "learning rate of stem.0.weight, multiplied by 0.5625, now by 0.2",
        ),
        ([*PHASES[:2], STEM], {}, "phase 3, which now trains head.weight, head.bias too"),
        ([*PHASES[:2], {**PHASES[2], "until": None}], {}, "the number of phases, 4, now 3"),
    ],
)
def test_another_schedule(
    whole: tuple[Cycle, Path], phases: list[Any], options: Any, message: str
) -> None:
    with pytest.raises(Exception, match=f"(?s)checkpoint is of another schedule .*{message}"):
        resumed(whole, *phases, **options)


def test_the_same_parameters_by_other_names_of_blocks(whole: tuple[Cycle, Path]) -> None:
    by_depth = [{**PHASES[0], "blocks": [0]}, {**PHASES[1], "blocks": ["re:^body"]}, *PHASES[2:]]
    assert resumed(whole, *by_depth) == ["hb"] * 2 + ["bs"] * 4 + ["hbs"] * 4


def test_another_number_of_parameters(whole: tuple[Cycle, Path]) -> None:
    class Wider(Cycle):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(2))

        @override
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["state_dict"].setdefault("scale", torch.ones(2))

    path = whole[1] / "steps" / "step=6.ckpt"
    by = [["head", "scale"], ["body"], ["stem"]]
    with pytest.raises(Exception, match="the number of parameters of the module, 10, now 11"):
        run(Wider(), unfreezing(*PHASES, by=by), resume=path)


def test_a_checkpoint_of_after_a_fit(whole: tuple[Cycle, Path], tmp_path: Path) -> None:
    trainer = run(Cycle(), unfreezing(*PHASES), max_epochs=5)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    run(module := Cycle(), unfreezing(*PHASES), resume=tmp_path / "after.ckpt")
    assert len(module.states) == 8
    assert equal(module.states[-1], whole[0].states[-1])
    with pytest.raises(Exception, match="checkpoint is of another schedule"):
        run(Cycle(), unfreezing(), resume=tmp_path / "after.ckpt")


def test_a_checkpoint_without_it(whole: tuple[Cycle, Path], tmp_path: Path) -> None:
    run(Bare(), saves(tmp_path), max_epochs=1)
    with pytest.raises(Exception, match=r"saved without ProgressiveUnfreezing, .*fit without ckpt"):
        run(Cycle(), unfreezing(*PHASES), resume=tmp_path / "step=4.ckpt")
    # Nothing but weights is asked of it here.
    trainer = trainer_of(unfreezing(*PHASES))
    data = Stateful(rows(), batch_size=8)
    trainer.validate(Cycle(), data, ckpt_path=tmp_path / "step=4.ckpt", verbose=False)


def test_best_weights_that_are_not_there(whole: tuple[Cycle, Path], tmp_path: Path) -> None:
    checkpoint = torch.load(whole[1] / "steps" / "step=13.ckpt")
    del checkpoint["progressive_unfreezing_weights"]
    torch.save(checkpoint, tmp_path / "bare.ckpt")
    with pytest.warns(UserWarning, match="holds the best val_loss, 5, but not its weights"):
        run(Cycle(), unfreezing(*PHASES), resume=tmp_path / "bare.ckpt")


def test_other_weights_go_into_a_new_fit(whole: tuple[Cycle, Path]) -> None:
    path = whole[1] / "steps" / "step=18.ckpt"
    module = Cycle.load_from_checkpoint(path)
    run(module, ProgressiveUnfreezing(SCHEDULE), max_epochs=3)
    assert [flags for _, flags, *_ in module.states] == ["h"] * 4 + ["hb"] * 4 + ["hbs"] * 4


def test_checkpoints_are_saved_after_the_check(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, "{step}", monitor="val_loss", save_top_k=-1)
    flat: dict[str, Tensor] = {}
    run(Net(SCRIPT), saving, unfreezing({**HEAD, "until": FLAT}, STEM), max_epochs=3)
    for step in (4, 8, 12):
        state = torch.load(tmp_path / f"step={step}.ckpt")["callbacks"][KEY]
        flat[str(step)] = state["best_step"]
    assert flat == {"4": 4, "8": 8, "12": 12}
