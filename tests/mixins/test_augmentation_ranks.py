"""Augmentation in fits on several ranks, which draw differently and read their own shares."""

from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torchvision.transforms import v2

from tests.mixins.augmented import COUNT, Data, Net, images, rows, trainer
from tests.processes import run

AUGMENT = ["crop", "rotation", v2.RandAugment()]


def fit_on_ranks(place: Any, workers: int, own_sampler: bool) -> tuple[Tensor, Tensor, Any]:
    class Same(Data):
        def train_dataloader(self) -> Any:
            x = self.train.tensors[0][:1].expand(COUNT, -1, -1, -1)
            dataset = TensorDataset(x, torch.arange(COUNT))
            sampler: Any = DistributedSampler(dataset, seed=5) if own_sampler else None
            return DataLoader(
                dataset, 4, sampler=sampler, shuffle=sampler is None, num_workers=workers
            )

    class Summed(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.got["train"].append(batch)
            result: Tensor = self(batch[0]).square().mean()
            return result

    seed_everything(1, verbose=False)
    net, data = Summed(), Same(augment=AUGMENT, augment_on=place)
    one = trainer(devices=2, strategy="ddp")
    one.fit(net, datamodule=data)
    loader: Any = one.train_dataloader
    sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler.sampler
    targets = torch.cat([batch[1] for batch in net.got["train"]])
    return images(net.got["train"]), targets, (type(sampler).__name__, sampler.seed)


@pytest.mark.parametrize(
    ("place", "workers", "own_sampler"),
    [("workers", 0, False), ("workers", 2, True), ("device", 0, False)],
)
def test_ranks_draw_differently_and_read_their_shares(
    place: str, workers: int, own_sampler: bool
) -> None:
    first, second = run(fit_on_ranks, [(place, workers, own_sampler)] * 2)
    for epoch in (0, 1):
        both = torch.cat([one[1].view(2, -1)[epoch] for one in (first, second)])
        assert sorted(both.tolist()) == list(range(COUNT))  # Lightning's sampler, or one's own
    assert len(rows(first[0])) == len(rows(second[0])) == COUNT
    assert not rows(first[0]) & rows(second[0])
    assert first[2] == ("DistributedSampler", 5 if own_sampler else 1)


def unbatched_on_ranks() -> str:
    class Unbatched(Data):
        def train_dataloader(self) -> Any:
            return DataLoader(self.train, None, shuffle=True)

    with pytest.raises(TypeError) as error:
        trainer(devices=2, strategy="ddp").fit(Net(), datamodule=Unbatched(augment="flip"))
    return str(error.value)


def test_without_batches_several_ranks_are_refused() -> None:
    for message in run(unbatched_on_ranks, [(), ()]):
        assert "give it a batch_size" in message
