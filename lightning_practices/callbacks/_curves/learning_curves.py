"""The callback that draws learning curves while a fit runs."""

import os
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_practices._arguments import (
    check_choice,
    check_name,
    check_names,
    check_path,
    check_whole,
    cut,
    shown,
)
from lightning_practices.callbacks._curves.draw import Best, Mark, draw
from lightning_practices.callbacks._curves.file import SUFFIXES, rendered
from lightning_practices.callbacks._curves.listener import Listener
from lightning_practices.callbacks._curves.panels import forks
from lightning_practices.callbacks._curves.series import EPOCH, Series
from lightning_practices.callbacks._early_stopping import EarlyStopping
from lightning_practices.callbacks._practice import PracticeCallback
from lightning_practices.callbacks._trainer.logs import ReadsLogs
from lightning_practices.callbacks._trainer.others import callbacks_of
from lightning_practices.callbacks._types import Mode
from lightning_practices.files import write_file

_SHARE = 0.01  # the share of the time that drawing may take
_NEVER = 10**12  # steps
_FIRST_SECONDS = 0.5  # the assumed cost of the first picture


class LearningCurves(PracticeCallback, ReadsLogs):
    """Draw the logged values over optimizer steps to a file, during the fit and at its end.

    No logger is needed. All values that ``self.log`` gets are drawn, and the learning rate of each
    parameter group. Training and validation of one quantity (``train_loss`` and ``val_loss``,
    ``acc/train`` and ``acc/val``) share a panel, so that the picture shows under- and overfitting:
    both losses high, or the validation loss rising while the training loss falls. The best step is
    marked, and the ends of epochs are marked at the top. Rates and norms that span more than a
    decade have a logarithmic scale, and so have panels whose curves all span more than two decades.
    Over noisy values a smoothed curve is drawn. Equal curves, such as the rates of several groups,
    are one line with one label. There are at most twelve panels, so that a picture takes about two
    seconds: the monitored value, losses, rates and norms first. The picture names what is left out.

    **When.** Values of training steps are recorded at the first step and then every
    ``every_n_train_steps``. Values of epochs and of validation are recorded whenever they are
    computed, except in the sanity check. Values stay on their device until a picture is drawn, a
    checkpoint is saved or 4096 values are waiting, so that training steps don't wait for the
    device. A picture is drawn once drawing takes less than 1% of the time since the last picture,
    for the first time after about a minute. At the end of the fit a picture is drawn too, even if
    an exception or Ctrl-C ends it. The file is replaced in one operation, so nobody reads half a
    file. If the file can't be written, a warning is shown, and training continues. ``fast_dev_run``
    draws nothing.

    **How many values.** Up to a thousand values of a name are kept. More values are merged into 500
    to 1000 bins of equally many values, each with its mean, its lowest and its highest value. The
    best, last and extreme values stay exact. Infinite and nan values are gaps, and are counted in
    the legend. A checkpoint holds all curves, at most 50 KB for each name, so that a resumed fit
    continues them.

    With several ranks, rank 0 records and draws only its own values: log with ``sync_dist=True``
    for the mean over all ranks. Ranks communicate only to gather a ``DTensor`` that is sharded over
    them.

    Source: learning curves and "Early stopping", lectures S0 and S2 to S4; colours of Okabe and
    Ito, 2008, "Color universal design".

    Args:
        path: The file to draw to: ``.png``, ``.svg``, ``.pdf``, or ``.html``, a page with the
            picture and a table of the last and extreme values. A relative path is below the folder
            of the Trainer's logger, or below its ``default_root_dir`` if there is no logger.
        metrics: The names of the values to draw, in which ``*`` matches any characters. Default:
            all values.
        monitor: The name of the value whose best step is marked. Default: the ``monitor`` of an
            ``EarlyStopping`` callback if there is one, otherwise ``val_loss`` if it is logged.
        mode: Whether the best value is the lowest, ``"min"``, or the highest, ``"max"``.
        every_n_train_steps: The number of optimizer steps from one record of training values to the
            next. Default: the Trainer's ``log_every_n_steps``.
        every_n_epochs: The number of epochs from one picture to the next, however long drawing
            takes. Default: pictures are drawn by time, see above.

    Attributes:
        file: The file of the picture, once a fit has started.
        marks: What :class:`TrainingAdvisor` has found, which is marked in the picture.

    Raises:
        ValueError: If an argument is out of its range.
        ImportError: When the fit starts, if matplotlib can't be imported.
        MisconfigurationException: When the fit starts, if the folder can't be written to.
        TypeError: If the Trainer and the module are of different packages of Lightning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_practices.callbacks import LearningCurves
        >>> class Net(BoringModel):
        ...     def training_step(self, batch, batch_idx):
        ...         self.log("train_loss", loss := self.step(batch))
        ...         return loss
        >>> curves = LearningCurves(every_n_train_steps=1)
        >>> trainer = Trainer(max_steps=4, accelerator="cpu", callbacks=[curves], logger=False,
        ...                   enable_checkpointing=False, enable_progress_bar=False,
        ...                   enable_model_summary=False)
        >>> trainer.fit(Net())
        >>> curves.file.name, sorted(curves.history)
        ('learning_curves.png', ['epoch', 'lr-SGD', 'train_loss'])
    """

    def __init__(
        self,
        path: str | Path = "learning_curves.png",
        *,
        metrics: Sequence[str] | None = None,
        monitor: str | None = None,
        mode: Mode = "min",
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
    ) -> None:
        self.path = check_path("path", path, "file")
        if self.path.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"path has to be that of a file that ends in {', '.join(SUFFIXES)}, but got"
                f" {shown(str(path))}"
            )
        check_choice("mode", mode, get_args(Mode))
        if monitor is not None:
            check_name("monitor", monitor)
        if monitor is None and mode != "min":
            raise ValueError(f"mode={shown(mode)} says what is best of `monitor`: give monitor too")
        if every_n_train_steps is not None:
            every_n_train_steps = check_whole("every_n_train_steps", every_n_train_steps, 1)
        if every_n_epochs is not None:
            every_n_epochs = check_whole("every_n_epochs", every_n_epochs, 1)
        self.metrics = None if metrics is None else list(check_names("metrics", metrics, least=1))
        self.monitor = monitor
        self.mode = mode
        self.every_n_train_steps = every_n_train_steps
        self.every_n_epochs = every_n_epochs
        self.file: Path | None = None
        # Made once, since Lightning reads it at each hook.
        self._key = self._generate_state_key(path=self.path.name)
        self._stopping: LightningEarlyStopping | None = None  # its best step is marked
        self._is_on = False  # True from a fit's setup to its end
        self._every = 1  # steps from one record to the next
        self._next = 1  # the next step to record
        self._is_between = False  # whether an epoch has ended, but its values aren't recorded
        self._is_drawn = False  # whether the end of this fit is drawn
        self._has_warned = False  # whether drawing has failed in this fit
        self._drawn_at = 0.0  # time of the last picture, in seconds
        self._cost = _FIRST_SECONDS  # of drawing the last picture, in seconds
        self._reset()

    @override
    def _reset(self) -> None:
        self._listener = Listener(self._wants)
        self.marks: list[Mark] = []

    @property
    @override
    def state_key(self) -> str:
        return self._key

    @property
    def history(self) -> dict[str, list[tuple[int, float]]]:
        """The values that rank 0 has recorded, by name, each with the optimizer steps taken.

        ``"epoch"`` holds the number of finished epochs, and ``"lr-..."`` learning rates. If a name
        has more than a thousand values, each item is a mean over several values. Reading this
        property waits for the device.
        """
        return {name: one.points() for name, one in self._listener.history.series().items()}

    @property
    def best_step(self) -> int | None:
        """The optimizer steps taken when the best value was seen; ``None`` before."""
        best = self._best(self._listener.history.series())
        return None if best is None else best.step

    @property
    def best_score(self) -> float | None:
        """The best value of ``monitor``; ``None`` before its first value."""
        best = self._best(self._listener.history.series())
        return None if best is None else best.value

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._stopping = self._find_stopping(trainer)
        self._is_on = not trainer.fast_dev_run  # type: ignore[attr-defined]
        if not self._is_on:
            return
        _import_matplotlib()
        folder = trainer.log_dir or trainer.default_root_dir  # collective: on all ranks
        self.file = _writable(self.path, folder, makes=trainer.is_global_zero)
        self._every = self.every_n_train_steps or trainer.log_every_n_steps or _NEVER  # type: ignore[attr-defined]
        self._is_between = self._is_drawn = self._has_warned = False
        self._drawn_at, self._cost = time.monotonic(), _FIRST_SECONDS

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.global_step
        self._next = (done // self._every + 1) * self._every if done else 1

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_on:
            return
        self._listener.listen(trainer)  # values of the previous epoch
        self._is_between = False
        self._listener.note_rates(trainer)
        epoch = trainer.current_epoch
        if self.every_n_epochs and epoch and epoch % self.every_n_epochs == 0:
            self._draw(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # With several optimizers a batch may take several steps, so `step` may be past `_next`.
        if not self._is_on or (step := trainer.global_step) < self._next:
            return
        self._next = (step // self._every + 1) * self._every
        self._listener.note_rates(trainer)
        self._listener.listen(trainer, stepwise=True)
        self._draw_if_cheap(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_on and not trainer.sanity_checking:
            self._listener.listen(trainer)
            self._draw_if_cheap(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The epoch's values are recorded later: the module's own hook may still log values, and
        # reading the values now would compute them before Lightning does.
        if self._is_on:
            self._is_between = True
            self._listener.note_epoch(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_on:
            self._listener.listen(trainer)
            self._is_between = False
            self._finish(trainer, pl_module)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_on and not self._is_drawn:  # the fit was resumed at its end
            self._finish(trainer, pl_module)
        self._is_on = False

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # Values aren't computed here, as that may be collective and only this rank may have raised.
        if not self._is_on:
            return
        try:
            self._listener.history.flush()
        except Exception as error:  # the device may have failed
            rank_zero_warn(f"LearningCurves has lost the last values: {_described(error)}")
        self._draw(trainer, pl_module, at_end=True)
        self._is_on = False

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"series": self._listener.history.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._listener.history.load_state_dict(state_dict["series"])

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._is_on and self._is_between:  # adds the values that the module logged at epoch end
            self._listener.listen(trainer)
            checkpoint["callbacks"][self.state_key] = self.state_dict()

    def _wants(self, name: str) -> bool:
        patterns = self.metrics
        if patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns):
            return True
        return name in self._monitored()[0]

    def _monitored(self) -> tuple[Sequence[str], str]:
        """Return the names under which the monitored value may be logged, and the mode."""
        if self.monitor is not None:
            name, mode = self.monitor, str(self.mode)
        elif self._stopping is not None:
            name, mode = self._stopping.monitor, self._stopping.mode
        else:
            name, mode = "val_loss", "min"
        return (name, forks(name)[1]), mode

    def _best(self, series: Mapping[str, Series]) -> Best | None:
        names, mode = self._monitored()
        name = next((name for name in names if name in series), None)
        if name is None:
            return None
        stopping = self._stopping
        if isinstance(stopping, EarlyStopping) and stopping.best_step is not None:
            return Best(name, stopping.best_step, stopping.best_score.item())
        point = series[name].lowest if mode == "min" else series[name].highest
        return None if point is None else Best(name, *point)

    def _find_stopping(self, trainer: Trainer) -> LightningEarlyStopping | None:
        """Return the ``EarlyStopping`` whose best value is marked, preferably this package's."""
        found = [
            stopping
            for stopping in callbacks_of(trainer, LightningEarlyStopping)
            if self.monitor is None
            or (stopping.monitor, stopping.mode) == (self.monitor, self.mode)
        ]
        return min(found, key=lambda one: not isinstance(one, EarlyStopping), default=None)

    def _draw_if_cheap(self, trainer: Trainer, pl_module: LightningModule) -> None:
        since = time.monotonic() - self._drawn_at
        if self.every_n_epochs is None and self._cost < _SHARE * since:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule, *, at_end: bool = False) -> None:
        if not trainer.is_global_zero or self.file is None:
            return
        started = time.monotonic()
        series = self._listener.history.series()
        if not series:
            return
        epochs = series[EPOCH].last if EPOCH in series else None
        title = f"{type(pl_module).__name__}: {trainer.global_step:,} optimizer steps" + (
            f", {epochs.value:,.0f} epochs" if epochs else ""
        )
        try:
            figure = draw(series, self._best(series), title, self.marks)
            write_file(self.file, rendered(figure, series, title, self.file.suffix.lower()))
        except Exception as error:  # a full disk must not end the fit
            if at_end or not self._has_warned:
                goes_on = "" if at_end else "; training goes on, and the end is drawn again"
                rank_zero_warn(
                    f"LearningCurves could not draw {self.file}: {_described(error)}{goes_on}"
                )
            self._has_warned = True
        self._drawn_at = time.monotonic()
        self._cost = self._drawn_at - started

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last picture, and warn about names that were never logged."""
        self._is_drawn = True
        self._draw(trainer, pl_module, at_end=True)
        if not self._has_warned:
            rank_zero_info(f"LearningCurves: the curves are in {self.file}")
        logged = self._listener.history.series()
        if self.monitor is not None and not any(name in logged for name in self._monitored()[0]):
            rank_zero_warn(
                f"LearningCurves marks no best step, as {shown(self.monitor)} was never logged;"
                f" logged were: {', '.join(sorted(logged)) or 'none'}"
            )
        for pattern in self.metrics or ():
            if not any(fnmatchcase(name, pattern) for name in logged):
                rank_zero_warn(
                    f"LearningCurves: nothing logged matches {shown(pattern)} of `metrics`; logged"
                    f" were: {', '.join(sorted(self._listener.heard)) or 'none'}"
                )


def _import_matplotlib() -> None:
    """Import matplotlib, to raise at the start of a fit rather than at its end."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "LearningCurves draws with matplotlib, which can't be imported: pip install"
            " 'lightning-practices[plots]'"
        ) from error


def _writable(path: Path, folder: str, *, makes: bool) -> Path:
    """Return the file to draw to; if ``makes``, make its folder and check that it is writable."""
    if not path.is_absolute() and "://" in folder:
        raise MisconfigurationException(
            f"LearningCurves draws to a local file, but {shown(str(path))} would be below {folder}:"
            " give an absolute path"
        )
    file = Path(os.path.abspath(folder)) / path  # an absolute path stays as it is
    if not makes:
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MisconfigurationException(
            f"LearningCurves can't make the folder of {shown(str(file))}: {_described(error)}"
        ) from error
    try:
        is_folder = file.is_dir()
    except OSError as error:  # the name is too long
        raise MisconfigurationException(
            f"LearningCurves can't write {shown(str(file))}: {_described(error)}"
        ) from error
    if is_folder or not os.access(file.parent, os.W_OK):
        raise MisconfigurationException(
            f"LearningCurves can't write {file}, which is a folder, or is in a read-only folder:"
            " give another path"
        )
    return file


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {cut(str(error))}"
