"""What clipping logs, saves and refuses, and what ranks make of it together."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp._common_utils import clean_tensor_name
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks import GradientClipping
from tests import processes
from tests.callbacks.clipping import (
    BATCHES,
    Manual,
    Net,
    Noted,
    Raw,
    assert_same,
    fit,
    loader,
    norm_of,
    rows,
    trainer_of,
)
from tests.callbacks.scripted import FILTERS, same, state_of

pytestmark = FILTERS


def near(values: Any) -> Any:
    return pytest.approx(list(values), rel=1e-5, abs=1e-6)


# What is logged.


def test_norms_before_and_after_and_the_clipped_fraction() -> None:
    module, raw, logger = Net(), Raw(), Noted()
    fit(module, raw, GradientClipping(5.0), logger=logger)
    norms = raw.norms()
    assert logger.of("grad_norm") == near(norms)
    assert logger.of("grad_norm_clipped") == near(min(norm, 5.0) for norm in norms)
    clipped = np.cumsum([norm > 5.0 for norm in norms]) / np.arange(1, len(norms) + 1)
    assert logger.of("grad_clipped_fraction") == near(clipped)
    assert set(logger.steps[0]) == {"grad_norm", "grad_norm_clipped", "grad_clipped_fraction"}


def test_at_the_trainers_interval_all_steps_are_counted() -> None:
    raw, logger = Raw(), Noted()
    fit(Net(), raw, GradientClipping(5.0), logger=logger, log_every_n_steps=4)
    norms = raw.norms()
    assert [*logger.steps] == [3, 7, 11]
    assert logger.of("grad_norm") == near(norms[3::4])
    fractions = (np.mean([norm > 5.0 for norm in norms[:n]]) for n in (4, 8, 12))
    assert logger.of("grad_clipped_fraction") == near(fractions)


@pytest.mark.parametrize(("algorithm", "value"), [("value", 2.5), ("adaptive", 30.0)])
def test_the_other_algorithms_look_at_steps_that_log(algorithm: Any, value: float) -> None:
    module, raw, logger = Net(), Raw(), Noted()
    fit(module, raw, GradientClipping(value, algorithm), logger=logger, log_every_n_steps=2)
    after = [norm_of(grads) for grads in module.seen][1::2]
    before = raw.norms()[1::2]
    assert logger.of("grad_norm") == near(before)
    assert logger.of("grad_norm_clipped") == near(after)
    fewer = [a < b * (1 - 1e-6) for a, b in zip(after, before, strict=True)]
    assert {True, False} == set(fewer)
    fractions = np.cumsum(fewer) / np.arange(1, len(fewer) + 1)
    assert logger.of("grad_clipped_fraction") == near(fractions)


def test_groups_are_logged_together() -> None:
    module, raw, logger = Net(), Raw(), Noted()
    clipping = GradientClipping(5.0, groups={"net.0.*": 1.0, "net.2.bias": math.inf})
    fit(module, raw, clipping, logger=logger)
    assert logger.of("grad_norm") == near(raw.norms())
    assert logger.of("grad_norm_clipped") == near(map(norm_of, module.seen))


def test_without_a_threshold_norms_are_logged_and_nothing_is_clipped() -> None:
    module, raw, logger = Net(), Raw(), Noted()
    fit(module, raw, GradientClipping(), logger=logger, log_every_n_steps=2)
    assert [norm_of(grads) for grads in module.seen] == raw.norms()
    assert logger.of("grad_norm") == logger.of("grad_norm_clipped") == near(raw.norms()[1::2])
    assert set(logger.of("grad_clipped_fraction")) == {0.0}


def test_a_threshold_that_moves() -> None:
    raw, logger = Raw(), Noted()
    fit(Net(), raw, GradientClipping(percentile=30), logger=logger)
    norms = raw.norms()
    thresholds = [np.percentile(norms[: step + 1], 30) for step in range(len(norms))]
    assert logger.of("grad_clip_threshold") == near(thresholds)
    logger = Noted()
    fit(Net(), GradientClipping(2.0, "value", warmup_steps=4), logger=logger, max_epochs=1)
    assert logger.of("grad_clip_threshold") == near([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])


def test_the_layers_of_the_largest_norms() -> None:
    raw, logger = Raw(), Noted()
    module = Net()
    module.net = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)), nn.Linear(3, 1))
    fit(module, raw, GradientClipping(0.1, log_layers="top2"), logger=logger)
    places = set()
    for step, grads in enumerate(raw.grads):
        norms = {f"grad_norm/net.{i}": norm_of(grads[2 * i : 2 * i + 2]) for i in range(5)}
        top = sorted(norms, key=norms.__getitem__)[-2:]
        logged = {name: v for name, v in logger.steps[step].items() if "/" in name}
        assert logged == pytest.approx({name: norms[name] for name in top}, rel=1e-5)
        places |= set(top)
    assert len(places) > 2


def test_each_optimizer_has_its_own() -> None:
    raw, logger = Raw(), Noted()
    clipping = GradientClipping(2.0, log_layers="top1")
    fit(Manual(), raw, clipping, logger=logger, max_epochs=1)
    norms = raw.norms()
    first = [norms[i] for i in (0, 1, 3, 4, 6, 7)]
    second = [norms[i] for i in (2, 5, 8)]
    assert logger.of("grad_norm") == logger.of("grad_norm/net.0") == near(first)
    for name in ("grad_norm-1", "grad_norm-1/net.2"):
        assert [logger.steps[batch][name] for batch in (1, 3, 5)] == near(second)


@pytest.mark.gpu
@pytest.mark.parametrize("arguments", [{"value": 1.0}, {"percentile": 50}], ids=str)
def test_a_step_that_does_not_log_never_waits(arguments: dict[str, Any]) -> None:
    class Strict(GradientClipping):
        @override
        def on_before_optimizer_step(self, *args: Any) -> None:
            torch.cuda.set_sync_debug_mode("error")
            try:
                super().on_before_optimizer_step(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    options = {"accelerator": "gpu", "logger": Noted(), "log_every_n_steps": 100}
    with pytest.warns(UserWarning, match="smaller than the logging interval"):
        fit(Net(), Strict(**arguments), **options)


# What is saved.


@pytest.mark.parametrize(
    "arguments",
    [{"percentile": 30}, {"value": 5.0, "warmup_steps": 9}, {"percentile": 60, "warmup_steps": 9}],
    ids=str,
)
def test_a_resumed_fit_goes_on_exactly(arguments: dict[str, Any], tmp_path: Path) -> None:
    whole, logger = Net(), Noted()
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit(whole, GradientClipping(**arguments), save, logger=logger, max_epochs=3)
    resumed, again = Net(), Noted()
    fit(
        resumed, GradientClipping(**arguments), logger=again, max_epochs=3,
        resume=tmp_path / "epoch=0.ckpt",
    )  # fmt: skip
    assert same(state_of(whole), state_of(resumed))
    assert again.steps == {step: values for step, values in logger.steps.items() if step >= BATCHES}


def test_a_checkpoint_holds_primitives(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, "{epoch}")
    fit(Net(), raw := Raw(), GradientClipping(percentile=50), save, max_epochs=1)
    checkpoint = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    (state,) = checkpoint["callbacks"]["GradientClipping"]["optimizers"].values()
    assert state["norms"] == near(raw.norms())
    assert type(state["norms"][0]) is type(state["clipped"]) is float
    assert state["steps"] == state["looked"] == BATCHES


def test_a_new_fit_starts_afresh_and_one_that_goes_on_does_not() -> None:
    clipping = GradientClipping(percentile=50)
    trainer = fit(module := Net(), clipping, max_epochs=1)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader())
    assert clipping.state_dict()["optimizers"][0]["steps"] == 2 * BATCHES
    fit(Net(), clipping, max_epochs=1)
    assert clipping.state_dict()["optimizers"][0]["steps"] == BATCHES


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"value": 1.0, "algorithm": "nrom"}, "algorithm has to be 'norm', 'value' or 'adap"),
        ({"value": 0.0}, "value has to be a number, above 0, but got 0.0"),
        ({"value": math.nan}, "value has to be .* got nan"),
        ({"value": "1"}, "value has to be a number, above 0, but got '1'"),
        (
            {"groups": {"net.*": -1.0}},
            r"groups\['net.\*'\] has to be a number, above 0, .* -1.0",
        ),
        ({"percentile": 101}, "percentile has to be a number between 0 and 100, but got 101"),
        ({"percentile": 10, "value": 1.0}, "value=1.0 is a fixed threshold and percentile=10"),
        ({"percentile": 10, "algorithm": "value"}, "percentile needs algorithm='norm', .*'value'"),
        ({"algorithm": "adaptive"}, "algorithm='adaptive' needs a value"),
        ({"value": 1.0, "warmup_steps": -1}, "warmup_steps has to be a whole number .* -1"),
        ({"value": 1.0, "warmup_steps": 0.5}, "warmup_steps has to be a whole number"),
        ({"value": 1.0, "log_layers": "top0"}, "log_layers has to be 'top' and a number .*'top0'"),
        ({"value": 1.0, "log_layers": "5"}, "as in 'top5', but got '5'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        GradientClipping(**arguments)


def test_a_pattern_that_matches_nothing() -> None:
    message = r"no parameter's name matches 'head\.\*' of groups; there are: 'net.0.weight', 'net.0"
    with pytest.raises(ValueError, match=message):
        fit(Net(), GradientClipping(1.0, groups={"net.*": 1.0, "head.*": 2.0}))


def test_the_trainer_clips_too() -> None:
    message = r"Trainer\(gradient_clip_val=0.5\) and GradientClipping would both clip: give"
    with pytest.raises(MisconfigurationException, match=message):
        fit(Net(), GradientClipping(1.0), gradient_clip_val=0.5)
    fit(Net(), GradientClipping(1.0), gradient_clip_val=0, max_epochs=1)


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        ({"value": 1.0}, None),
        ({"value": 1.0, "algorithm": "value", "groups": {"net.*": 1.0}}, None),
        ({"value": 1.0, "algorithm": "adaptive"}, "algorithm='adaptive'"),
        ({"value": 1.0, "groups": {"net.*": 1.0}}, "groups"),
        ({"percentile": 10}, "percentile"),
        ({"value": 1.0, "log_layers": "top5"}, "log_layers"),
    ],
)
def test_flat_shards(arguments: dict[str, Any], refused: str | None) -> None:
    trainer = trainer_of()
    trainer._accelerator_connector.strategy = FSDPStrategy()  # Lightning makes it on GPUs only
    clipping = GradientClipping(**arguments)
    if refused is None:
        clipping.setup(trainer, Net(), "fit")
    else:
        message = rf"GradientClipping\({refused}.*\) can't see .*: use Mod"
        with pytest.raises(MisconfigurationException, match=message):
            clipping.setup(trainer, Net(), "fit")
    GradientClipping(**arguments).setup(trainer, Net(), "validate")


def test_several_optimizers_of_flat_shards() -> None:
    trainer, module = trainer_of(), Net()
    trainer._accelerator_connector.strategy = FSDPStrategy()
    trainer.strategy._lightning_module = module
    module.trainer = trainer
    trainer.optimizers = [torch.optim.SGD(module.parameters()) for _ in range(2)]
    for clipping in (GradientClipping(1.0, "value"), GradientClipping(1.0)):
        clipping.setup(trainer, module, "fit")
        if clipping._clipper.settings.algorithm == "value":
            clipping.on_fit_start(trainer, module)
        else:
            with pytest.raises(MisconfigurationException, match="not that of each of 2 optimizers"):
                clipping.on_fit_start(trainer, module)


def test_a_copy_for_a_module_clips_only_when_the_module_asks() -> None:
    class Asking(Net):
        clips_by: GradientClipping | None = None

        @override
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if self.clips_by is not None:
                self.clips_by.clip(self, optimizer)

    own = GradientClipping(0.5)
    copy = own.for_module()
    assert (own.serves_module, copy.serves_module) == (False, True)
    seen = []
    for callback, clips_by in ((own, None), (copy, copy), (copy, None)):
        module = Asking()
        module.clips_by = clips_by
        fit(module, callback)
        seen.append(module.seen)
    assert_same(seen[1], seen[0])
    assert all(norm_of(grads) < 0.5001 for grads in seen[1])
    assert any(norm_of(grads) > 0.6 for grads in seen[2])


def test_deepspeed() -> None:
    trainer = trainer_of()
    # As if it were installed: what is asked is only of which class the strategy is.
    trainer._accelerator_connector.strategy = object.__new__(DeepSpeedStrategy)
    with pytest.raises(MisconfigurationException, match=r"'gradient_clipping': 1\.0 in Deep"):
        GradientClipping(1.0).setup(trainer, Net(), "fit")


# Two ranks, each with half of every batch.


class Sharded(Net):
    def configure_model(self) -> None:
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        for layer in (self.net[0], self.net[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(self.net, mesh=mesh)


class Flat(FSDPStrategy):
    """On the CPU, where Lightning's own doesn't run but torch's does."""

    def _setup_model(self, model: nn.Module) -> FullyShardedDataParallel:
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)


class State(Callback):
    """Keeps the weights, whole, of the end of training."""

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model: Any = trainer.strategy.model
        flat = isinstance(model, FullyShardedDataParallel)
        with model.summon_full_params(model, writeback=False) if flat else nullcontext():
            self.state = {
                clean_tensor_name(name): p.full_tensor() if isinstance(p, DTensor) else p.clone()
                for name, p in pl_module.named_parameters()
            }


ALL: list[dict[str, Any]] = [
    {"value": 5.0, "warmup_steps": 3},
    {"value": 1.0, "algorithm": "value"},
]
SINGLE: list[dict[str, Any]] = [  # what asks for single parameters
    {"value": 5.0, "groups": {"net.2.*": 2.0}, "log_layers": "top1"},
    {"percentile": 30},
    {"value": 4.0, "algorithm": "adaptive"},
]
TYPES = {  # FSDP1 under Lightning has no float64
    "ddp": torch.float64, "model_parallel": torch.float64, "fsdp": torch.float32
}  # fmt: skip
FITS = [
    (strategy, arguments)
    for strategy in TYPES
    for arguments in [*ALL, *(SINGLE if strategy != "fsdp" else [])]
]


def test_two_ranks_are_clipped_as_one_process() -> None:
    ranks = processes.run(fits_on_two_ranks, [()] * 2)
    for place, (strategy, arguments) in enumerate(FITS):
        module, logger = Net().to(TYPES[strategy]), Noted()
        data = list(rows().to(TYPES[strategy]))
        fit(module, GradientClipping(**arguments), data=data, logger=logger)
        error = 1e-9 if TYPES[strategy] == torch.float64 else 1e-5
        for rank in ranks:
            assert rank[place]["state"].keys() == state_of(module).keys()
            for name, value in state_of(module).items():
                torch.testing.assert_close(rank[place]["state"][name], value)
        if strategy != "fsdp" or "algorithm" not in arguments:
            for step, values in logger.steps.items():
                assert ranks[0][place]["logged"][step] == pytest.approx(values, rel=error)
        else:
            assert ranks[0][place]["logged"] == {}  # norms would be of a shard


def fits_on_two_ranks() -> list[dict[str, Any]]:
    return [fit_on_two_ranks(*which) for which in FITS]


def fit_on_two_ranks(strategy: str, arguments: dict[str, Any]) -> dict[str, Any]:
    module: Net = Sharded() if strategy == "model_parallel" else Net()
    by: Any = {"ddp": "ddp", "model_parallel": ModelParallelStrategy(2, 1), "fsdp": Flat()}
    logger, kept = Noted(), State()
    trainer = trainer_of(
        GradientClipping(**arguments), kept, logger=logger, strategy=by[strategy], devices=2,
        use_distributed_sampler=False,
    )  # fmt: skip
    mine = list(rows().to(TYPES[strategy]))[trainer.global_rank :: 2]
    trainer.fit(module.to(TYPES[strategy]), DataLoader(mine, batch_size=1))  # type: ignore[arg-type]
    return {"state": kept.state, "logged": logger.steps}
