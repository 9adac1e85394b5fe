"""The layer that augments images, for any training loop."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.transforms import v2
from typing_extensions import override

from lightning_practices._arguments import check_whole, shown
from lightning_practices._seeds import hashed
from lightning_practices.data._augmentation.checks import check_batch
from lightning_practices.data._augmentation.mixing import is_mixing, mixed
from lightning_practices.data._augmentation.names import AugmentationName, transforms_of
from lightning_practices.data._augmentation.samples import transformed_batch, transformed_sample
from lightning_practices.data._augmentation.states import drawn_seed, seed_all, states_kept
from lightning_practices.data._entries import Entry, item_of, with_item

OneAugmentation = AugmentationName | nn.Module
"""An augmentation: its name, or a transform."""

# For a batch without the entry.
HINT = "; give augment_entry=... and, for MixUp and CutMix, augment_target=..."


class Augmentation(nn.Module):
    """Augment images in training, each by draws of its own, and not in evaluation.

    ::

        augment = Augmentation(["crop", "flip", v2.RandomErasing(p=0.25)])
        images = augment(images)                    # (N, C, H, W), on any device
        images, targets = Augmentation(["flip", v2.MixUp(num_classes=10)])(images, targets)

    The transforms are torchvision's. Called with a batch, they draw once for all of its images
    (vision issues 2929 and 8484). Here each image has its own draw, as if it was transformed alone.
    These transforms are computed for the whole batch at once: flips, ``RandomRotation``,
    ``RandomAffine``, ``RandomCrop``, ``ColorJitter`` without ``hue``, and ``RandomErasing`` with
    given values. All others, such as ``AutoAugment``, ``RandAugment``, ``TrivialAugmentWide``,
    ``RandomResizedCrop`` and your own, are called for one image after another.

    ``MixUp`` and ``CutMix`` mix the images of a batch, with one draw for the batch, as in their
    papers. They come last, wherever they are listed, and make targets that are probabilities: see
    :func:`hard_targets`.

    Transforms of colours clamp floating images to [0, 1]. So images have to be augmented before
    they are standardised. Others are refused at the first call.

    Args:
        transforms: A name of :func:`augmentation`; a transform of torchvision, such as
            ``v2.Lambda(function)`` for a function of your own from image to image, or another
            module; or a list of these.

    Raises:
        TypeError: If ``transforms`` is none of these. When it is called, if images are neither
            floating nor uint8.
        ValueError: If there is no transform, or a name is unknown. When it is called, if floating
            images are outside of [0, 1] where a transform would clamp them; or the shape is wrong.

    Example:
        >>> from lightning_practices.data import Augmentation
        >>> augment = Augmentation(["flip", "crop"])
        >>> images = torch.rand(8, 3, 32, 32)
        >>> augment(images).shape
        torch.Size([8, 3, 32, 32])
        >>> torch.equal(augment.eval()(images), images)
        True
    """

    def __init__(self, transforms: OneAugmentation | Sequence[OneAugmentation]) -> None:
        super().__init__()
        found = _flat(transforms)
        if not found:
            raise ValueError("transforms has to hold at least one transform, but it is empty")
        self.per_sample = nn.ModuleList(one for one in found if not is_mixing(one))
        """The transforms of single samples, in their order."""
        self.mixing = nn.ModuleList(one for one in found if is_mixing(one))
        """The transforms that mix the samples of a batch."""
        self._has_checked = False

    @override
    def forward(self, images: Any, targets: Any = None, *, seed: int | None = None) -> Any:
        """Return augmented images, and targets if they are given.

        Args:
            images: A batch ``(N, C, H, W)``, floating or uint8; or one image, a tensor
                ``(C, H, W)`` or a PIL image.
            targets: Class indices ``(N)``, or probabilities ``(N, K)``, for MixUp and CutMix.
            seed: What all draws depend on. Default: a number from torch's global generator on the
                CPU.

        Returns:
            The images, or a tuple of images and targets.
        """
        if self.training:
            seed = drawn_seed() if seed is None else check_whole("seed", seed, 0)
            images = self.augment_samples(images, seed)
            if self.mixing:
                images, targets = self.mix(images, targets, seed)
        return images if targets is None else (images, targets)

    def augment_samples(self, images: Any, seed: int) -> Any:
        """Return a batch, or one image, after the transforms of single samples.

        Args:
            images: See ``forward``.
            seed: The draws depend on this number of at most 64 bits, and on the shape, alone.
        """
        is_checked, self._has_checked = not self._has_checked, True
        if isinstance(images, Tensor) and images.ndim > 3:
            return transformed_batch(self.per_sample, images, seed, is_checked)  # type: ignore[arg-type]
        with states_kept():
            seed_all(seed)
            return transformed_sample(self.per_sample, images, is_checked)  # type: ignore[arg-type]

    def mix(self, images: Tensor, targets: Any, seed: int) -> tuple[Tensor, Tensor]:
        """Return a batch after the transforms that mix samples; for the arguments see above."""
        return mixed(self.mixing, images, targets, hashed(seed, 1))  # type: ignore[arg-type]

    def augment_batch(
        self, batch: Any, seed: int, entry: Entry = 0, target: Entry = 1, samples: bool = True
    ) -> Any:
        """Return a batch of the same type with augmented images, and targets if they are mixed.

        Args:
            batch: A tensor of images, a tuple or list, or a dict.
            seed: See :meth:`augment_samples`.
            entry: Where the images are: a position in a tuple, or a key of a dict.
            target: Where the targets are.
            samples: Whether the single samples are transformed. If not they are mixed alone, as
                after :func:`augmented_loader`.
        """
        images = item_of(batch, entry, HINT)
        if samples and self.per_sample:
            check_batch(images)
            images = self.augment_samples(images, seed)
        if self.mixing:
            images, targets = self.mix(images, item_of(batch, target, HINT), seed)
            batch = with_item(batch, target, targets)
        return with_item(batch, entry, images)


def _flat(given: Any) -> list[nn.Module]:
    """Return the transforms that a value stands for, in their order."""
    if isinstance(given, str):
        return transforms_of(given, "transforms")
    if isinstance(given, Augmentation):
        return [*given.per_sample, *given.mixing]
    if isinstance(given, v2.Compose):
        given = given.transforms
    if isinstance(given, list | tuple | nn.Sequential | nn.ModuleList):
        return [one for item in given for one in _flat(item)]
    if isinstance(given, nn.Module):
        return [given]
    got = f"the class {given.__name__}" if isinstance(given, type) else shown(given)
    raise TypeError(
        "transforms has to be a name such as 'flip', a transform of torchvision.transforms.v2, or a"
        f" list of these, but got {got}; a function of an image is v2.Lambda(function)"
    )


def augmentation(name: AugmentationName, **options: Any) -> Augmentation:
    """Return the augmentation of a name, for training.

    ========================  ======================================================================
    name                      transform, with torchvision's options and defaults unless named
    ========================  ======================================================================
    ``"flip"``                ``RandomHorizontalFlip``
    ``"vertical_flip"``       ``RandomVerticalFlip``
    ``"rotation"``            ``RandomRotation``, ``degrees=22.5`` either way
    ``"crop"``                ``RandomCrop`` of ``size``; without a size the image is padded, by 4
                              pixels unless ``padding`` is given, and cropped to the size it had
    ``"affine"``              ``RandomAffine``, ``degrees=22.5``, ``translate=(0.1, 0.1)``,
                              ``scale=(0.9, 1.1)``, ``shear=10``
    ``"shift"``               ``RandomAffine`` that shifts alone, by at most the shares
                              ``width=0.1`` and ``height=0.1`` of the image
    ``"brightness"``          ``ColorJitter``, ``brightness=0.2``
    ``"cutout"``              ``RandomErasing``
    ``"auto"``                ``AutoAugment``
    ``"rand"``                ``RandAugment``
    ``"trivial"``             ``TrivialAugmentWide``
    ``"mixup"``               ``MixUp``; give ``num_classes``
    ``"cutmix"``              ``CutMix``; give ``num_classes``
    ``"digits"``              no flips, which change a digit: bilinear
                              ``RandomAffine(10, (0.1, 0.1), (0.9, 1.1))``
    ``"small_images"``        crop after a padding of 4 and flip, as He et al. 2016,
                              arXiv:1512.03385, section 4.2, train on CIFAR
    ``"photos"``              ``RandomResizedCrop`` to ``size=224``, flip, ``TrivialAugmentWide``
                              and ``RandomErasing(0.1)``, as in torchvision's recipe of 2021, *How
                              to train state-of-the-art models using TorchVision's latest
                              primitives*
    ========================  ======================================================================

    Centring and whitening, which lecture S0 lists here, shift and scale the images of all splits
    alike. They are :class:`MeanSubtraction` and :class:`Whiten`.

    Sources: lecture S0; Cutout: DeVries and Taylor 2017, arXiv:1708.04552; random erasing: Zhong et
    al. 2017, arXiv:1708.04896; AutoAugment: Cubuk et al. 2018, arXiv:1805.09501; RandAugment: Cubuk
    et al. 2019, arXiv:1909.13719; TrivialAugment: Müller and Hutter 2021, arXiv:2103.10158; MixUp:
    Zhang et al. 2017, arXiv:1710.09412; CutMix: Yun et al. 2019, arXiv:1905.04899.

    Args:
        name: One of the names above.
        **options: Options of the transform.

    Raises:
        TypeError: If the transform doesn't take an option.
        ValueError: If there is no such name, or an option is out of range.

    Example:
        >>> from lightning_practices.data import augmentation
        >>> augmentation("rotation", degrees=10).per_sample
        ModuleList(
          (0): RandomRotation(degrees=[-10.0, 10.0], interpolation=nearest, expand=False, fill=0)
        )
    """
    return Augmentation(transforms_of(name, **options))
