"""The mixin that runs a LightningModule on fused layers instead of torch's."""

from collections import Counter

from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from lightning_practices._packages import either, own_kind
from lightning_practices.mixins._practice import PracticeMixin
from lightning_practices.surgery import Report, fuse

_NOT_YET = "Nothing is fused yet: layers are fused in configure_model, when a fit or test starts."
_SHOWN = 3  # the most skipped layers, or reasons, in the line on rank 0


class FusedLayersMixin(PracticeMixin):
    """Run the module's layers on fused kernels, by :func:`lightning_practices.surgery.fuse`.

    List the mixin before the class that it extends: ``class Net(FusedLayersMixin, BaseNet)``.
    Layers are swapped in ``configure_model``, before the strategy wraps the model, and in
    ``load_from_checkpoint`` too. Each layer is swapped only once, however many times the Trainer
    calls ``configure_model``. Parameters and checkpoints stay those of the plain module. Rank 0
    logs one line about the fused and the skipped layers; :attr:`fused_layers` has the whole table.

    If your class defines ``configure_model``, call ``super().configure_model()`` at its end, so
    that the layers made in it are swapped too.

    For Lightning the mixin overrides ``configure_model``. So Lightning refuses the deprecated
    ``configure_sharded_model`` in the same class, and Lightning's ``WeightAveraging`` warns that it
    can't shard, which is true without this mixin too. ``ModelParallelStrategy`` requires a
    ``configure_model`` that applies the parallelism, which this mixin doesn't. If no other class
    defines it, the mixin raises the strategy's error.

    Raises:
        TypeError: On subclassing, if bases are of both packages of Lightning. In
            ``configure_model`` under ``ModelParallelStrategy``, if no class but this mixin
            overrides the hook.
    """

    # Lightning's list of the properties that TorchScript doesn't compile.
    __jit_unused_properties__ = [*LightningModule.__jit_unused_properties__, "fused_layers"]  # noqa: RUF012

    @property
    def fused_layers(self) -> Report:
        """The layers that have been fused so far, and those skipped, with the reasons."""
        report: Report | None = vars(self).get("_fused_layers")
        return Report(when_empty=_NOT_YET) if report is None else report

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
        """Raise the error of ModelParallelStrategy if only this mixin overrides configure_model."""
        ours = type(self).configure_model is FusedLayersMixin.configure_model
        if (
            self._trainer is not None
            and isinstance(self._trainer.strategy, either(ModelParallelStrategy))
            and ours
            and not is_overridden("configure_model", super(), own_kind(self, LightningModule))
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
    if report.not_served:
        line += f", not served: {report.count_not_served()}"
    if not report.skipped:
        return line
    line += f", {len(report.skipped)} skipped: "
    if len(report.skipped) <= _SHOWN:
        return line + "; ".join(
            f"{' = '.join(layer.names) or 'the module itself'} ({layer.reason})"
            for layer in report.skipped
        )
    reasons = Counter(layer.reason for layer in report.skipped).most_common()
    line += "; ".join(f"{count} ({reason})" for reason, count in reasons[:_SHOWN])
    if len(reasons) > _SHOWN:
        line += f"; {sum(count for _, count in reasons[_SHOWN:])} for other reasons"
    return f"{line}; print(module.fused_layers) for the table"
