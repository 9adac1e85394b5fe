"""The callback that recomputes the running statistics of batch norms when training has ended."""

from collections.abc import Callable, Iterator
from itertools import islice
from math import isinf
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from rich.console import Console
from rich.progress import track
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from lightning_practices._arguments import check_callable
from lightning_practices._batches import input_of
from lightning_practices._names import count
from lightning_practices._packages import either, own_kind
from lightning_practices.callbacks._practice import PracticeCallback
from lightning_practices.callbacks._trainer.others import callbacks_of, set_callbacks
from lightning_practices.callbacks._trainer.strategies import refuse
from lightning_practices.callbacks._unfreezing import ProgressiveUnfreezing
from lightning_practices.surgery import recalibrate_batch_norm


class RecalibrateBatchNorm(PracticeCallback):
    """Recompute the running statistics of batch norms over the training set, after training.

    It calls :func:`~lightning_practices.surgery.recalibrate_batch_norm` when a fit ends regularly
    (``max_epochs``, ``max_steps``, ``max_time``, an early stop), but not if the fit is interrupted
    or fails. It uses the final weights: whatever the order of the Trainer's callbacks, this
    callback runs after callbacks that restore or average weights, such as :class:`EarlyStopping`,
    and before callbacks that save checkpoints.

    The module runs on one epoch of the fit's training batches, in the fit's precision. Each rank
    uses its own batches. ``limit_train_batches`` and ``fast_dev_run`` are honoured. Batches pass
    through the batch transfer hooks. So augmentation in ``on_after_batch_transfer`` changes the
    inputs of the batch norms, unless the hook checks ``self.training``, which is ``False`` in this
    pass. Batch norms that the fit kept in eval mode are frozen, and keep their statistics. If the
    pass raises, the fit raises too, and the module has its trained weights and its previous
    statistics.

    Checkpoints that are saved during training hold the running statistics of training. To save the
    new statistics call ``trainer.save_checkpoint`` after the fit, or in the module's own
    ``on_train_end``. If you load a checkpoint of training, such as ``best_model_path``, call the
    function on the loaded module. Lightning's ``WeightAveraging`` saves its own copy of the module,
    without the new statistics: save ``module.state_dict()`` instead.

    Source: see the function.

    Args:
        forward: A function that gets the module and a batch on its device, and runs the module on
            the batch. Default: the module is called with the batch, or with its first item if it is
            a list or tuple.

    Raises:
        MisconfigurationException: Before the first step, if the argument ``forward`` isn't given
            and the module defines no ``forward``; or under ``FSDPStrategy``.
        TypeError: If the Trainer and the module are of different packages of Lightning. At the
            first batch of an epoch, if ``forward`` isn't given and the batch is neither a tensor
            nor a list or tuple that begins with a tensor.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.callbacks import RecalibrateBatchNorm
        >>> module, callbacks = BoringModel(), [RecalibrateBatchNorm()]
        >>> module.layer = nn.Sequential(nn.BatchNorm1d(32), module.layer)
        >>> data = torch.utils.data.DataLoader(5 + 3 * torch.randn(64, 32), batch_size=16)
        >>> trainer = Trainer(barebones=True, accelerator="cpu", max_epochs=1, callbacks=callbacks)
        >>> trainer.fit(module, data)
        >>> torch.allclose(module.layer[0].running_mean, data.dataset.mean(0), atol=1e-4)
        True
    """

    def __init__(self, forward: Callable[[Any, Any], Any] | None = None) -> None:
        if forward is not None:
            check_callable("forward", forward, "a function of the module and a batch")
        self.forward = forward

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        refuse(
            trainer,
            FSDPStrategy,
            who="RecalibrateBatchNorm",
            cannot="run the module outside of the training step",
            instead="use ModelParallelStrategy (FSDP2)",
        )
        callbacks = callbacks_of(trainer, Callback)
        last = sorted(callbacks, key=lambda one: (isinstance(one, either(Checkpoint)), one is self))
        set_callbacks(trainer, last)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        runs = self.forward is not None or is_overridden(
            "forward", pl_module, own_kind(pl_module, LightningModule)
        )
        if not runs and _will_be_to_do(trainer, pl_module):
            raise MisconfigurationException(
                f"{type(pl_module).__name__} has no `forward`: define one, or say how to run a"
                " batch, as in Trainer(callbacks=[RecalibrateBatchNorm(forward=lambda module,"
                " batch: module.net(batch[0]))])"
            )

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Raises now, rather than after all of training. The batch is None if `training_step` takes
        # an iterator.
        is_first = batch_idx == 0 and self.forward is None and batch is not None
        if is_first and _will_be_to_do(trainer, pl_module):
            input_of(batch)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        names: tuple[str, ...] = ()
        if _to_do(pl_module):
            batches = _with_progress(trainer, _batches(trainer))
            names = recalibrate_batch_norm(
                pl_module, batches, forward=lambda _, batch: self._run(trainer, pl_module, batch)
            )
        verb = "has" if len(names) == 1 else "have"
        result = f"{count(len(names), 'batch norm')} {verb} the statistics of the training set"
        if not names:
            result = "nothing to do, as no batch norm in train mode keeps running statistics"
        rank_zero_info(f"RecalibrateBatchNorm: {result}")

    def _run(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        with trainer.precision_plugin.forward_context():
            if self.forward is None:
                pl_module(input_of(batch))
            else:
                self.forward(pl_module, batch)


def _to_do(pl_module: LightningModule) -> bool:
    """Say whether the fit has updated the running statistics of a batch norm."""
    return any(
        isinstance(module, _BatchNorm) and module.training and module.track_running_stats
        for module in pl_module.modules()
    )


def _will_be_to_do(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Say whether the fit updates running statistics now, or may do so after unfreezing."""
    return _to_do(pl_module) or (
        bool(callbacks_of(trainer, ProgressiveUnfreezing))
        and any(isinstance(m, _BatchNorm) and m.track_running_stats for m in pl_module.modules())
    )


def _limit(trainer: Trainer) -> int | None:
    """Return the number of batches of an epoch, ``None`` if it isn't known."""
    limit = trainer.fit_loop.max_batches
    return None if isinf(limit) else int(limit)


def _batches(trainer: Trainer) -> Iterator[Any]:
    """Yield the batches of an epoch as ``training_step`` gets them."""
    loader, module = trainer.fit_loop._combined_loader, trainer.lightning_module
    assert loader is not None
    for batch, *_ in islice(loader, _limit(trainer)):
        if batch is not None:  # training skips None too
            batch = trainer.precision_plugin.convert_input(batch)
            batch = module._on_before_batch_transfer(batch)
            yield trainer.strategy.batch_to_device(batch)


def _with_progress(trainer: Trainer, batches: Iterator[Any]) -> Iterator[Any]:
    shown = getattr(trainer.progress_bar_callback, "is_enabled", False)
    if not (shown and trainer.is_global_zero):
        return batches
    # A separate console: Lightning's progress bar occupies the default console until teardown.
    console = Console(stderr=True)
    what = "Recalibrating batch norm"
    return iter(track(batches, what, _limit(trainer), console=console, transient=True))
