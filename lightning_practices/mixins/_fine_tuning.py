"""The mixin for transfer learning."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from lightning_practices.callbacks import ProgressiveUnfreezing, UnfreezingSchedule
from lightning_practices.mixins._practice import PracticeMixin, configured


class FineTuningMixin(PracticeMixin):
    """Add :class:`~lightning_practices.callbacks.ProgressiveUnfreezing` to every fit.

    List the mixin before the class that it extends, which has a pretrained backbone and a new
    head::

        class Net(FineTuningMixin, LightningModule):
            def __init__(self):
                super().__init__()
                self.backbone = torchvision.models.resnet18(weights="DEFAULT")
                self.backbone.fc = nn.Identity()
                self.head = nn.Linear(512, 10)

    The first epoch trains the head alone. Each later epoch unfreezes two more blocks of the
    backbone, from the top down. Deeper blocks have lower learning rates. If an epoch has few steps,
    give a schedule with longer phases. If the modules have other names than ``backbone`` and
    ``head``, give ``ProgressiveUnfreezing(backbone="trunk", head="trunk.fc")``.

    If ``Net`` has its own ``configure_callbacks``, extend the list that
    ``super().configure_callbacks()`` returns. The mixin's callback replaces a
    ``ProgressiveUnfreezing`` that was passed to the Trainer, and Lightning logs a message.

    Args:
        *args: Positional arguments for the next base class.
        fine_tuning: The phases for a ``backbone`` and a ``head``, as a list, a dict or a path to a
            YAML file, or ``"auto"``; or a
            :class:`~lightning_practices.callbacks.ProgressiveUnfreezing`; or ``None``, to train
            all of the module from the start.
        **kwargs: Keyword arguments for the next base class.

    Raises:
        ValueError: If the schedule is malformed. When the fit starts, if the module lacks the
            backbone or the head, or has parameters outside of both.
        MisconfigurationException: When the fit starts, see the callback.
        TypeError: On subclassing, if bases are of both packages of Lightning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.mixins import FineTuningMixin
        >>> class Net(FineTuningMixin, BoringModel):
        ...     def __init__(self, **practices):
        ...         super().__init__(**practices)
        ...         self.backbone, self.head = nn.Linear(32, 32), self.layer
        ...         del self.layer
        ...     def forward(self, x):
        ...         return self.head(self.backbone(x).relu())
        ...     def on_train_batch_end(self, *_):
        ...         print([name for name, p in self.named_parameters() if p.requires_grad])
        >>> phases = [{"blocks": ["head"], "until": {"step": 1}}, {"blocks": ["backbone"]}]
        >>> Trainer(barebones=True, accelerator="cpu", max_steps=2).fit(Net(fine_tuning=phases))
        ['head.weight', 'head.bias']
        ['backbone.weight', 'backbone.bias', 'head.weight', 'head.bias']
    """

    def __init__(
        self,
        *args: Any,
        fine_tuning: ProgressiveUnfreezing | UnfreezingSchedule | None = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        callback = configured(
            "fine_tuning",
            fine_tuning,
            ProgressiveUnfreezing,
            (str, Sequence, Mapping, PathLike),
            lambda schedule: ProgressiveUnfreezing(schedule, backbone="backbone", head="head"),
            "'auto' or fine_tuning=ProgressiveUnfreezing(backbone='backbone', head='head')",
        )
        self._fine_tuning = self._bring(callback)

    @property
    def fine_tuning(self) -> ProgressiveUnfreezing | None:
        """The callback, with ``phase``; ``None`` if off."""
        return self._fine_tuning
