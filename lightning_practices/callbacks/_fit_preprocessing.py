"""The callback that fits preprocessing layers of a module to the training data."""

from itertools import islice
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices._arguments import check_name
from lightning_practices.callbacks._exact_resume import ResumableSource
from lightning_practices.callbacks._practice import PracticeCallback
from lightning_practices.data import Entry, Preprocessing, check_entry, in_order


class FitPreprocessing(PracticeCallback):
    """Fit the preprocessing layer of a module to the training data, before a fit begins.

    It reads the training split once, before the sanity check and the first step: each sample once,
    see :func:`~lightning_practices.data.in_order`, on each rank its share. A layer that has
    statistics, from a checkpoint or from before, is left as it is. So a resumed fit reads nothing,
    and a pretrained model keeps its statistics. Random transforms in the dataset count. With
    ``fast_dev_run`` only as many batches are read as are trained.

    A datamodule with :class:`~lightning_practices.mixins.PreprocessingMixin` needs neither this
    callback nor a layer in the module.

    Args:
        layer: Name of the layer in the module, such as ``"net.scale"``. Default: the only
            :class:`~lightning_practices.data.Preprocessing` layer that the module has.
        entry: The tensor of a batch that the layer gets: the position in a tuple, or the key of a
            dict.

    Raises:
        MisconfigurationException: When a fit starts, if the module has no such layer, or several
            and ``layer`` isn't given; or if the training data are no ``DataLoader``.
        TypeError: If ``layer`` is no string, or ``entry`` is neither a string nor a whole number.
            When a fit starts, if the entry is no tensor.
        ValueError: When a fit starts, if there are no batches, or a value is nan or infinite.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.callbacks import FitPreprocessing
        >>> from lightning_practices.data import Standardize
        >>> module, fit = BoringModel(), FitPreprocessing()
        >>> module.layer = nn.Sequential(Standardize(), module.layer)
        >>> data = torch.utils.data.DataLoader(5 + 3 * torch.randn(64, 32), batch_size=16)
        >>> Trainer(barebones=True, accelerator="cpu", max_steps=1, callbacks=fit).fit(module, data)
        >>> torch.allclose(module.layer[0].mean, data.dataset.mean(0), atol=1e-5)
        True
    """

    def __init__(self, layer: str | None = None, entry: Entry = 0) -> None:
        if layer is not None:
            check_name("layer", layer)
        self.layer, self.entry = layer, check_entry(entry)

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fit(trainer, pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Under FSDP the checkpoint is loaded after on_fit_start.
        self._fit(trainer, pl_module)

    def _fit(self, trainer: Trainer, pl_module: LightningModule) -> None:
        layer = self._found(pl_module)
        if layer.is_fitted:
            return
        source: Any = trainer.fit_loop._data_source
        if isinstance(source, ResumableSource):  # of ExactResume, which wraps the Trainer's own
            source = source.source
        loader = source.dataloader()
        if not isinstance(loader, DataLoader):
            raise MisconfigurationException(
                f"FitPreprocessing reads a DataLoader, but got a {type(loader).__name__}: fit the"
                " layer yourself before the fit, as in module.scale.fit(batches)"
            )
        batches: Any = in_order(loader, trainer.global_rank, trainer.world_size)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            batches = list(islice(batches, int(trainer.limit_train_batches)))
        layer.fit(batches, self.entry)
        layer.to(pl_module.device)

    def _found(self, pl_module: LightningModule) -> Preprocessing:
        layers = {
            name: module
            for name, module in pl_module.named_modules()
            if isinstance(module, Preprocessing)
        }
        inner = {one for outer in layers.values() for one in outer.modules() if one is not outer}
        layers = {name: layer for name, layer in layers.items() if layer not in inner}
        name = next(iter(layers)) if self.layer is None and len(layers) == 1 else self.layer
        if name is None or name not in layers:
            have = ", ".join(map(repr, layers)) or "none"
            asked = "" if self.layer is None else f" {self.layer!r}"
            raise MisconfigurationException(
                f"FitPreprocessing looks for the preprocessing layer{asked} of"
                f" {type(pl_module).__name__}, which has {have}: give layer=... one of these names,"
                " or make a layer, as in self.scale = Standardize(), in __init__"
            )
        return layers[name]
