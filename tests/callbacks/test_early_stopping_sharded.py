"""Early stopping with sharded weights."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from typing_extensions import override

from lightning_practices.callbacks import EarlyStopping
from tests import processes
from tests.callbacks.scripted import (
    DIP,
    FILTERS,
    STATE,
    WEIGHTS,
    Scripted,
    State,
    copy_in,
    fit,
    same,
    saves,
    trainer_of,
    verdict,
)

pytestmark = FILTERS


class Sharded(Scripted):
    """Three outputs, so that one of two ranks has more of them than the other."""

    def __init__(self) -> None:
        super().__init__(DIP, width=3)

    @override
    def configure_model(self) -> None:
        assert self.device_mesh is not None
        if self.device_mesh["tensor_parallel"].size() > 1:
            mesh = self.device_mesh["tensor_parallel"]
            parallelize_module(self.net, mesh, {"0": ColwiseParallel(use_local_output=True)})
            bias: Any = self.net[0].bias
            self.net[1] = nn.BatchNorm1d(bias.to_local().numel())  # of its own shard
        else:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    @override
    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        for step, state in self.seen.items():
            self.seen[step] = whole(state)


def whole(state: State) -> State:
    return {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in state.items()}


def shards_of(module: nn.Module) -> dict[str, int]:
    return {
        name: p.to_local().data_ptr()
        for name, p in module.state_dict().items()
        if isinstance(p, DTensor)
    }


def strategy(distributed: bool = False, data: int = 2, tensor: int = 1) -> ModelParallelStrategy:
    return ModelParallelStrategy(data, tensor, save_distributed_checkpoint=distributed)


def shared(
    patience: int = 3, *callbacks: Any, by: ModelParallelStrategy | None = None, **options: Any
) -> tuple[Sharded, EarlyStopping, Trainer, bool]:
    """Fit; also return whether each shard is where it was when training began."""
    module, stopping = Sharded(), EarlyStopping("val_loss", patience=patience)
    places: dict[str, int] = {}
    module.on_train_start = lambda: places.update(shards_of(module))  # type: ignore[method-assign]
    trainer = fit(
        module, stopping, *callbacks,
        strategy=by or strategy(), devices=2, use_distributed_sampler=False, **options,
    )  # fmt: skip
    return module, stopping, trainer, bool(places) and places == shards_of(module)


def told(act: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Return what a function returns and the warnings of ours in it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = act()
    return value, [str(w.message) for w in caught if "weights" in str(w.message)]


def fits_on_two_ranks(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = {}

    def note(name: str, fitted: tuple[Sharded, EarlyStopping, Trainer, bool]) -> Trainer:
        module, stopping, trainer, in_place = fitted
        result[name] = {
            "verdict": verdict(stopping),
            "steps": trainer.global_step,
            "in_place": in_place,
            "seen": module.seen,
            "weights": whole(module.state_dict()),
        }
        return trainer

    note("whole", shared(10))
    trainer = note("stopped", shared(3, saves(folder)))
    trainer.save_checkpoint(folder / "after.ckpt")
    note("resumed", shared(10, resume=folder / "step=12.ckpt"))
    note("resumed after", shared(10, resume=folder / "after.ckpt"))
    note("tensor", shared(3, by=strategy(data=1, tensor=2)))

    spread = folder / "spread"
    fitted, result["saving"] = told(lambda: shared(3, saves(spread), by=strategy(True)))
    note("distributed", fitted)
    fitted, result["loading"] = told(
        lambda: shared(10, by=strategy(True), resume=spread / "step=12.ckpt")
    )
    note("resumed distributed", fitted)
    return result


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("fits")
    return processes.run(fits_on_two_ranks, [(folder,)] * 2), folder


Ranks = tuple[list[dict[str, Any]], Path]


@pytest.mark.parametrize("name", ["stopped", "tensor", "distributed"])
def test_each_rank_gives_its_shards_back_in_place(ranks: Ranks, name: str) -> None:
    for rank in ranks[0]:
        found = rank[name]
        assert (found["verdict"], found["steps"]) == ((1, 8, 1.0, 3), 20)
        assert found["in_place"]
        assert not same(found["seen"][8], found["seen"][20])
        assert same(found["weights"], found["seen"][8])


def test_a_checkpoint_has_the_whole_best_weights(ranks: Ranks) -> None:
    (first, _), folder = ranks
    seen = first["stopped"]["seen"]
    for step, best in [(4, 4), (8, 8), (12, 8), (20, 8)]:
        checkpoint = torch.load(folder / f"step={step}.ckpt", weights_only=True)
        assert same(checkpoint["state_dict"], seen[step])
        assert same(copy_in(checkpoint, checkpoint[WEIGHTS][STATE]["best"]), seen[best])
        assert checkpoint["callbacks"][STATE]["best_step"] == best
    saved = torch.load(folder / "after.ckpt", weights_only=True)
    kept = saved[WEIGHTS][STATE]
    assert same(copy_in(saved, kept["best"]), seen[8])
    assert same(kept["last"], seen[20])


@pytest.mark.parametrize("name", ["resumed", "resumed after"])
def test_resuming_is_as_if_never_stopped(ranks: Ranks, name: str) -> None:
    for rank in ranks[0]:
        resumed, expected = rank[name], rank["whole"]
        assert (resumed["verdict"], resumed["steps"]) == (expected["verdict"], 32)
        assert same(resumed["seen"][32], expected["seen"][32])
        assert same(resumed["weights"], expected["seen"][8])


def test_a_distributed_checkpoint_has_no_best_weights_and_says_so(ranks: Ranks) -> None:
    first, second = ranks[0]
    assert "set ModelParallelStrategy(save_distributed_checkpoint=False)" in first["saving"][0]
    assert "holds the best val_loss, 1, but not its weights" in first["loading"][0]
    assert second["saving"] == second["loading"] == []  # only rank 0 says it
    found = first["resumed distributed"]
    assert found["verdict"] == (1, 8, 1.0, 6)
    assert same(found["weights"], found["seen"][32])  # the last: 1 was not surpassed


def test_the_checkpoint_of_two_ranks_goes_on_in_one_process(ranks: Ranks) -> None:
    (first, _), folder = ranks
    module, stopping = Scripted(width=3), EarlyStopping("val_loss", patience=4)
    trainer = fit(module, stopping, resume=folder / "step=20.ckpt")
    assert (trainer.global_step, verdict(stopping)) == (24, (1, 8, 1.0, 4))
    assert same(module.state_dict(), first["stopped"]["seen"][8])


@pytest.mark.parametrize("kind", [FSDPStrategy, DeepSpeedStrategy])
def test_what_shards_in_another_way(kind: Any) -> None:
    trainer = trainer_of()
    # As if it were installed: what is asked is only of which class the strategy is.
    trainer._accelerator_connector.strategy = object.__new__(kind)
    message = rf"under {kind.__name__}, which .*use ModelParallelStrategy.* or set .*Checkpoint"
    with pytest.raises(MisconfigurationException, match=message):
        EarlyStopping("val_loss", patience=3).setup(trainer, Scripted(), "fit")
    EarlyStopping("val_loss", restore_best_weights=False).setup(trainer, Scripted(), "fit")
