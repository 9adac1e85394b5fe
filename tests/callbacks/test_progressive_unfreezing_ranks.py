"""Progressive unfreezing on two ranks."""

import gc
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
)
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks._unfreezing.freezing import Freezing
from tests import processes
from tests.callbacks.scripted import At, Stateful, same, trainer_of
from tests.callbacks.unfreezing import BODY, HEAD, STEM, Net, rows, runs, unfreezing

FLAT = {"plateau": {"monitor": "val_loss", "patience": 2}}
PHASES = [{**HEAD, "until": FLAT, "restore_best": True}, {**BODY, "until": {"step": 3}}, STEM]
AGAIN = [
    {**HEAD, "until": {"step": 2}},  # right after a validation
    {**BODY, "freeze": ["head"]},
    {"blocks": ["head", "stem"]},
]
KINDS = ["ddp", "static", "by hand", "accumulated", "sharded", "frozen again"]
NORMED = "norms"  # of which each rank has statistics of its own rows
RESUMED = ["ddp", "sharded", "spread"]  # the last by a checkpoint of several files


class Shared(Net):
    """Two ranks have every other row each, and see values whose mean no longer falls."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        if not norm:  # each rank would have statistics of its own
            self.stem[1], self.body[1] = nn.Identity(), nn.Identity()
        self.states: list[dict[str, Tensor]] = []  # after each epoch
        self.reduced: list[int] = []  # parameters, at each batch
        self.wrappers: list[weakref.ref[nn.Module]] = []

    def train_dataloader(self) -> DataLoader[Tensor]:
        count = self.trainer.world_size
        mine = rows(16)[self.trainer.global_rank :: count]
        return Stateful(mine, batch_size=4 // count)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(rows(2), batch_size=2)  # type: ignore[arg-type]

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        ranks: list[list[float]] = [[4, 3, 2, 1, 0, 0], [4, 6, 8, 8, 8, 8]]
        if self.trainer.world_size == 1:
            ranks = [[4, 4.5, 5, 4.5, 4, 4]]
        script = ranks[self.trainer.global_rank]
        self.log("val_loss", script[self.trainer.current_epoch], sync_dist=False)

    @override
    def on_train_epoch_end(self) -> None:
        self.states.append(whole(self.state_dict()))

    @override
    def on_train_batch_end(self, *_: Any) -> None:
        wrapper = self.trainer.strategy.model
        if isinstance(wrapper, DistributedDataParallel):
            self.reduced.append(wrapper._get_ddp_logging_data()["num_parameter_tensors"])
            if not self.wrappers or self.wrappers[-1]() is not wrapper:
                self.wrappers.append(weakref.ref(wrapper))


class Sharded(Shared):
    @override
    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
        for part in (self.stem, self.body, self):
            fully_shard(part, mesh=mesh)

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self(batch)  # after which the outermost parameters, those of the head, stay gathered
        super().validation_step(batch, batch_idx)


class ByHand(Shared):
    """Manual optimization, for which Lightning itself reduces the first gradients of a wrapper."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        loss = super().training_step(batch, batch_idx)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


def whole(state: dict[str, Any]) -> dict[str, Tensor]:
    full = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in state.items()}
    return {name: value.clone() for name, value in full.items()}


def fit_shared(
    module: LightningModule, strategy: Any, *callbacks: Any, devices: int = 2, **options: Any
) -> Trainer:
    defaults: dict[str, Any] = {"max_epochs": 6, "use_distributed_sampler": False}
    resume, phases = options.pop("resume", None), options.pop("phases", PHASES)
    trainer = trainer_of(
        *callbacks,
        unfreezing(*phases),
        devices=devices,
        strategy=strategy,
        num_sanity_val_steps=0,
        **defaults | options,
    )
    trainer.fit(module, ckpt_path=resume)
    return trainer


MAKES: dict[str, type[Shared]] = {
    **dict.fromkeys(["sharded", "spread", "frozen again"], Sharded),
    "by hand": ByHand,
}


def by_kind(kind: str) -> tuple[Any, dict[str, Any]]:
    strategies: dict[str, Any] = {
        "static": DDPStrategy(static_graph=True, gradient_as_bucket_view=True),
        "by hand": DDPStrategy(static_graph=True),
        "sharded": ModelParallelStrategy(2, 1, save_distributed_checkpoint=False),
        "spread": ModelParallelStrategy(2, 1),
        "frozen again": ModelParallelStrategy(2, 1),
    }
    return strategies.get(kind, "ddp"), {
        "accumulate_grad_batches": 1 + (kind == "accumulated"),
        "phases": AGAIN if kind == "frozen again" else PHASES,
        "val_check_interval": 2 if kind == "frozen again" else None,
    }


def unfreeze_stem(trainer: Trainer) -> None:
    trainer.lightning_module.stem.requires_grad_(True)


def fits_on_two_ranks(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {}
    gc.disable()  # a wrapper that is no longer used goes at once

    def note(name: str, module: Shared, strategy: Any, *callbacks: Any, **options: Any) -> None:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            trainer = fit_shared(module, strategy, *callbacks, **options)
        results[name] = {
            "told": [str(warning.message) for warning in told],
            "states": module.states,
            "trained": runs(module.trained),
            "reduced": runs([str(count) for count in module.reduced]),
            "changed": "load_checkpoint" in vars(trainer.strategy),
            "wrappers": len(module.wrappers),
            "alive": sum(wrapper() is not None for wrapper in module.wrappers),
        }

    for kind in [*KINDS, "spread"]:
        make = MAKES.get(kind, Shared)
        strategy, options = by_kind(kind)
        if kind not in RESUMED:
            note(kind, make(), strategy, **options)
            continue
        saving = ModelCheckpoint(folder / kind, "{step}", save_top_k=-1, every_n_train_steps=2)
        note(kind, make(), strategy, saving)
        for step in (10, 14):
            path = folder / kind / f"step={step}.ckpt"
            note(f"{kind} {step}", make(), by_kind(kind)[0], resume=path)
    note(NORMED, Shared(norm=True), "ddp")
    theirs = At(4, unfreeze_stem)  # someone else's: known to the reducer from the next epoch on
    note("theirs", Shared(), "ddp", theirs)
    rewrap = Freezing.rewrap

    def once(freezing: Freezing, trainer: Trainer) -> None:
        if trainer.global_step == 0:
            rewrap(freezing, trainer)

    Freezing.rewrap = once  # type: ignore[assignment,method-assign]
    note("drifting", Shared(), "ddp")
    Freezing.rewrap = rewrap  # type: ignore[method-assign]
    for name, kind, phases in (("strategy", "ddp", PHASES), ("schedule", "sharded", AGAIN)):
        resumed: dict[str, Any] = {"resume": folder / kind / "step=10.ckpt", "phases": phases}
        try:
            fit_shared(Sharded(), by_kind("sharded")[0], **resumed)
        except Exception as error:
            results[f"another {name}"] = str(error)
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return processes.run(fits_on_two_ranks, [(tmp_path_factory.mktemp("fits"),)] * 2)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_have_the_same_weights(ranks: list[dict[str, Any]], kind: str) -> None:
    first, second = (rank[kind] for rank in ranks)
    assert len(first["states"]) == 6
    assert first["trained"] == second["trained"]
    for a, b in zip(first["states"], second["states"], strict=True):
        assert same(a, b)


def test_batch_norms_of_what_is_frozen_keep_statistics_on_all_ranks(
    ranks: list[dict[str, Any]],
) -> None:
    first, second = (rank[NORMED]["states"] for rank in ranks)
    assert ranks[0][NORMED]["trained"] == [("h", 12), ("hb", 3), ("hbs", 9)]
    buffers = {name for name in first[0] if "running" in name or "batches" in name}
    fresh = Shared(norm=True).state_dict()
    for a, b in zip(first, second, strict=True):
        assert same(*({n: v for n, v in s.items() if n not in buffers} for s in (a, b)))
    for epoch, trained in enumerate([set(), set(), set(), {"body", "stem"}]):
        for state in (first[epoch], second[epoch]):
            changed = {n for n in buffers if not torch.equal(state[n], fresh[n])}
            assert changed == {n for n in buffers if n.split(".")[0] in trained}


def test_without_a_new_wrapper_they_drift_apart(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["drifting"]["states"] for rank in ranks)
    assert [same(a, b) for a, b in zip(first, second, strict=True)] == [True] * 3 + [False] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_one_process_of_the_global_batch(ranks: list[dict[str, Any]], kind: str) -> None:
    module = Shared()
    fit_shared(module, "auto", devices=1, **by_kind(kind)[1])
    assert runs(module.trained) == ranks[0][kind]["trained"]
    for own, expected in zip(ranks[0][kind]["states"], module.states, strict=True):
        for name, value in expected.items():
            torch.testing.assert_close(own[name], value)  # sums in another order


def test_the_mean_of_the_ranks_ends_a_phase(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["ddp"]["trained"] == [("h", 12), ("hb", 3), ("hbs", 9)]
    assert ranks[0]["accumulated"]["trained"] == [("h", 12), ("hb", 6), ("hbs", 6)]


@pytest.mark.parametrize("kind", ["ddp", "static", "by hand", "accumulated"])
def test_only_what_is_trained_is_reduced(ranks: list[dict[str, Any]], kind: str) -> None:
    for rank in ranks:
        (_, first), (_, second), (_, third) = rank[kind]["trained"]
        assert rank[kind]["reduced"] == [("2", first), ("4", second), ("6", third)]
        assert rank[kind]["wrappers"] == 3
        assert rank[kind]["alive"] <= 1  # no reducer of an earlier phase, and no hook of one


@pytest.mark.parametrize(
    ("kind", "step"), [("ddp", 10), ("ddp", 14), ("sharded", 10), ("sharded", 14), ("spread", 14)]
)
def test_resuming_is_as_if_never_stopped(ranks: list[dict[str, Any]], kind: str, step: int) -> None:
    for rank in ranks:
        assert same(rank[f"{kind} {step}"]["states"][-1], rank[kind]["states"][-1])
        assert not rank[kind]["changed"]  # how the strategy loads, in a fit from no checkpoint
        assert not rank[f"{kind} {step}"]["changed"]


def test_a_distributed_checkpoint_has_no_best_weights(ranks: list[dict[str, Any]]) -> None:
    told = [rank["spread 10"]["told"] for rank in ranks]
    assert "holds the best val_loss, 4, but not its weights" in " ".join(told[0])
    assert "holds the best" not in " ".join(told[1])  # only rank 0 says it
    assert ranks[0]["spread 10"]["trained"] == [("h", 2), ("hb", 3), ("hbs", 9)]


def test_a_checkpoint_of_another_strategy(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        message = rank["another strategy"]
        assert "step=10.ckpt was saved under another strategy than ModelParallelStrategy" in message


def test_a_sharded_checkpoint_of_another_schedule(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        message = rank["another schedule"]
        assert "the checkpoint is of another schedule of unfreezing, different in" in message


def test_what_someone_else_unfreezes_is_reduced_from_the_next_epoch(
    ranks: list[dict[str, Any]],
) -> None:
    first, second = (rank["theirs"] for rank in ranks)
    assert first["reduced"][:3] == [("2", 8), ("4", 4), ("6", 12)]
    assert same(first["states"][0], second["states"][0])


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (FSDPStrategy, "shards several parameters"),
        (DeepSpeedStrategy, "keeps weights"),
    ],
)
def test_what_is_refused(kind: Any, why: str) -> None:
    trainer = trainer_of()
    # As if it were installed: what is asked is only of which class the strategy is.
    trainer._accelerator_connector.strategy = object.__new__(kind)
    message = f"can't unfreeze .* under {kind.__name__}, which {why} .*: use strategy='ddp'"
    with pytest.raises(Exception, match=message):
        unfreezing().setup(trainer, Net(), "fit")


def test_power_sgd_is_refused() -> None:
    trainer = trainer_of()
    state = PowerSGDState(process_group=None)
    trainer._accelerator_connector.strategy = DDPStrategy(ddp_comm_state=state)
    with pytest.raises(Exception, match=r"PowerSGD keeps errors .*: use another ddp_comm_hook"):
        unfreezing().setup(trainer, Net(), "fit")
