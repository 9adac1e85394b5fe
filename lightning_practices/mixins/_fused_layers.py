"""Fused layers in place of torch's, for a whole LightningModule."""

from collections import Counter

from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from lightning_practices.mixins._practice import PracticeMixin
from lightning_practices.surgery import Report, fuse


class FusedLayersMixin(PracticeMixin):
    """Run the module's layers on fused kernels, by :func:`lightning_practices.surgery.fuse`.

    List it before the module it extends: ``class Net(FusedLayersMixin, BaseNet)``. Layers are
    swapped in ``configure_model``: before the strategy wraps the model, once however many times the
    Trainer calls it, and in ``load_from_checkpoint`` too. Parameters and checkpoints stay those of
    the plain module. One line on rank 0 says what was fused and what was skipped;
    :attr:`fused_layers` has the whole table.

    A class with a ``configure_model`` of its own ends it with ``super().configure_model()``, so
    that the layers it makes are swapped as well.

    Lightning notices that ``configure_model`` is overridden: it refuses the deprecated
    ``configure_sharded_model`` beside it, and ``WeightAveraging`` warns that it can't shard, which
    is true with or without this mixin. ``ModelParallelStrategy`` wants one that applies the
    parallelism: this mixin doesn't count, and raises as the strategy would have.

    Raises:
        TypeError: If the class also derives from ``pytorch_lightning``'s; from ``configure_model``,
            if under ``ModelParallelStrategy`` nothing but this mixin overrides it.
    """

    # Declared by Lightning, for TorchScript not to compile these.
    __jit_unused_properties__ = [*LightningModule.__jit_unused_properties__, "fused_layers"]  # noqa: RUF012

    @property
    def fused_layers(self) -> Report:
        """What has been fused so far, and what was skipped and why."""
        report: Report = vars(self).get("_fused_layers", Report())
        return report

    @override
    def configure_model(self) -> None:
        super().configure_model()
        self._refuse_unparallelised()
        report = fuse(self)
        if report.replaced or report.folded or "_fused_layers" not in vars(self):
            rank_zero_info(_in_a_line(report))
        report.replaced[:0] = self.fused_layers.replaced
        report.folded[:0] = self.fused_layers.folded
        self._fused_layers = report

    def _refuse_unparallelised(self) -> None:
        """Raise what ModelParallelStrategy would, if this mixin's hook is all that it has seen."""
        ours = type(self).configure_model is FusedLayersMixin.configure_model
        if (
            self._trainer is not None
            and isinstance(self._trainer.strategy, ModelParallelStrategy)
            and ours
            and not is_overridden("configure_model", super(), LightningModule)
        ):
            raise TypeError(
                f"{type(self).__name__} must override configure_model() and apply the parallelism "
                "there: under ModelParallelStrategy nothing else does, and ranks would drift apart"
            )


def _in_a_line(report: Report) -> str:
    kinds = Counter(layer.after.rpartition(".")[2] for layer in report.replaced)
    line = f"FusedLayersMixin: {len(report.replaced)} layer{'s' * (kinds.total() != 1)} fused"
    if kinds:
        line += f" ({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())})"
    if report.folded:
        line += f", {len(report.folded)} folded with the operations behind them"
    if report.skipped:
        left = (
            f"{' = '.join(layer.names) or 'the module itself'} ({layer.reason})"
            for layer in report.skipped
        )
        line += f", {len(report.skipped)} skipped: {'; '.join(left)}"
    return line
