"""Batch norm over all processes' batches, for a whole fit."""

from typing import Any

from lightning.pytorch.plugins import LayerSync
from torch import nn
from typing_extensions import override

from lightning_practices.nn import SyncBatchNorm


class FusedSyncBatchNorm(LayerSync):
    """Synchronise every batch norm while ``Trainer.fit`` runs, on fused kernels.

    ``Trainer(strategy="ddp", plugins=[FusedSyncBatchNorm()])``, also on the CPU, and without
    ``sync_batchnorm=True``, for which Lightning takes torch's layers and refuses another plugin.

    Before the strategy wraps the model, :meth:`nn.SyncBatchNorm.convert_sync_batchnorm` changes the
    classes of its layers, activations included, and after the fit, or an exception in it, they are
    what they were. Parameters and checkpoints are those of the plain model throughout. Layers that
    are synchronised already, such as :class:`torch.nn.SyncBatchNorm`, run on the kernels meanwhile.

    Lightning asks for it in ``DDPStrategy`` and ``FSDPStrategy``, when fitting. Where there is one
    device, in other strategies and in other stages it has no effect.

    Args:
        process_group: Processes to synchronise with, by default all. To make a group before the
            Trainer starts, call ``torch.distributed.init_process_group`` first.

    Raises:
        TypeError: When a fit starts, if a batch norm can't be synchronised (see
            :meth:`nn.SyncBatchNorm.convert_sync_batchnorm`).
    """

    def __init__(self, process_group: Any = None) -> None:
        self.process_group = process_group

    @override
    def apply(self, model: nn.Module) -> nn.Module:
        return SyncBatchNorm.convert_sync_batchnorm(model, self.process_group)

    @override
    def revert(self, model: nn.Module) -> nn.Module:
        return SyncBatchNorm.revert_sync_batchnorm(model)
