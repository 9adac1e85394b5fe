"""The timing of a training step with and without fused layers."""

from typing import Any

import pytest
import torch
from torch import nn

from lightning_practices.reproduce import Results, all_tables
from lightning_practices.reproduce.tables import fusing
from lightning_practices.surgery import fuse
from lightning_practices.timing import Times

pytestmark = pytest.mark.plain

TABLE = all_tables()["fusing"]


class Calls(list[tuple[nn.Module, torch.Tensor]]):
    """The calls of ``fuse``, each of which reports the next of these ratios."""

    def __init__(self, *ratios: float) -> None:
        super().__init__()
        self.ratios = ratios

    def fuse(self, model: nn.Module, batch: torch.Tensor) -> Any:
        report = fuse(model)
        report.step = Times(torch=2e-3, ours=2e-3 * self.ratios[len(self)], noise=0.0)
        self.append((model, batch))
        return report


@pytest.mark.parametrize(
    ("network", "shape", "layers"),
    # A ResNet-18 has 20 batch norms, each replaced, of which 17 are also folded; each of the
    # transformer's four layers is replaced, with its two norms and three dropouts.
    [("ResNet-18", (4, 3, 32, 32), 20), ("transformer", (4, 32, 256), 4 * 6)],
)
def test_the_layers_are_those_that_were_chosen_and_the_time_is_measured_anew(
    network: str, shape: tuple[int, ...], layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(0.5, 0.75)
    monkeypatch.setattr(fusing, "fuse", calls.fuse)
    made = TABLE.experiment(seed=0, network=network, fused=True, batch_size=4, size=32)
    assert made == {fusing.TIME: 0.75, "layers": layers}
    (model, batch), (again, other) = calls
    assert model is again
    assert model.training
    assert batch is other
    assert batch.shape == shape


def test_where_nothing_stays_fused_the_step_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(1.25)
    monkeypatch.setattr(fusing, "fuse", calls.fuse)
    monkeypatch.setitem(fusing.NETWORKS, "linear", (lambda: nn.Linear(8, 8), lambda size: (8,)))
    made = TABLE.experiment(seed=0, network="linear", fused=True)
    assert made == {fusing.TIME: 1.0, "layers": 0.0}


def test_seeds_have_weights_and_batches_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(*[0.5] * 6)
    monkeypatch.setattr(fusing, "fuse", calls.fuse)
    for seed in (0, 0, 1):
        TABLE.experiment(seed=seed, network="transformer", fused=True, batch_size=1, size=4)
    (first, x), (again, y), (other, z) = calls[::2]
    assert torch.equal(x, y)
    assert not torch.equal(x, z)
    name = "layers.0.linear1.weight"
    weights = [model.get_parameter(name) for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_quick_trials_of_all_cells_run() -> None:
    metrics = {column.metric for column in TABLE.columns.values()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for settings in Results(TABLE, tiny=True).different_settings():
            made = TABLE.experiment(seed=0, **settings)
            assert made.keys() == metrics
            nothing = {fusing.TIME: 1.0, "layers": 0.0}
            if not settings["fused"]:
                assert made == nothing
            assert (made["layers"] > 0 and made[fusing.TIME] > 0) or made == nothing
    finally:
        torch.set_num_threads(threads)


def test_its_runs_need_the_machine_alone() -> None:
    assert TABLE.alone
