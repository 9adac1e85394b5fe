"""Fits that note the weights after each step, and averages of these by other means."""

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn
from torch.utils.data import DataLoader
from typing_extensions import override

from tests.callbacks.scripted import DIP, STEPS, Scripted, State, state_of, trainer_of

KEY = "weight_averaging"
STATE = "WeightAveraging"
BATCHES = list(torch.randn(STEPS, 4, 2, generator=torch.Generator().manual_seed(1)))
VALIDATION: DataLoader[Any] = DataLoader(BATCHES[:1], batch_size=None)  # type: ignore[arg-type]


class Net(Scripted):
    """``trained`` has the state under training after each step, ``seen`` that of validation."""

    def __init__(self, values: Sequence[float] = DIP, every: int = STEPS, width: int = 2) -> None:
        super().__init__(values, every, width)
        self.trained: dict[int, State] = {}

    @override
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    @override
    def on_train_batch_end(self, *_: Any) -> None:
        # The first batch of several at a step is the one that has made it.
        self.trained.setdefault(self.trainer.global_step, state_of(self))


class Loader:
    """Batches of an epoch, going on in its midst where a checkpoint left."""

    def __init__(self) -> None:
        self.given = 0

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[Tensor]:
        self.given %= STEPS
        for batch in BATCHES[self.given :]:
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


def fit(
    module: LightningModule, *callbacks: Callback, resume: Path | None = None, **options: Any
) -> Trainer:
    trainer = trainer_of(*callbacks, **{"max_epochs": 4, **options})
    trainer.fit(module, Loader(), VALIDATION, ckpt_path=resume)
    return trainer


def averaged(
    states: Iterable[State],
    decay: float | None = None,
    module: nn.Module | None = None,
    warmup: bool = True,
) -> State:
    """Return what torch's ``AveragedModel`` makes of the states of a ``Net``."""

    def warmed_up(averages: Any, weights: Any, count: Tensor) -> None:
        now = min(decay or 0.0, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(now)(averages, weights, count)

    module = deepcopy(module or Net())
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):  # whose integers torch can't average equally
            part.num_batches_tracked = torch.zeros(())
    average: Any = get_swa_multi_avg_fn()
    if decay is not None:
        average = warmed_up if warmup else get_ema_multi_avg_fn(decay)
    model = AveragedModel(module, multi_avg_fn=average, use_buffers=True)
    for state in states:
        module.load_state_dict(state)
        model.update_parameters(module)
    return state_of(model.module)


def alike(state: State, other: State, but: str = "num_batches") -> bool:
    """Say whether states are the same, but for what isn't averaged."""
    names = [name for name in state if but not in name]
    return state.keys() == other.keys() and all(torch.equal(state[n], other[n]) for n in names)
