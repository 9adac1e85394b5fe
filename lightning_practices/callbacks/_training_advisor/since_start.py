"""What has changed since the fit began: modes, parameters that are trained, outputs that stay."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_practices.callbacks._training_advisor.modes import Modes
from lightning_practices.callbacks._training_advisor.outputs import Outputs
from lightning_practices.callbacks._training_advisor.unowned import Unowned


class SinceStart:
    """Follows the module of a fit from its start."""

    def __init__(self) -> None:
        self._modes: Modes | None = None
        self._unowned: Unowned | None = None
        self._outputs: dict[str, Outputs] = {}

    def begin(self, module: LightningModule) -> None:
        """Note the module before the first step; until then, nothing is followed."""
        self._modes, self._unowned = Modes(module), Unowned(module)
        self._outputs = {split: Outputs(split) for split in ("validation", "training")}

    def begin_batch(
        self, split: str, trainer: Trainer, module: LightningModule, *, is_first: bool
    ) -> None:
        """Note the sizes of attributes, before the first batch of an epoch."""
        if split in self._outputs:
            self._outputs[split].begin_batch(trainer, module, is_first=is_first)

    def end_epoch(self, split: str, trainer: Trainer, module: LightningModule) -> None:
        """Compare the sizes of attributes, before other hooks of the end of an epoch."""
        if split in self._outputs:
            self._outputs[split].end_epoch(trainer, module)

    def open_look(self, module: LightningModule) -> None:
        """Begin a look."""
        if self._modes is not None:
            self._modes.open(module)

    def discard(self) -> None:
        """End a look without a result."""
        if self._modes is not None:
            self._modes.discard()

    def note_modes(self, module: LightningModule) -> None:
        """Note the modes in a backward pass of a look."""
        if self._modes is not None:
            self._modes.note(module)

    def note_gradients(self, trainer: Trainer, module: LightningModule) -> None:
        """Note the parameters with gradients, before an optimizer of a look steps."""
        if self._unowned is not None:
            self._unowned.note(trainer, module)

    def close_look(self, trainer: Trainer, module: LightningModule) -> None:
        """Compare with the looks before."""
        if self._modes is not None and self._unowned is not None:
            self._modes.close(trainer, module)
            self._unowned.close()

    def found(self) -> dict[str, Any]:
        """Return what a :class:`Run` holds of it."""
        if self._modes is None or self._unowned is None:
            return {}
        kept = {
            one: epochs for each in self._outputs.values() for one, epochs in each.epochs.items()
        }
        return {"in_eval_mode": self._modes.looks, "unowned": self._unowned.looks, "kept": kept}
