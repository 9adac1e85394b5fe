"""Transfer learning as a part of the module."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from lightning_practices.callbacks import ProgressiveUnfreezing, UnfreezingSchedule
from lightning_practices.mixins._practice import PracticeMixin, configured


class FineTuningMixin(PracticeMixin):
    """Bring :class:`~lightning_practices.callbacks.ProgressiveUnfreezing` to every fit.

    List it before the module it extends, which has a pretrained backbone and a new head::

        class Net(FineTuningMixin, LightningModule):
            def __init__(self):
                super().__init__()
                self.backbone = torchvision.models.resnet18(weights="DEFAULT")
                self.backbone.fc = nn.Identity()
                self.head = nn.Linear(512, 10)

    The head is trained first, then two blocks of the backbone more in each epoch, from the top
    down, at rates that fall with their depth. Give a schedule where an epoch has few steps. If the
    modules have other names, give ``ProgressiveUnfreezing(backbone="trunk", head="trunk.fc")``.

    If ``Net`` has its own ``configure_callbacks``, extend the list that
    ``super().configure_callbacks()`` returns. It replaces a ``ProgressiveUnfreezing`` that was
    passed to the Trainer, and Lightning says so.

    Args:
        *args: Passed on.
        fine_tuning: The phases for a ``backbone`` and a ``head``, as a list, a dict or a path to a
            YAML file, or ``"auto"``; or a
            :class:`~lightning_practices.callbacks.ProgressiveUnfreezing`; or ``None``, to train
            all of the module from the start.
        **kwargs: Passed on.

    Raises:
        ValueError: If the schedule is none. When the fit starts, if the module has no such backbone
            or head, or has parameters in neither.
        MisconfigurationException: When the fit starts, see the callback.
        TypeError: On subclassing, if a base is from ``pytorch_lightning``.
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
        )
        self._fine_tuning = self._bring(callback)

    @property
    def fine_tuning(self) -> ProgressiveUnfreezing | None:
        """The callback: its ``phase``; ``None`` without one."""
        return self._fine_tuning
