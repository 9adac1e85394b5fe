"""Loaders whose samples are augmented where they are loaded: the same for any number of workers."""

import pickle
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import fromarray
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)
from torchvision.transforms import v2

from lightning_practices.data import Augmentation, augmentation, augmented_loader, in_order
from tests.data.test_augmentation import photos
from tests.processes import run

COUNT = 10


class Noisy(Dataset[tuple[Tensor, int, float]]):
    """Samples with a random number of their own."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, int, float]:
        return photos(1)[0], index, torch.rand(()).item()


def own(image: Tensor) -> Tensor:
    return image * random.random() * np.random.rand()


AUGMENT = Augmentation(["crop", "rand", v2.Lambda(own)])


QUIET = TensorDataset(photos(1).expand(COUNT, -1, -1, -1), torch.arange(COUNT))


def plain(**options: Any) -> DataLoader[Any]:
    return DataLoader(QUIET, **{"batch_size": 4, "shuffle": True} | options)


def epochs(loader: DataLoader[Any], count: int = 2) -> list[list[Tensor]]:
    """Return the images and the indices of some epochs."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    passes = [list(loader) for _ in range(count)]
    return [
        [torch.cat([batch[entry] for batch in batches]) for entry in (0, 1)] for batches in passes
    ]


def same(a: list[list[Tensor]], b: list[list[Tensor]]) -> bool:
    return all(
        torch.equal(x, y) for one, other in zip(a, b, strict=True)
        for x, y in zip(one, other, strict=True)
    )  # fmt: skip


def states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]


def test_samples_and_random_states_are_the_same_for_any_number_of_workers() -> None:
    found, after = [], []
    for workers in (0, 1, 2):
        found.append(epochs(augmented_loader(plain(num_workers=workers), AUGMENT)))
        after.append(states())
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    assert after[0] == after[1] == after[2]
    first, second = found[0]
    assert not torch.equal(first[0], second[0])
    assert len({one.numpy().tobytes() for one in (*first[0], *second[0])}) == 2 * COUNT


def test_a_pass_draws_one_number_and_samples_draw_as_without_augmentation() -> None:
    """Also the numbers that the dataset itself draws, with and without workers."""
    for workers in (0, 2):
        loader = DataLoader(Noisy(), 4, num_workers=workers)
        torch.manual_seed(0)
        drawn = [value for _, _, values in augmented_loader(loader, AUGMENT) for value in values]
        after = torch.rand(3)
        torch.manual_seed(0)
        batches = iter(loader)  # which draws the seed of the workers
        if workers:
            expected = [value for _, _, values in batches for value in values]
            torch.empty((), dtype=torch.int64).random_()
        else:
            torch.empty((), dtype=torch.int64).random_()
            expected = [value for _, _, values in batches for value in values]
        assert drawn == expected
        assert torch.equal(after, torch.rand(3))


def test_persistent_workers() -> None:
    found = [
        epochs(augmented_loader(plain(num_workers=workers, persistent_workers=True), AUGMENT), 3)
        for workers in (1, 2)
    ]
    assert same(*found)
    assert same(found[0][:1], epochs(augmented_loader(plain(), AUGMENT), 1))
    assert len({image.numpy().tobytes() for images, _ in found[0] for image in images}) == 3 * COUNT


@pytest.mark.parametrize("workers", [0, 1])
def test_other_samplers(workers: int) -> None:
    sampler = WeightedRandomSampler([1.0] + [0.0] * (COUNT - 1), 12)
    ((images, indices),) = epochs(
        augmented_loader(plain(shuffle=False, sampler=sampler, num_workers=workers), AUGMENT), 1
    )
    assert indices.tolist() == [0] * 12
    assert len({one.numpy().tobytes() for one in images}) == 12  # duplicates draw for themselves

    class Pairs(BatchSampler):
        pass

    pairs = Pairs(RandomSampler(QUIET), 2, False)
    custom = augmented_loader(DataLoader(QUIET, batch_sampler=pairs, num_workers=workers), AUGMENT)
    assert len(custom) == 5
    ((images, indices),) = epochs(custom, 1)
    assert sorted(indices.tolist()) == list(range(COUNT))
    assert len({one.numpy().tobytes() for one in images}) == COUNT
    single = augmented_loader(plain(batch_size=None, num_workers=workers), AUGMENT)
    assert len(single) == COUNT
    torch.manual_seed(0)
    samples = list(single)
    assert sorted(index for _, index in samples) == list(range(COUNT))
    assert len({image.numpy().tobytes() for image, *_ in samples}) == COUNT


def test_a_dataset_that_fetches_batches() -> None:
    fetched: list[list[int]] = []

    class Batched(Noisy):
        def __getitems__(self, indices: list[int]) -> list[Any]:
            fetched.append(indices)
            return [self[index] for index in indices]

    loader = DataLoader(Batched(), 4)
    ((images, _),) = epochs(augmented_loader(loader, AUGMENT), 1)
    assert fetched == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert same([[images]], [epochs(augmented_loader(DataLoader(Noisy(), 4), AUGMENT), 1)[0][:1]])


def test_everything_else_is_as_in_the_loader() -> None:
    def collate(samples: list[Any]) -> Any:
        return samples

    loader = DataLoader(Noisy(), 4, True, collate_fn=collate, drop_last=True)
    loader.dataset.classes = ["a"]  # type: ignore[attr-defined]
    made = augmented_loader(loader, AUGMENT)
    assert made.dataset.classes == ["a"]  # type: ignore[attr-defined]
    assert len(made) == 2
    assert isinstance(next(iter(made)), list)
    assert made.sampler is loader.sampler
    assert loader.dataset[0][0].equal(photos(1)[0])


def test_the_dataset_reaches_processes_that_are_not_forked() -> None:
    loader = augmented_loader(plain(), Augmentation(["crop", "rand", "cutout", "affine"]))
    again = pickle.loads(pickle.dumps(loader.dataset))
    index = next(iter(loader.batch_sampler or []))[0]
    assert again[index][0].equal(loader.dataset[index][0])


class Named(Dataset[dict[str, Any]]):
    """PIL images in dicts."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = photos(1, torch.uint8)[0].permute(1, 2, 0).numpy()
        return {"image": fromarray(pixels), "label": index}


def test_images_of_pil_in_dicts() -> None:
    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    augment = Augmentation(["auto", "small_images", to_tensor])
    found = []
    for workers in (0, 2):
        torch.manual_seed(0)
        (batch,) = augmented_loader(
            DataLoader(Named(), COUNT, num_workers=workers), augment, "image"
        )
        found.append(batch["image"])
        assert batch["label"].tolist() == list(range(COUNT))
    assert torch.equal(*found)
    assert found[0].shape == (COUNT, 3, 13, 18)
    assert len({one.numpy().tobytes() for one in found[0]}) == COUNT
    with pytest.raises(KeyError, match="no entry 0: the entries are 'image', 'label'"):
        next(iter(augmented_loader(DataLoader(Named(), 2), augment)))
    with pytest.raises(IndexError, match="no entry 7: there are 2, from 0 on"):
        next(iter(augmented_loader(plain(), augment, 7)))


def test_images_of_different_sizes() -> None:
    class Sizes(Noisy):
        def __getitem__(self, index: int) -> Any:
            return torch.rand(3, 10 + index, 20 - index), index

    (batch,) = augmented_loader(DataLoader(Sizes(), COUNT), augmentation("photos", size=8))
    assert batch[0].shape == (COUNT, 3, 8, 8)


def of_rank(workers: int) -> list[Tensor]:
    loader = augmented_loader(plain(shuffle=False, num_workers=workers), AUGMENT)
    return epochs(loader, 1)[0]


def test_ranks_with_the_same_seed_draw_differently() -> None:
    first, second = run(of_rank, [(0,), (2,)])
    assert torch.equal(first[1], second[1])
    assert not any(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))


def test_the_samples_in_order_need_seeds() -> None:
    loader = augmented_loader(plain(), AUGMENT)
    with pytest.raises(
        TypeError, match=r"a seed with their index, but got 0: .*augment_on='device'"
    ):
        next(iter(DataLoader(Subset(loader.dataset, [0]))))
    assert in_order(plain()) is not None


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield photos(1)[0]


class Own(DataLoader[Any]):
    pass


def test_bad_input_is_refused() -> None:
    x = TensorDataset(photos())
    for loader, message in (
        (DataLoader(Endless()), "Endless is an IterableDataset, .*augment_on='device'"),
        (Own(x), "of class Own: augment on the device instead"),
        ([photos()], "loader has to be a torch.utils.data.DataLoader"),
    ):
        with pytest.raises(TypeError, match=message):
            augmented_loader(loader, AUGMENT)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="augmentation has to be an Augmentation, but got 'flip'"):
        augmented_loader(DataLoader(x), "flip")  # type: ignore[arg-type]
    standardised = DataLoader(TensorDataset(photos() - 0.5), 2)
    with pytest.raises(ValueError, match="RandAugment takes floating images from 0 to 1"):
        next(iter(augmented_loader(standardised, augmentation("rand"))))
    arrays: Any = DataLoader([(photos(1)[0].numpy(), 0)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a tensor or a PIL image, but got array"):
        next(iter(augmented_loader(arrays, augmentation("flip"))))
