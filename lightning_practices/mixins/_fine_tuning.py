"""Transfer learning as a part of the module."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lightning_practices.callbacks import ProgressiveUnfreezing, UnfreezingSchedule
from lightning_practices.mixins._practice import PracticeMixin
from lightning_practices.surgery import blocks


class _UnfreezingOfTheModule(ProgressiveUnfreezing):
    """Progressive unfreezing of a head and the blocks of a backbone, by the names of both."""

    def __init__(self, backbone: str, head: str, **options: Any) -> None:
        super().__init__(**options)
        self._backbone = backbone
        self._head = head

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.by = _blocks_by(pl_module, self._backbone, self._head)
        super().on_fit_start(trainer, pl_module)


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
    down, at rates that fall with their depth; ``fine_tuning_schedule`` says otherwise, as it should
    where an epoch has few steps. Blocks are those that
    :func:`~lightning_practices.surgery.blocks` finds in the backbone.

    A ``configure_callbacks`` of yours has to extend what ``super().configure_callbacks()`` returns.
    It replaces a ``ProgressiveUnfreezing`` that was passed to the Trainer, and Lightning says so.

    Args:
        *args: Passed on.
        fine_tuning_backbone: Name of the module that is pretrained.
        fine_tuning_head: Name of the module that is new; it may be a part of the backbone.
        fine_tuning_schedule: Phases, as a list, a dict or a path to a YAML file, or ``"auto"``. In
            it the head is depth 0.
        fine_tuning_decay: Ratio of the rates of a block and the one above it.
        fine_tuning_dropout: Whether dropout stays on in frozen blocks.
        **kwargs: Passed on.

    Raises:
        ValueError: If an argument is none that there can be. When the fit starts, if the module has
            no such backbone or head, or has parameters in neither.
        MisconfigurationException: When the fit starts, see the callback.
        TypeError: On subclassing, if a base is from ``pytorch_lightning``.
    """

    def __init__(
        self,
        *args: Any,
        fine_tuning_backbone: str = "backbone",
        fine_tuning_head: str = "head",
        fine_tuning_schedule: UnfreezingSchedule = "auto",
        fine_tuning_decay: float = 0.75,
        fine_tuning_dropout: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        callback = _UnfreezingOfTheModule(
            fine_tuning_backbone,
            fine_tuning_head,
            schedule=fine_tuning_schedule,
            decay=fine_tuning_decay,
            dropout=fine_tuning_dropout,
        )
        self._practices.append(callback)
        self._fine_tuning = callback

    @property
    def fine_tuning(self) -> ProgressiveUnfreezing:
        """The callback: its ``phase``."""
        return self._fine_tuning


def _blocks_by(pl_module: LightningModule, backbone: str, head: str) -> list[list[str]]:
    """Return names for :func:`~lightning_practices.surgery.blocks`: the head's, the backbone's."""
    there = dict(pl_module.named_modules())
    for what, name in (("fine_tuning_backbone", backbone), ("fine_tuning_head", head)):
        if name not in there or not name:
            children = ", ".join(repr(child) for child, _ in pl_module.named_children())
            raise ValueError(
                f"{what}={name!r} names no module of {type(pl_module).__name__}, which has"
                f" {children or 'none'}: name one of these, or one below them"
            )
    inside = blocks(there[backbone])
    found = [[f"{backbone}.{name}" for name in block.parameters] for block in inside]
    below = [[name for name in names if not f"{name}.".startswith(f"{head}.")] for names in found]
    return [[head], *(names for names in below if names)]
