"""Augmentation of batches against torchvision's own transforms, one sample after another."""

import random
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2

from lightning_practices._seeds import hashed
from lightning_practices.data import Augmentation, AugmentationName, augmentation, hard_targets
from lightning_practices.data._augmentation.vectorized import vectorized
from lightning_practices.nn import LabelSmoothingCrossEntropyLoss

HEIGHT, WIDTH = 13, 18
NAMES = [name for name in get_args(AugmentationName) if name not in ("mixup", "cutmix")]


def photos(count: int = 6, dtype: torch.dtype = torch.float32, channels: int = 3) -> Tensor:
    """Return smooth images, since interpolation of noise shows nothing."""
    generator = torch.Generator().manual_seed(3)
    small = torch.rand(count, channels, 4, 5, generator=generator, dtype=torch.float64)
    x = torch.nn.functional.interpolate(small, (HEIGHT, WIDTH), mode="bilinear")
    return (x * 255).round().to(dtype) if dtype == torch.uint8 else x.to(dtype)


def affine(**options: Any) -> v2.RandomAffine:
    return v2.RandomAffine(30, (0.2, 0.3), (0.7, 1.4), [-10, 10, -5, 8], **options)


VECTORIZED: dict[str, Callable[[], Any]] = {
    "flip": v2.RandomHorizontalFlip,
    "vertical flip": lambda: v2.RandomVerticalFlip(0.7),
    "rotation": lambda: v2.RandomRotation(22.5),
    "bilinear rotation": lambda: augmentation(
        "rotation", degrees=[10, 60], interpolation="bilinear", fill=0.3
    ).per_sample[0],
    "rotation about a point": lambda: v2.RandomRotation(180, center=[2, 3], fill=[0.1, 0.2, 0.9]),
    "affine": affine,
    "bilinear affine": lambda: affine(interpolation=v2.InterpolationMode.BILINEAR),
    "affine, one shear": lambda: v2.RandomAffine(0, shear=20, center=[1, 2], fill=None),
    "shift": lambda: augmentation("shift", width=0.3).per_sample[0],
    "crop": lambda: v2.RandomCrop((7, 11)),
    "padded crop": lambda: v2.RandomCrop((12, 11), [1, 2, 3, 4], fill=1),
    "reflected crop": lambda: v2.RandomCrop((20, 20), 3, True, padding_mode="reflect"),
    "crop of one direction": lambda: v2.RandomCrop((HEIGHT, 9)),
    "crop to the same size": lambda: augmentation("crop").per_sample[0],
    "brightness": lambda: v2.ColorJitter(brightness=0.5),
    "contrast": lambda: v2.ColorJitter(contrast=(0.2, 1.9)),
    "saturation": lambda: v2.ColorJitter(saturation=0.9),
    "all colours": lambda: v2.ColorJitter(0.4, 0.5, 0.6),
    "erasing": v2.RandomErasing,
    "erasing of each channel": lambda: v2.RandomErasing(
        0.9, (0.1, 0.9), (0.5, 2), [0.0, 1.0, 0.25]
    ),
}


def forms(transform: Any) -> Any:
    found = vectorized(transform)
    assert found is not None
    return found


def of_sample(draws: dict[str, Tensor], number: int) -> dict[str, Any]:
    """Return torchvision's parameters of one sample."""
    rows = {name: values[number] for name, values in draws.items()}
    made: dict[str, Any] = {name: row.tolist() for name, row in rows.items()}
    if "top" in made:
        made |= {"needs_crop": True, "needs_pad": any(made["padding"])}
    if "fn_idx" in made:
        names = ("brightness", "contrast", "saturation", "hue")
        made |= {f"{name}_factor": made.get(f"{name}_factor") for name in names}
    return made


def one_by_one(transform: Any, x: Tensor, draws: dict[str, Tensor]) -> Tensor:
    made = []
    for number, image in enumerate(x):
        params = of_sample(draws, number)
        if not params.pop("is_chosen", True):
            made.append(image)
            continue
        if isinstance(transform, v2.RandomErasing):
            params["v"] = torch.tensor(transform.value)[:, None, None]
        made.append(transform.transform(image, params))
    return torch.stack(made)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("name", VECTORIZED)
def test_a_batch_is_transformed_as_each_sample_by_torchvision(
    name: str, dtype: torch.dtype
) -> None:
    transform, x = VECTORIZED[name](), photos(16, dtype)
    form = forms(transform)
    draws = form.draw(transform, x, torch.Generator().manual_seed(0))
    found, expected = form.apply(transform, x, draws), one_by_one(transform, x, draws)
    assert found.dtype == expected.dtype == dtype
    assert found.is_contiguous()
    assert not torch.equal(expected, x)
    difference = (found.double() - expected.double()).abs()
    if dtype == torch.uint8:
        assert difference.max() <= 1  # where rounding decides
        assert (difference > 0).double().mean() < 0.01
    elif "nearest" in str(getattr(transform, "interpolation", "")):
        assert (difference > 1e-6).double().mean() < 0.01  # positions halfway between two pixels
    else:
        assert difference.max() < (1e-5 if dtype == torch.float32 else 1e-6)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "all colours"])
def test_gray_images(name: str) -> None:
    transform = VECTORIZED[name]()
    form = forms(transform)
    for dtype in (torch.float32, torch.uint8):
        x = photos(8, dtype, channels=1)
        draws = form.draw(transform, x, torch.Generator().manual_seed(0))
        found, expected = form.apply(transform, x, draws), one_by_one(transform, x, draws)
        torch.testing.assert_close(
            found, expected, atol=1 if dtype == torch.uint8 else 1e-6, rtol=0
        )


@pytest.mark.parametrize("name", VECTORIZED)
def test_parameters_are_distributed_as_those_of_torchvision(name: str) -> None:
    """Means and spreads of each parameter, within five standard errors."""
    transform, count = VECTORIZED[name](), 4000
    x = photos(1).expand(count, -1, -1, -1)
    ours = forms(transform).draw(transform, x, torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    theirs: dict[str, list[Any]] = {}
    for _ in range(count):
        for key, value in transform.make_params([x[0]]).items():
            theirs.setdefault(key, []).append(value)
    is_chosen = ours.pop("is_chosen", None)
    if is_chosen is not None:
        share = is_chosen.double().mean()
        assert abs(share - transform.p) < 5 * (0.25 / count) ** 0.5
    for key, values in ours.items():
        a = values.double().view(count, -1)
        b = torch.tensor([torch.as_tensor(one).tolist() for one in theirs[key]]).double()
        b = b.view(count, -1)
        for moment in (lambda v: v, lambda v: v.square()):
            spread = moment(b).std(0) * (2 / count) ** 0.5
            assert bool(((moment(a).mean(0) - moment(b).mean(0)).abs() <= 5 * spread + 1e-6).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("name", NAMES)
def test_each_sample_has_its_own_draw(name: Any, dtype: torch.dtype) -> None:
    same = photos(1, dtype).expand(24, -1, -1, -1)
    options = {"size": 12} if name == "photos" else {}
    augment = augmentation(name, **options)
    y = augment(same, seed=0)
    kinds = {one.numpy().tobytes() for one in y}
    assert len(kinds) >= (2 if "flip" in name else 8)
    assert y.dtype == dtype
    before = same.clone()
    assert torch.equal(augment(same, seed=0), y)
    assert not torch.equal(augment(same, seed=1), y)
    assert torch.equal(same, before)


def test_torchvision_draws_once_for_a_batch() -> None:
    """The trap that the test above is about; if this fails, torchvision has mended it."""
    same = photos(1).expand(24, -1, -1, -1)
    for transform in (v2.RandomCrop(9), v2.ColorJitter(0.5), affine(), v2.RandomErasing(1)):
        assert len({one.numpy().tobytes() for one in transform(same)}) == 1


def generators() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]


def own(image: Tensor) -> Tensor:
    return image * random.random() * np.random.rand() * torch.rand(()).item()


def test_draws_depend_on_the_seed_alone_and_leave_the_generators() -> None:
    augment, x = Augmentation([v2.Lambda(own), v2.GaussianNoise(), *NAMES[:-2]]), photos(8)
    before = generators()
    y = augment(x, seed=5)
    image = augment(x[0], seed=5)
    assert generators() == before
    torch.rand(3), random.random(), np.random.rand()
    assert torch.equal(augment(x, seed=5), y)
    assert torch.equal(augment(x[0], seed=5), image)
    assert len({float(one.sum()) for one in augment(x[:1].expand(9, -1, -1, -1), seed=5)}) == 9


def test_without_a_seed_torchs_generator_decides() -> None:
    augment, x = augmentation("digits"), photos()
    torch.manual_seed(2)
    y, z = augment(x), augment(x)
    torch.manual_seed(2)
    assert torch.equal(augment(x), y)
    assert not torch.equal(y, z)


def test_it_is_off_in_evaluation() -> None:
    x, y = photos(), torch.arange(6)
    augment = Augmentation(["rand", v2.MixUp(num_classes=6)]).eval()
    assert augment(x) is x
    assert augment(x, y)[1] is y
    assert not torch.equal(augment.train()(x, y)[0], x)


def test_the_rest_is_called_for_one_image_after_another() -> None:
    for transform in (
        v2.ColorJitter(hue=0.3),
        v2.RandomErasing(1, value="random"),
        v2.RandomRotation(20, fill={torch.Tensor: 0.5, "others": 0}),
        v2.RandomPerspective(p=1),
        v2.RandomResizedCrop(9, antialias=True),
        v2.RandomApply([v2.ColorJitter(0.5), v2.RandomRotation(30)], p=0.9),
    ):
        y = Augmentation(transform)(photos(1).expand(8, -1, -1, -1), seed=1)
        assert len({one.numpy().tobytes() for one in y}) > 4
    with pytest.raises(ValueError, match="RandomRotation makes images of different shapes"):
        Augmentation(v2.RandomRotation(90, expand=True))(photos(), seed=1)
    resize = Augmentation([v2.Resize(6, antialias=True), v2.ToDtype(torch.uint8, scale=True)])
    torch.testing.assert_close(
        resize(photos()), resize.per_sample[1](resize.per_sample[0](photos()))
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_images_of_16_bits_are_computed_in_float32(name: Any, dtype: torch.dtype) -> None:
    x = photos(5).to(dtype)
    augment = augmentation(name, **({"size": 12} if name == "photos" else {}))
    y = augment(x, seed=3)
    assert y.dtype == dtype
    assert torch.equal(y, augment(x.float(), seed=3).to(dtype))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [0, 1])
def test_small_batches(name: Any, count: int) -> None:
    augment = augmentation(name, **({"size": 12} if name == "photos" else {}))
    assert len(augment(photos(1)[:count], seed=0)) == count


STANDARDIZED = [
    "auto", "rand", "trivial", "brightness", v2.ColorJitter(saturation=0.5),
    v2.RandomApply([v2.RandomSolarize(0.5)]), v2.RandomInvert(),
]  # fmt: skip


@pytest.mark.parametrize("given", STANDARDIZED, ids=str)
def test_standardised_images_are_refused_where_they_would_be_clamped(given: Any) -> None:
    x = (photos() - 0.5) / 0.25
    message = r"from 0 to 1, .* got values from -\S+ to \S+: augment first and standardise"
    with pytest.raises(ValueError, match=message):
        Augmentation(given)(x)
    with pytest.raises(ValueError, match=message):
        Augmentation(given)(x[0])
    with pytest.raises(ValueError, match=message):
        Augmentation([v2.Normalize([0.5] * 3, [0.1] * 3), given])(photos())
    with pytest.raises(ValueError, match="from 0 to 255 have to be uint8"):
        Augmentation(given)(photos() * 255)
    augment = Augmentation(given)
    augment(photos(dtype=torch.uint8))
    augment = Augmentation(["flip", "rotation", "cutout", "crop"])
    assert augment(x).amin() < -1  # what doesn't clamp takes any numbers


def test_the_range_is_checked_once() -> None:
    augment = Augmentation("rand")
    augment(photos())
    augment(photos() - 0.5)  # no error: a check costs a wait for the device at each step


def test_mixup_and_cutmix_are_torchvisions() -> None:
    x, y = photos(), torch.tensor([0, 1, 2, 3, 1, 0])
    for kind, name in ((v2.MixUp, "mixup"), (v2.CutMix, "cutmix")):
        augment = augmentation(name, num_classes=4)  # type: ignore[arg-type]
        images, targets = augment(x, y, seed=7)
        torch.default_generator.manual_seed(hashed(hashed(7, 1), 0))
        expected = kind(num_classes=4)(x, y)
        assert torch.equal(images, expected[0])
        assert torch.equal(targets, expected[1])
        as_bytes, soft = augment((x * 255).to(torch.uint8), y.int(), seed=7)
        assert as_bytes.dtype == torch.uint8
        assert torch.equal(soft, targets)
        torch.testing.assert_close(as_bytes / 255, images, atol=1.01 / 255 + 0.5 / 255, rtol=0)
        again = augmentation(name)(x, targets, seed=1)[1]  # type: ignore[arg-type]
        torch.testing.assert_close(again.sum(1), torch.ones(6))
        torch.testing.assert_close(augment(x[:1], y[:1])[0], x[:1])  # with itself


def test_mixing_comes_last() -> None:
    augment = Augmentation([v2.MixUp(num_classes=4), "flip"])
    assert [type(one) for one in augment.per_sample] == [v2.RandomHorizontalFlip]
    either = v2.RandomChoice([v2.MixUp(num_classes=4), v2.CutMix(num_classes=4)])
    assert len(Augmentation(["flip", either]).mixing) == 1
    with pytest.raises(ValueError, match="RandomChoice holds MixUp or CutMix beside"):
        Augmentation(v2.RandomChoice([v2.MixUp(num_classes=4), v2.RandomHorizontalFlip()]))


def test_losses_and_metrics_take_soft_targets() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, 1, 0])
    _, soft = augmentation("mixup", num_classes=4)(photos(), y, seed=7)
    share = soft.double()[torch.arange(6), y][1]  # no two neighbours share a class but the first
    own_loss, other = (
        torch.nn.functional.cross_entropy(logits, t, reduction="none") for t in (y, y.roll(1))
    )
    expected = share * own_loss + (1 - share) * other
    for loss in (
        torch.nn.CrossEntropyLoss(reduction="none"),
        LabelSmoothingCrossEntropyLoss(reduction="none").eval(),
    ):
        torch.testing.assert_close(loss(logits, soft.double()), expected, rtol=1e-6, atol=1e-6)
    smooth = LabelSmoothingCrossEntropyLoss(label_smoothing=0.2)(logits, soft.double())
    q = 0.8 * soft.double() + 0.05
    torch.testing.assert_close(smooth, -(q * logits.log_softmax(1)).sum(1).mean())
    hard = hard_targets(soft)
    assert torch.equal(hard, y if share > 0.5 else y.roll(1))
    accuracy = MulticlassAccuracy(4, average="micro")
    expected = (logits.argmax(1) == hard).double().mean()
    assert float(accuracy(logits, hard)) == pytest.approx(float(expected))


def test_hard_targets() -> None:
    y = torch.tensor([3, 1])
    assert hard_targets(y) is y
    pixels = torch.rand(2, 3, 4, 5)
    assert torch.equal(hard_targets(pixels), pixels.argmax(1))
    with pytest.raises(ValueError, match=r"\(N, K\).* but got \(3,\)"):
        hard_targets(torch.rand(3))
    with pytest.raises(TypeError, match="targets has to be a tensor"):
        hard_targets([1, 2])  # type: ignore[arg-type]


def test_names_have_torchvisions_options_and_defaults() -> None:
    def one(name: Any, **options: Any) -> Any:
        (transform,) = augmentation(name, **options).per_sample
        return transform

    assert one("rotation").degrees == [-22.5, 22.5]
    assert one("rotation", degrees=5, fill=1).degrees == [-5, 5]
    assert (one("cutout").p, one("cutout").scale) == (0.5, (0.02, 0.33))
    assert one("crop", size=9, padding=2).size == (9, 9)
    assert one("rand", magnitude=3).magnitude == 3
    assert one("shift", width=0.3).translate == (0.3, 0.1)
    assert one("brightness").brightness == (0.8, 1.2)
    assert one("affine").shear == [-10, 10]
    assert augmentation("mixup", num_classes=3, alpha=0.2).mixing[0].alpha == 0.2


named: Any = augmentation
made_of: Any = Augmentation


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: named("rotate"), ValueError, "did you mean 'rotation'"),
        (lambda: named("whitening"), ValueError, "preprocess='whiten' of the datamodule"),
        (lambda: named("center"), ValueError, "by statistics of the training split"),
        (lambda: augmentation("flip", degrees=3), TypeError, "augmentation.'flip'.: .*degrees"),
        (lambda: augmentation("affine", interpolation="linear"), ValueError, "'bilinear'"),
        (lambda: augmentation("shift", width=2), ValueError, "width has to be .* but got 2"),
        (lambda: named(3), TypeError, "name has to be 'flip'"),
        (lambda: Augmentation([]), ValueError, "at least one transform"),
        (lambda: made_of(3), TypeError, "transforms has to be a name .* got 3"),
        (lambda: made_of(own), TypeError, r"got <function own.*v2.Lambda\(function\)"),
        (lambda: Augmentation(v2.RandomCrop), TypeError, "got the class RandomCrop"),
        (lambda: Augmentation("flip")(photos().long()), TypeError, "uint8 or floating.*int64"),
        (lambda: Augmentation("flip")(photos().numpy()), TypeError, "a tensor or a PIL image"),
        (lambda: Augmentation("flip")(photos()[None]), ValueError, r"\(N, C, H, W\), but got"),
        (lambda: Augmentation("flip")(photos(), seed=-1), ValueError, "seed has to be"),
        (lambda: Augmentation("brightness")(photos(channels=2)), TypeError, "1 or 3 channels"),
        (lambda: augmentation("crop", size=40)(photos()), ValueError, "larger than"),
        (lambda: Augmentation(v2.RandomErasing(value=[1, 2]))(photos()), ValueError, "2 values"),
        (lambda: augmentation("mixup")(photos()), TypeError, "targets as a tensor"),
        (lambda: augmentation("mixup")(photos(), torch.arange(6)), ValueError, "num_classes=10"),
        (lambda: augmentation("cutmix")(photos(), torch.rand(6)), TypeError, "mix classes"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make: Callable[[], Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make()
