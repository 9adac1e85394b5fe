"""The contact sheet of augmentations, drawn as a user draws it, and what is on it."""

from pathlib import Path
from typing import get_args

import torch

from examples import augmentation as example
from lightning_practices.data import AugmentationName
from tests.examples.scripts import assert_like_the_committed, run_main


def test_the_panels() -> None:
    photographs = example.load_photographs()
    panels = example.make_panels(photographs)
    assert set(example.PANELS) == set(get_args(AugmentationName)) - {"small_images", "digits"}
    original, flipped, turned, *others = panels.values()
    assert torch.equal(original, photographs)
    for made, dim in ((flipped, 3), (turned, 2)):
        either = [
            torch.equal(one, plain.flip(dim - 1)) or torch.equal(one, plain)
            for one, plain in zip(made, photographs, strict=True)
        ]
        assert all(either)
        assert not torch.equal(made, photographs)
    for images in others:
        assert images.shape[2:] != photographs.shape[2:] or not torch.equal(images, photographs)
    *_, mixed, cut = panels.items()
    share = float(mixed[0].split()[2])
    expected = share * photographs + (1 - share) * photographs.flip(0)
    torch.testing.assert_close(mixed[1], expected, atol=0.006, rtol=0)  # the title has two digits
    own = (cut[1] == photographs).all(1).double().mean((1, 2))
    assert (own - float(cut[0].split()[2])).abs().max() < 0.02


def test_the_picture(tmp_path: Path) -> None:
    out = tmp_path / "new" / "sheet.png"
    run_main(example, "--out", out)
    assert list(out.parent.iterdir()) == [out]
    assert_like_the_committed(out, example)
