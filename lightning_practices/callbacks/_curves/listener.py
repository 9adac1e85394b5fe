"""Records the logged values of a fit, without waiting for the device."""

from collections import Counter
from collections.abc import Callable, Iterator

from lightning.pytorch import Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_practices.callbacks._curves.panels import forks
from lightning_practices.callbacks._curves.series import EPOCH, History
from lightning_practices.callbacks._trainer.sharding import local


class Listener:
    """Records the logged values, on rank 0.

    Args:
        wants: A function that returns whether the values of a name are recorded.

    Attributes:
        history: The recorded values.
        heard: All names that were logged.
    """

    def __init__(self, wants: Callable[[str], bool]) -> None:
        self.history = History()
        self.heard: set[str] = set()
        self._wants = wants
        # The last value of each name. Holding it keeps its memory address from being reused.
        self._seen: dict[str, Tensor] = {}

    def listen(self, trainer: Trainer, *, stepwise: bool = False) -> None:
        """Record the values that are new since the last call; every rank has to call this."""
        logs = trainer.callback_metrics
        own = {EPOCH, *(name for name, _ in rates(trainer))}
        for name, value in logs.items():
            place = _place(value)
            # A value that is logged by step and by epoch also has an entry under its plain name.
            if name in own or any(
                place == _place(logs[fork]) for fork in forks(name) if fork in logs
            ):
                continue
            if name in self._seen and place == _place(self._seen[name]):
                continue
            self._seen[name] = value
            self.heard.add(name)
            if self._wants(name):
                whole = value.full_tensor() if isinstance(value, DTensor) else value
                self._note(trainer, name, whole, stepwise=stepwise)

    def note_rates(self, trainer: Trainer) -> None:
        """Record the learning rates of the next step."""
        for name, rate in rates(trainer):
            self._note(trainer, name, rate)

    def note_epoch(self, trainer: Trainer) -> None:
        """Record the end of an epoch."""
        self._note(trainer, EPOCH, trainer.current_epoch + 1)

    def _note(
        self, trainer: Trainer, name: str, value: Tensor | float, *, stepwise: bool = False
    ) -> None:
        if trainer.is_global_zero:
            self.history.add(name, trainer.global_step, value, stepwise=stepwise)


def rates(trainer: Trainer) -> Iterator[tuple[str, Tensor | float]]:
    """Yield the learning rate of each parameter group, named as by ``LearningRateMonitor``."""
    count: Counter[str] = Counter()
    for optimizer in trainer.optimizers:
        kind = type(optimizer).__name__
        name = f"lr-{kind}-{count[kind]}" if count[kind] else f"lr-{kind}"
        count[kind] += 1
        groups = optimizer.param_groups
        for i, group in enumerate(groups, start=1):
            own = group.get("name", f"pg{i}" if len(groups) > 1 else "")
            if "lr" in group:
                yield f"{name}/{own}" if own else name, group["lr"]


def _place(value: Tensor) -> int:
    """Return the memory address of a value, which is unique while the value is kept alive."""
    place: int = local(value).data_ptr()
    return place
