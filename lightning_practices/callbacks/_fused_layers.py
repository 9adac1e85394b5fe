"""The callback that runs a module on fused layers, where they were measured to be faster."""

from collections import Counter
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

import lightning_kernels
from lightning_practices._arguments import check_flag
from lightning_practices._packages import either
from lightning_practices.callbacks._practice import PracticeCallback
from lightning_practices.callbacks._trainer.sharding import is_sharded
from lightning_practices.surgery import Report, fuse, measure_fused

_NOT_YET = "Nothing is fused yet: layers are fused when a run starts."
_SHOWN = 3  # the most skipped layers, or reasons, in the line on rank 0


class FusedLayers(PracticeCallback):
    """Run the module's layers on fused kernels, and keep those that are measured to be faster.

    When a run starts, :func:`~lightning_practices.surgery.fuse` replaces the layers of the module.
    On a GPU the first training batch is observed: after it, each layer is timed beside torch's,
    forward and backward, as :func:`~lightning_practices.surgery.measure_fused` describes. Only
    layers that are at least 3 % faster, and agree with torch's on this batch, stay fused. Rank 0
    measures, all ranks choose alike, and the times are kept for later runs on the same kind of GPU.
    With ``Trainer(deterministic=True)`` only kept times are used. Rank 0 logs a line, and
    :attr:`report` has the whole table.

    Parameters and checkpoints are those of the plain module. Modules that are sharded (FSDP,
    DeepSpeed) or compiled are fused and not measured: there the table of
    :func:`lightning_kernels.set_kernel_policy` says which inputs the kernels compute.

    Args:
        measure: Whether to measure. ``None``: on a GPU. ``True``: on a CPU too, where few layers
            gain anything. ``False``: not at all.

    Attributes:
        report: The :class:`~lightning_practices.surgery.Report` of the layers that were fused or
            skipped, with the times of those that were measured.

    Raises:
        TypeError: If ``measure`` is neither a flag nor ``None``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.callbacks import FusedLayers
        >>> module, fused = BoringModel(), FusedLayers()
        >>> module.layer = nn.Sequential(nn.LayerNorm(32), module.layer)
        >>> Trainer(barebones=True, accelerator="cpu", max_steps=2, callbacks=[fused]).fit(module)
        >>> print(fused.report)
        ┏━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┓
        ┃ module  ┃ before             ┃ after, or why it was skipped     ┃
        ┡━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┩
        │ layer.0 │ torch.nn.LayerNorm │ lightning_practices.nn.LayerNorm │
        └─────────┴────────────────────┴──────────────────────────────────┘
    """

    def __init__(self, measure: bool | None = None) -> None:
        self.measure = measure if measure is None else check_flag("measure", measure)
        self.report = Report(when_empty=_NOT_YET)
        self._reset()

    @override
    def _reset(self) -> None:
        self._is_measured = False
        self._observed: AbstractContextManager[Report] | None = None  # within the first batch

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_observed": None}

    def fuse(self, pl_module: LightningModule) -> Report:
        """Fuse the layers that are not fused yet. Rank 0 logs a line if there are any.

        Returns:
            The report of all layers that were fused so far.
        """
        new = fuse(pl_module)
        if new.replaced or new.folded or self.report.when_empty == _NOT_YET:
            rank_zero_info(f"FusedLayers: {_in_a_line(new)}")
            new.replaced[:0] = self.report.replaced
            new.folded[:0] = self.report.folded
            new.measured[:0] = self.report.measured
            self.report = new
        return self.report

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self.fuse(pl_module)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        if trainer.state.fn == TrainerFn.VALIDATING:  # not within a fit
            self.fuse(pl_module)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_test_start(trainer, pl_module)
        self.fuse(pl_module)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_predict_start(trainer, pl_module)
        self.fuse(pl_module)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if not self._is_measured:
            self._is_measured = True
            if self._measures(trainer, pl_module):
                self._observed = measure_fused(pl_module, self.report)
                self._observed.__enter__()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._observed is not None:
            self._leave(None)
            rank_zero_info(f"FusedLayers: after the first batch {_in_a_line(self.report)}")

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._leave(StopIteration())  # no batch has ended

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._leave(exception)

    def _leave(self, error: BaseException | None) -> None:
        """End the observation: measure, or with an ``error`` only remove the hooks."""
        observed, self._observed = self._observed, None
        if observed is None:
            return
        if error is None:
            observed.__exit__(None, None, None)
        else:
            observed.__exit__(type(error), error, error.__traceback__)

    def _measures(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        sharded = isinstance(trainer.strategy, either(FSDPStrategy, DeepSpeedStrategy))
        if sharded or is_sharded(pl_module) or pl_module._compiler_ctx is not None:
            return False
        if self.measure is not None:
            return self.measure
        one = torch.empty(1, device=trainer.strategy.root_device)
        return lightning_kernels.route(one) == "triton"


def _in_a_line(report: Report) -> str:
    kinds = Counter(layer.after.rpartition(".")[2] for layer in report.replaced)
    line = f"{len(report.replaced)} layer{'s' * (kinds.total() != 1)} fused"
    if kinds:
        line += f" ({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())})"
    if report.folded:
        line += f", {len(report.folded)} folded with the operations behind them"
    if report.not_served:
        line += f", not served: {report.count_not_served()}"
    if report.measured:
        line += f", {len(report.measured)} measured"
    if not report.skipped:
        return line
    line += f", {len(report.skipped)} skipped: "
    if len(report.skipped) <= _SHOWN:
        return line + "; ".join(
            f"{' = '.join(layer.names) or 'the module itself'} ({layer.reason})"
            for layer in report.skipped
        )
    reasons = Counter(layer.reason.partition(": ")[0] for layer in report.skipped).most_common()
    line += "; ".join(f"{count} ({reason})" for reason, count in reasons[:_SHOWN])
    if len(reasons) > _SHOWN:
        line += f"; {sum(count for _, count in reasons[_SHOWN:])} for other reasons"
    return f"{line}; print the report for the table"
