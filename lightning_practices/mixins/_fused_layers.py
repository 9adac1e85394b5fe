"""The mixin that runs a LightningModule on fused layers instead of torch's."""

from typing import Any

from lightning.pytorch import LightningModule
from typing_extensions import override

from lightning_practices.callbacks import FusedLayers
from lightning_practices.mixins._configure_model import refuse_unparallelised
from lightning_practices.mixins._practice import PracticeMixin, configured
from lightning_practices.surgery import Report

_OFF = "The layers are left as they are: fuse_layers is off."


class FusedLayersMixin(PracticeMixin):
    """Add :class:`~lightning_practices.callbacks.FusedLayers` to every run of the module.

    List the mixin before the class that it extends: ``class Net(FusedLayersMixin, BaseNet)``.
    Layers are swapped in ``configure_model``, before the strategy wraps the model, and in
    ``load_from_checkpoint`` too. Each layer is swapped only once, however many times the Trainer
    calls ``configure_model``. On a GPU the callback measures the layers at the first training
    batch, and keeps those that are faster. Parameters and checkpoints stay those of the plain
    module. Rank 0 logs lines about the fused and the skipped layers; :attr:`fused_layers` has the
    whole table.

    If your class defines ``configure_model``, call ``super().configure_model()`` at its end, so
    that the layers made in it are swapped too.

    For Lightning the mixin overrides ``configure_model``. So Lightning refuses the deprecated
    ``configure_sharded_model`` in the same class, and Lightning's ``WeightAveraging`` warns that it
    can't shard, which is true without this mixin too. ``ModelParallelStrategy`` requires a
    ``configure_model`` that applies the parallelism, which this mixin doesn't. If no other class
    defines it, the mixin raises the strategy's error.

    Args:
        *args: Positional arguments for the next base class.
        fuse_layers: ``True``; or a :class:`~lightning_practices.callbacks.FusedLayers`; or ``None``
            or ``False``, to leave the layers as they are.
        **kwargs: Keyword arguments for the next base class.

    Raises:
        TypeError: On subclassing, if bases are of both packages of Lightning. In
            ``configure_model`` under ``ModelParallelStrategy``, if no class but this package's
            mixins overrides the hook.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.mixins import FusedLayersMixin
        >>> class Net(FusedLayersMixin, BoringModel):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = nn.Sequential(nn.LayerNorm(32), self.layer)
        >>> module = Net()
        >>> Trainer(barebones=True, accelerator="cpu", max_steps=2).fit(module)
        >>> print(module.fused_layers)
        ┏━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┓
        ┃ module  ┃ before             ┃ after, or why it was skipped     ┃
        ┡━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┩
        │ layer.0 │ torch.nn.LayerNorm │ lightning_practices.nn.LayerNorm │
        └─────────┴────────────────────┴──────────────────────────────────┘
    """

    # Lightning's list of the properties that TorchScript doesn't compile.
    __jit_unused_properties__ = [*LightningModule.__jit_unused_properties__, "fused_layers"]  # noqa: RUF012

    def __init__(
        self, *args: Any, fuse_layers: bool | FusedLayers | None = True, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._fused_layers = self._bring(
            configured(
                "fuse_layers",
                None if fuse_layers is False else fuse_layers,
                FusedLayers,
                (bool,),
                lambda _: FusedLayers(),
                "True",
            )
        )

    @property
    def fused_layers(self) -> Report:
        """The layers that have been fused so far, and those skipped, with the reasons."""
        callback: FusedLayers | None = vars(self).get("_fused_layers")
        return Report(when_empty=_OFF) if callback is None else callback.report

    @override
    def configure_model(self) -> None:
        super().configure_model()
        refuse_unparallelised(self)
        if self._fused_layers is not None:
            self._fused_layers.fuse(self)
