"""The plugin that synchronises batch norms over all ranks during a fit."""

from typing import Any

from lightning.pytorch.plugins import LayerSync
from torch import nn
from typing_extensions import override

from lightning_practices._packages import OfBothPackages
from lightning_practices.nn import SyncBatchNorm


class FusedSyncBatchNorm(OfBothPackages, LayerSync):
    """Synchronise every batch norm over all ranks while ``Trainer.fit`` runs, on fused kernels.

    Use it as ``Trainer(strategy="ddp", plugins=[FusedSyncBatchNorm()])``, also on the CPU. Don't
    set ``sync_batchnorm=True``: then Lightning uses torch's layers and refuses this plugin.

    Before the strategy wraps the model,
    :meth:`~lightning_practices.nn.SyncBatchNorm.convert_sync_batchnorm` changes the classes of its
    batch norms, including those with an activation. After the fit, or an exception in it, the batch
    norms have their original classes again. Parameters and checkpoints are those of the plain model
    throughout. Layers that are synchronised already, such as :class:`torch.nn.SyncBatchNorm`, run
    on the kernels during the fit.

    Lightning uses the plugin in fits under ``DDPStrategy`` and ``FSDPStrategy``. With a single
    device, under other strategies and in other stages the plugin has no effect.

    Args:
        process_group: The process group to synchronise over. Default: all processes. To make a
            group before the Trainer starts, call ``torch.distributed.init_process_group`` first.

    Raises:
        TypeError: When a fit starts, if a batch norm can't be synchronised (see
            :meth:`~lightning_practices.nn.SyncBatchNorm.convert_sync_batchnorm`).

    Example:
        >>> from lightning_practices.plugins import FusedSyncBatchNorm
        >>> plugin = FusedSyncBatchNorm()  # Trainer(strategy="ddp", plugins=[plugin])
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> type(plugin.apply(model)[1]).__name__  # as a fit does when it starts
        'SyncBatchNorm'
        >>> type(plugin.revert(model)[1]).__name__  # and when it ends
        'BatchNorm2d'
    """

    def __init__(self, process_group: Any = None) -> None:
        self.process_group = process_group

    @override
    def apply(self, model: nn.Module) -> nn.Module:
        return SyncBatchNorm.convert_sync_batchnorm(model, self.process_group)

    @override
    def revert(self, model: nn.Module) -> nn.Module:
        return SyncBatchNorm.revert_sync_batchnorm(model)
