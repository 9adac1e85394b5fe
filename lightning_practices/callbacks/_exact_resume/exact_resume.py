"""The callback that resumes a fit exactly where its checkpoint was saved."""

from typing import Any

from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lightning_practices._names import count, some
from lightning_practices._packages import own_kind
from lightning_practices._random_states import set_random_states
from lightning_practices.callbacks._exact_resume import plateau
from lightning_practices.callbacks._exact_resume.inexact import reasons
from lightning_practices.callbacks._exact_resume.loaders import ResumableLoaders, ResumableSource
from lightning_practices.callbacks._exact_resume.moments import (
    devices_of,
    each_loader,
    loaders_of,
    moment,
    return_to,
)
from lightning_practices.callbacks._exact_resume.progress import (
    complete_batch,
    continue_epoch,
    has_ended,
    is_validation_due,
    validate_anew,
)
from lightning_practices.callbacks._exact_resume.reasons import changes, description
from lightning_practices.callbacks._practice import PracticeCallback
from lightning_practices.callbacks._trainer.others import callbacks_of
from lightning_practices.callbacks._trainer.ranks import gather_objects


class ExactResume(PracticeCallback):
    """Resume a fit exactly where its checkpoint was saved, in mid-epoch too.

    The resumed fit trains the remaining batches of the epoch, in the same order and with the same
    dropout masks and augmentation as the fit that was interrupted, and ends with the same weights,
    bit for bit if the computation itself is deterministic. No sample is read twice, and none is
    left out. Without this callback Lightning starts the epoch's loader from its beginning, for the
    remaining number of batches, and restores no random state.

    The checkpoint holds, for each rank, the states of the global random number generators of
    Python, NumPy and torch (of the CPU and of the devices in use), those of the generators that the
    loaders hold, and the position of each loader. On resuming, a loader's sampler is restored to
    its state at the start of the epoch, the batches of indices that are already trained are
    skipped, and the random states of the checkpoint are restored before the first batch.

    The generators of a ``DataLoader`` are searched in its ``generator``, ``sampler`` and
    ``batch_sampler``, and without worker processes in its ``dataset`` and ``collate_fn``; those of
    another iterable in the iterable itself. Within these objects, to a depth of six, the search
    visits attributes (``__slots__`` too), the items of lists, tuples and dicts of at most 64 items,
    the object of a bound method, the function and arguments of a :func:`functools.partial`, and the
    outer variables of a function. Make the generators before the fit: a warning names each one that
    isn't both in the checkpoint and in the loaders when the resumed epoch starts.

    Three things differ from a fit without this callback:

    - Worker processes seed the generators of Python, NumPy and torch for each batch, by the number
      that seeds them in torch, the rank and the batch's position. So the random numbers for a batch
      don't depend on the worker, and differ between ranks. A seed of your ``worker_init_fn`` holds
      until the first batch.
    - Validation doesn't change the random numbers of training: the states from before are restored
      after it, those of the loaders' generators too.
    - A loader's iterator and its worker processes are made at the first batch.

    Each batch costs about 0.1 ms for copies of random states, and about 0.03 ms in its worker
    process. A checkpoint grows by about 25 kB for each rank.

    The rest of an epoch is exact for map-style datasets in torch's ``DataLoader``, with any sampler
    whose order is determined by the generators above or by ``set_epoch``. A sampler that draws from
    a global generator has to draw all numbers of an epoch at its first batch, as torch's samplers
    do, since otherwise dropout and augmentation draw in between. A loader with ``state_dict`` and
    ``load_state_dict`` restores its position itself. Any other iterable, an ``IterableDataset``
    among them, reads its first batches again and drops them, which takes the time to load them. If
    the dataset holds generators and there are worker processes, the first batches are read again
    too. Where the result may differ, a warning names the reason and the remedy, when a checkpoint
    is saved in mid-epoch and on resuming. It also warns if the number of ranks, the batch size, or
    the use of worker processes has changed.

    Checkpoints at the end of an epoch are exact with any data that has no other state than these
    generators. A counter of epochs in a dataset or iterable starts anew, and so does the state of a
    dataset in persistent worker processes: give the loader ``state_dict`` and ``load_state_dict``.

    With ``max_steps``, Lightning trains a batch more in an epoch that has ended, or runs
    ``on_train_epoch_end`` again; with this callback it goes on with the next epoch. A fit that
    ended in the middle of an epoch, by ``max_steps`` for example, goes on there if it is resumed
    with more steps or epochs. Its ``on_train_epoch_end`` has run then, and runs again when the
    epoch has ended.

    A validation that was interrupted, by an exception for example, is run anew from its first
    batch, so that its values are means over all batches. Lightning would leave out the batches
    before the exception. A checkpoint that is saved after a batch, before the validation that
    follows, is resumed with this validation. Lightning would leave it out, and
    ``on_train_epoch_end`` too if the batch is the last one of the epoch. The module's own
    ``ReduceLROnPlateau`` steps at the end of the resumed epoch too, where Lightning leaves it out.

    In the epoch that a fit resumes in its midst, Lightning doesn't call ``on_train_epoch_start`` of
    the module and of other callbacks again.

    Raises:
        TypeError: If the Trainer and the module are of different packages of Lightning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
        >>> from lightning_practices.callbacks import ExactResume
        >>> data = torch.utils.data.DataLoader(RandomDataset(32, 64), shuffle=True)
        >>> def fit(steps, ckpt_path=None):
        ...     torch.manual_seed(0)
        ...     options = {"barebones": True, "accelerator": "cpu", "max_steps": steps}
        ...     module, trainer = BoringModel(), Trainer(callbacks=[ExactResume()], **options)
        ...     trainer.fit(module, data, ckpt_path=ckpt_path)
        ...     trainer.save_checkpoint(f"{steps}.ckpt")
        ...     return module.layer.weight
        >>> whole, begun = fit(6), fit(3)
        >>> torch.equal(fit(6, ckpt_path="3.ckpt"), whole)
        True
    """

    def __init__(self) -> None:
        self._saved: dict[str, Any] | None = None  # of the checkpoint that is resumed
        self._is_armed = False  # whether the next epoch starts at the saved position
        self._latest: dict[str, Any] | None = None  # the moment after the latest batch
        self._final: dict[str, Any] | None = None  # that at which a longer fit would go on
        self._is_loaded = False  # whether the checkpoint that is resumed has a state of ours
        self._has_warned = False
        self._has_validated = False  # since the latest batch

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._saved = self._latest = self._final = None  # a checkpoint is loaded after setup
        self._is_armed = self._is_loaded = self._has_warned = self._has_validated = False

        def combine(loaders: Any, mode: str) -> ResumableLoaders:
            return ResumableLoaders(
                loaders,
                mode,
                trainer.global_rank,
                at_iter=lambda: self._arm(trainer),
                at_start=lambda combined: self._start(trainer, combined),
            )

        loop: Any = trainer.fit_loop
        loop._data_source = ResumableSource(loop._data_source, combine)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        _remove_source(trainer)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        _remove_source(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._arm(trainer)
        if self._is_armed and self._saved is not None:
            plateau.go_on(trainer, self._saved)
        combined = loaders_of(trainer)
        is_new_epoch = self._saved is not None and not self._saved["batches"]
        is_new_epoch &= self._is_armed and not trainer.fit_loop.restarting
        if is_new_epoch and combined is not None:  # it may lack a length
            # Before the hooks at the start of the epoch, which may draw random numbers.
            self._restore_start(trainer, combined)
        if self._is_armed and self._saved and self._saved.get("is_validation_interrupted"):
            validate_anew(trainer)
            self._latest = self._saved["ranks"][trainer.global_rank]
            return_to(trainer, self._latest)  # as validation may draw random numbers
        if trainer.fit_loop.is_resuming and not self._is_loaded:
            _warn_of_no_state(trainer)

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._saved, self._is_armed = None, False  # the fit has moved on
        self._latest, self._has_validated = moment(trainer), False

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._has_validated = True
        if self._saved is not None:
            self._saved["is_validation_interrupted"] = False
        if self._latest is not None:
            return_to(trainer, self._latest)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not has_ended(trainer):  # but the fit has
            self._final = moment(trainer)
        plateau.let_them_step(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A checkpoint that is saved later leaves out the random numbers that are drawn until then.
        self._final = self._final or moment(trainer)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Here and not in state_dict(), which Lightning calls without the Trainer.
        checkpoint["callbacks"][self.state_key] = self._saved or self._state(trainer)

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        state = checkpoint["callbacks"].get(self.state_key)
        if trainer.state.fn != TrainerFn.FITTING or not state:
            return
        if state["batches"]:
            continue_epoch(checkpoint)
        if state["is_validation_due"]:
            complete_batch(checkpoint)
            state |= {"is_validation_due": False, "is_validation_interrupted": True}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved, self._is_loaded = state_dict, True

    def _state(self, trainer: Trainer) -> dict[str, Any]:
        """Return the state of a checkpoint; every rank has to call this."""
        combined, loaders = loaders_of(trainer), each_loader(trainer)
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        is_over = has_ended(trainer)
        batches = 0 if is_over else progress.processed
        positions = None
        if combined is not None and not is_over:
            positions = combined.positions_after(batches)
        self._warn_if_inexact(trainer, batches)
        # In the middle of a batch or of validation, the states before it count; in the first batch
        # of an epoch, those at the start of the epoch.
        is_within = progress.ready > progress.processed or trainer.validating
        is_within |= positions is not None and batches == 0
        passes = [one.passes for one in loaders]
        if positions and not batches:
            passes = [one["passes"] - 1 for one in positions]
        noted = self._final or (self._latest if is_within else None)
        rank = {
            **(noted or moment(trainer, search=True)),
            "positions": positions if batches else None,
            "passes": passes,
            "seeds": [one.seed for one in loaders],
            "monitored": plateau.monitored_values(trainer),
        }
        return {
            "batches": batches,
            "is_validation_due": is_validation_due(trainer),
            "plateau_steps": plateau.due_steps(trainer),
            "is_validation_interrupted": trainer.validating and not self._has_validated,
            "loaders": [description(one.loader) for one in loaders],
            "ranks": gather_objects(trainer, rank),
        }

    def _arm(self, trainer: Trainer) -> None:
        """Start the next epoch at the saved position, if the Trainer has restored its progress."""
        loop = trainer.fit_loop
        # The Tuner runs fits of its own without the callbacks.
        if (
            self._saved is None
            or not loop.is_resuming
            or self not in callbacks_of(trainer, Callback)
        ):
            return
        ranks = len(self._saved["ranks"])
        if ranks != trainer.world_size:
            rank_zero_warn(
                "ExactResume can't resume exactly, as the checkpoint was saved by"
                f" {count(ranks, 'rank')}, and this fit has {trainer.world_size}: the random states"
                " are not restored, and the epoch's data starts from its beginning. To resume"
                " exactly use as many ranks"
            )
            self._saved = None
            return
        self._is_armed = True
        progress: Any = loop.epoch_progress.current
        if loop.restarting and progress.ready == progress.processed:
            # With max_steps Lightning would continue an epoch that has ended.
            kind: Any = own_kind(loop, _Loop)
            kind.restarting.fset(loop, False)

    def _start(self, trainer: Trainer, combined: ResumableLoaders) -> None:
        """Make the iterators of an epoch, at the saved position if there is one."""
        if trainer.fit_loop.is_resuming:
            for scheduler in callbacks_of(trainer, GradientAccumulationScheduler):
                # Lightning doesn't call this hook, which sets the number, in a resumed epoch.
                scheduler.on_train_epoch_start(trainer)
        saved = self._saved if self._is_armed else None
        if saved is not None:
            progress: Any = trainer.fit_loop.epoch_progress.current
            for loader in combined.loaders:
                # With a length unknown, Lightning draws a batch before it sets the epoch.
                _set_sampler_epoch(loader.loader, progress.processed)
        if saved is not None and saved["batches"]:
            self._start_in_mid_epoch(trainer, combined, saved)
        else:
            if saved is not None:
                self._restore_start(trainer, combined)
            self._latest = moment(trainer, search=True)
            combined.start()
        self._saved, self._is_armed = None, False

    def _restore_start(self, trainer: Trainer, combined: ResumableLoaders) -> None:
        """Restore the random states at the start of an epoch."""
        assert self._saved is not None
        rank = self._saved["ranks"][trainer.global_rank]
        if self._is_same_data(combined, self._saved):
            fields = (rank[name] for name in ("passes", "seeds", "generators"))
            for loader, passes, seed, states in zip(combined.loaders, *fields, strict=True):
                loader.passes, loader.seed = passes, seed
                loader.unmatched |= loader.set_generators(states)
            _warn_of_generators(combined)
        set_random_states(rank["states"], devices_of(trainer))
        self._saved, self._is_armed = None, False

    def _start_in_mid_epoch(
        self, trainer: Trainer, combined: ResumableLoaders, saved: dict[str, Any]
    ) -> None:
        rank = saved["ranks"][trainer.global_rank]
        if self._is_same_data(combined, saved) and rank["positions"] is not None:
            self._warn_if_inexact(trainer, saved["batches"])
            for loader, seed in zip(combined.loaders, rank["seeds"], strict=True):
                loader.seed = seed  # which Lightning takes from seed_everything
            combined.start(saved["batches"], rank["positions"])
            for loader, states in zip(combined.loaders, rank["generators"], strict=True):
                if getattr(loader.loader, "num_workers", 0) == 0:
                    # Workers draw indices ahead, from generators that have just advanced as far.
                    loader.unmatched |= loader.set_generators(states)
            _warn_of_generators(combined)
        else:
            combined.start()
        self._latest = {**moment(trainer), "states": rank["states"]}
        set_random_states(rank["states"], devices_of(trainer))

    def _is_same_data(self, combined: ResumableLoaders, saved: dict[str, Any]) -> bool:
        """Say whether the loaders are as many as were saved, and warn of changes."""
        loaders = [one.loader for one in combined.loaders]
        if len(loaders) != len(saved["loaders"]):
            if saved["loaders"]:  # otherwise it was saved before the data was loaded
                rank_zero_warn(
                    f"ExactResume can't resume the data exactly, as the checkpoint was saved with"
                    f" {count(len(saved['loaders']), 'loader')}, and this fit has"
                    f" {len(loaders)}: the epoch's data starts from its beginning"
                )
            return False
        changed = changes(saved["loaders"], loaders)
        if changed:
            rank_zero_warn(
                f"ExactResume can't resume exactly, as settings of a loader have changed:"
                f" {'; '.join(changed)}. To resume exactly set them as before"
            )
        return True

    def _warn_if_inexact(self, trainer: Trainer, batches: int) -> None:
        """Warn, once in a fit, if a fit that resumes after ``batches`` batches may be another."""
        if self._has_warned or not batches:
            return
        found = reasons(trainer, batches)
        if found:
            self._has_warned = True
            rank_zero_warn(
                "ExactResume can't tell whether a fit that resumes in mid-epoch trains the rest of"
                f" the epoch exactly: {'; '.join(found)}"
            )


def _warn_of_generators(combined: ResumableLoaders) -> None:
    """Warn of generators that aren't restored."""
    names = sorted(set().union(*(one.unmatched for one in combined.loaders)))
    if names:
        rank_zero_warn(
            f"ExactResume can't restore the random number generators {some(names)}: each is either"
            " not in the checkpoint, or not in the loaders of this fit when the epoch starts, or of"
            " another type. To resume exactly make the same generators before the fit, and not"
            " when the first sample is read"
        )


def _warn_of_no_state(trainer: Trainer) -> None:
    """Warn if a fit resumes in mid-epoch from a checkpoint that was saved without this callback."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    if trainer.fit_loop.restarting and progress.processed and not has_ended(trainer):
        rank_zero_warn(
            "ExactResume can't resume in mid-epoch from a checkpoint that was saved without it: the"
            " random states are not restored, and the epoch's data starts from its beginning"
        )


def _remove_source(trainer: Trainer) -> None:
    loop = trainer.fit_loop
    source = loop._data_source
    if isinstance(source, ResumableSource):
        loop._data_source = source.source
