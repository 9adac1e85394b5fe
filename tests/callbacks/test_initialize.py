"""Initialisation by the callback, in the first fit of any module."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from typing_extensions import override

from lightning_practices.callbacks import Initialize
from lightning_practices.init import Initialization
from tests import processes
from tests.initialised import Plain, data, drawn, fit, next_generator, same, trainer, whole

pytestmark = pytest.mark.plain


def test_the_first_fit_begins_with_new_weights_and_the_second_goes_on() -> None:
    module, callback = Plain(), Initialize()
    assert str(callback.report).startswith("Nothing is initialised yet: weights are drawn when a")
    before, expected = whole(module), drawn(module)
    for run in ("validate", "test", "predict"):
        getattr(trainer(callbacks=[callback]), run)(module, data())
    assert same(whole(module), before)
    fit(module, callbacks=[callback])
    assert same(module.begins_with, expected)
    assert "3 initialized" in repr(callback.report)
    trained = whole(module)
    fit(module, callbacks=[callback])
    assert same(module.begins_with, trained)
    other = Plain()
    expected = drawn(other)
    fit(other, callbacks=[callback])  # another module is new
    assert same(other.begins_with, expected)


def test_a_checkpoint_is_loaded_over_it(tmp_path: Path) -> None:
    path, first = tmp_path / "net.ckpt", Plain()
    fit(first, callbacks=[Initialize()]).save_checkpoint(path)
    saved, module = whole(first), Plain()
    fit(module, path, callbacks=[Initialize()], max_epochs=2)
    assert same(module.begins_with, saved)


def test_only_the_new_modules() -> None:
    module = Plain()
    nn.init.normal_(module.body[1].weight)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"would overwrite weights of Plain .* norms body\.1 show"):
        fit(module, callbacks=[callback := Initialize()])
    before, expected = whole(module), drawn(module, "orthogonal", modules=["head"])
    fit(module, callbacks=[Initialize(Initialization("orthogonal", modules=["head"]))])
    assert same(module.begins_with, expected)
    assert torch.equal(module.begins_with["body.0.weight"], before["body.0.weight"])
    nn.init.ones_(module.body[1].weight)  # type: ignore[arg-type]
    module.body[1].reset_running_stats()  # type: ignore[operator]
    expected = drawn(module)
    fit(module, callbacks=[callback])  # which has drawn nothing for this module so far
    assert same(module.begins_with, expected)


class Late(Plain):
    """Makes a layer in ``configure_model``."""

    late: nn.Module | None = None

    @override
    def configure_model(self) -> None:
        if self.late is None:
            self.late = nn.Linear(4, 4)


def test_layers_that_are_made_too_late_are_an_error() -> None:
    message = r"before setup and configure_model of Late, which made late\.weight, late\.bias: make"
    with pytest.raises(MisconfigurationException, match=message):
        fit(Late(), callbacks=[Initialize()])
    module = Late()
    fit(module, callbacks=[Initialize(Initialization(modules=["head"]))])
    assert not module.begins_with["head.bias"].any()


class Sharded(Plain):
    """Shards its layers, as each rank has them."""

    @override
    def configure_model(self) -> None:
        assert self.device_mesh is not None
        for layer in (self.body, self.head):
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])


def sharded(root: Path, rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    module = Sharded()
    torch.manual_seed(7 + rank)
    expected = copy.deepcopy(module)
    Initialization()(expected, generator=next_generator())
    torch.manual_seed(7 + rank)
    strategy = ModelParallelStrategy(2, 1)
    callbacks: Any = [Initialize()]
    done = trainer(devices=2, strategy=strategy, default_root_dir=root, callbacks=callbacks)
    done.fit(module, data(), data())
    return module.begins_with, whole(expected)


def test_all_ranks_draw_the_weights_of_rank_0(tmp_path: Path) -> None:
    (first, expected), (second, others) = processes.run(sharded, [(tmp_path, 0), (tmp_path, 1)])
    assert not same(expected, others)  # what each rank's own seed would draw
    assert same(first, second)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="scheme has to be"):
        Initialize("xavier")  # type: ignore[arg-type]
