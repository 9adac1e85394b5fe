"""The mixin that combines the practices of data."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_practices.data import Entry, OneAugmentation, PreprocessingSteps
from lightning_practices.mixins._augmentation import AugmentationMixin, Place
from lightning_practices.mixins._preprocessing import PreprocessingMixin


class DataPractices(AugmentationMixin, PreprocessingMixin):
    """The practices of data, in one mixin for a LightningDataModule.

    ::

        class Data(DataPractices, LightningDataModule):
            def __init__(self, batch_size: int = 64, **practices):
                super().__init__(**practices)
                self.batch_size = batch_size

            def train_dataloader(self): ...
            def val_dataloader(self): ...

        Data(augment="small_images", preprocess="standardize")

    It is the counterpart of :class:`TrainingPractices`, which is for the module. Training batches
    are augmented first and preprocessed then, and the others are preprocessed alone. The statistics
    of preprocessing are those of samples that are not augmented.

    If your class has its own ``on_after_batch_transfer``, call ``super().on_after_batch_transfer``
    in it. Loaders that are given to the Trainer in place of the
    datamodule are not preprocessed. MixUp and CutMix make targets probabilities of shape
    ``(N, classes)``: give metrics :func:`~lightning_practices.data.hard_targets` of them.

    With ``**practices`` in your ``__init__``, as above, ``LightningCLI(Net, Data)`` offers all
    arguments. In YAML a transform with options is written as ``class_path:
    torchvision.transforms.v2.RandAugment`` with ``init_args: {magnitude: 7}``, or as ``class_path:
    lightning_practices.data.augmentation`` with ``init_args: {name: rotation}`` and ``dict_kwargs:
    {degrees: 10}``.

    Args:
        *args: Positional arguments for the next base class.
        augment: See :class:`AugmentationMixin`.
        augment_on: See :class:`AugmentationMixin`.
        augment_entry: See :class:`AugmentationMixin`.
        augment_target: See :class:`AugmentationMixin`.
        preprocess: See :class:`PreprocessingMixin`.
        **kwargs: Keyword arguments for the next base class.

    Raises:
        TypeError: See the mixins.
        ValueError: See the mixins.
        RuntimeError: See :class:`PreprocessingMixin`.

    Example:
        >>> from lightning.pytorch import LightningDataModule, Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.mixins import DataPractices
        >>> class Data(DataPractices, LightningDataModule):
        ...     def train_dataloader(self):
        ...         return torch.utils.data.DataLoader(5 + 3 * torch.randn(64, 32), batch_size=16)
        ...     val_dataloader = train_dataloader
        >>> data = Data(preprocess="standardize")
        >>> Trainer(barebones=True, accelerator="cpu", max_steps=2).fit(BoringModel(), data)
        >>> data.preprocessing
        BatchPreprocessing({0: Standardize(per='auto')})
    """

    def __init__(
        self,
        *args: Any,
        augment: OneAugmentation | Sequence[OneAugmentation] | None = None,
        augment_on: Place = "workers",
        augment_entry: Entry = 0,
        augment_target: Entry = 1,
        preprocess: PreprocessingSteps | Mapping[int | str, PreprocessingSteps] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
            augment=augment,
            augment_on=augment_on,
            augment_entry=augment_entry,
            augment_target=augment_target,
            preprocess=preprocess,
            **kwargs,
        )
