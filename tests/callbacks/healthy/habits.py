"""Healthy fits with habits that resemble faults which begin during a fit."""

from collections import deque
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from lightning_practices.surgery import freeze
from tests.advisor.programs import Task, digit_loaders, digits, mlp, split
from tests.callbacks.faulty_fits import Fit, adam
from tests.callbacks.faulty_fits_since_start import Bandit, Coder, Collects, Copied, Staged
from tests.callbacks.healthy.classifiers import trained_teacher
from tests.callbacks.healthy.declared import (
    Metric,
    accuracy,
    digit_accuracy,
    fits_well,
    of,
)


def net_with_norms() -> nn.Sequential:
    return nn.Sequential(
        mlp(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 10)
    )


# Modes.


@fits_well(above=0.8)
def samples_that_give_training_mode_back() -> tuple[Fit, Metric]:
    class Samples(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            module.eval()
            with torch.no_grad():
                module.net(args[1][0][:4])
            module.train()

    module = Task(net_with_norms())
    return Fit(module, *digit_loaders(), callbacks=(Samples(),)), of(module, digit_accuracy)


@fits_well(above=0.8)
def statistics_frozen_by_an_overridden_train() -> tuple[Fit, Metric]:
    class Frozen(Task):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            for part in self.modules():
                if isinstance(part, nn.BatchNorm1d):
                    part.eval()
            return self

        def on_train_epoch_start(self) -> None:
            self.train()

    module = Frozen(net_with_norms())
    return Fit(module, *digit_loaders()), of(module, digit_accuracy)


@fits_well(above=0.8)
def trained_network_tuned_in_eval_mode() -> tuple[Fit, Metric]:
    """Batch norms have statistics of an earlier training, and keep them."""
    x, y = digits()
    net = nn.Sequential(mlp(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()

    class Tuned(Task):
        def on_train_epoch_start(self) -> None:
            self.net.eval()

    module = Tuned(net)
    return Fit(module, *digit_loaders()), of(module, digit_accuracy)


@fits_well(above=0.8)
def accuracy_in_eval_mode_at_the_end_of_each_step() -> tuple[Fit, Metric]:
    """The next step puts training mode back: backward passes run in eval mode, forward don't."""

    class Measures(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.net.train()
            loss = super().training_step(batch, batch_idx)
            self.net.eval()
            with torch.no_grad():
                self.log("train_acc", accuracy(self.net, *batch))
            return loss

        def on_train_epoch_start(self) -> None:
            self.net.train()

    module = Measures(net_with_norms())
    return Fit(module, *digit_loaders()), of(module, digit_accuracy)


@fits_well(above=0.8)
def head_of_a_body_that_is_frozen_later() -> tuple[Fit, Metric]:
    """The body is frozen after the second epoch: it is in eval mode, and gets no gradient."""

    class Freezing(Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 2:
                freeze(module.net, ["0", "1"])

    module = Task(net_with_norms())
    return Fit(module, *digit_loaders(), callbacks=(Freezing(),)), of(module, digit_accuracy)


@fits_well(above=0.8)
def whole_module_in_eval_mode_but_for_its_head() -> tuple[Fit, Metric]:
    """Only the head is trained, from the second epoch on."""

    class Probe(Task):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.requires_grad_(False)
                self.eval()
                self.net[4].requires_grad_(True)
                self.net[4].train()

    module = Probe(net_with_norms(), optimizer=adam(3e-3))
    return Fit(module, *digit_loaders()), of(module, digit_accuracy)


@fits_well(below=0.7)
def decoder_that_gets_training_mode_back() -> tuple[Fit, Metric]:
    module = Coder(gives_back=True)
    x, _ = digits()

    @torch.no_grad()
    def error() -> Any:
        module.eval()
        return functional.mse_loss(module.decoder(module.net(x)), x.flatten(1)).item()

    return Fit(module, digit_loaders()[0], steps=150), error


# Unfreezing.


@fits_well(above=0.8)
def layer_unfrozen_into_the_optimizer() -> tuple[Fit, Metric]:
    module = Staged()
    module.how = "added"
    return Fit(module, digit_loaders()[0], steps=130), of(module, digit_accuracy)


@fits_well(above=0.8)
def optimizer_has_what_is_unfrozen_later() -> tuple[Fit, Metric]:
    module = Staged()
    module.how = "from the start"
    return Fit(module, digit_loaders()[0], steps=130), of(module, digit_accuracy)


@fits_well(above=0.8)
def layer_unfrozen_into_an_optimizer_of_its_own() -> tuple[Fit, Metric]:
    """An optimizer that the Trainer doesn't know steps in a hook."""

    class Own(Staged):
        def on_before_zero_grad(self, optimizer: Any) -> None:
            if self.current_epoch >= 1:
                own = torch.optim.SGD(self.net[1].parameters(), 0.05)
                own.step()
                own.zero_grad()

    module = Own()
    return Fit(module, digit_loaders()[0], steps=130), of(module, digit_accuracy)


@fits_well(above=0.8)
def distance_of_features_of_a_network_that_is_not_frozen() -> tuple[Fit, Metric]:
    """The teacher gets gradients from the first step on, and no optimizer: wasteful, but right."""
    teacher = trained_teacher()

    class Student(Task):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 10), optimizer=adam(3e-3))
            self.teacher = teacher

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = functional.cross_entropy(self.net(batch[0]), batch[1])
            return loss + 0.1 * functional.mse_loss(self.net(batch[0]), self.teacher(batch[0]))

        def configure_optimizers(self) -> Any:
            return self.optimizer(self.net.parameters())

    module = Student()
    return Fit(module, digit_loaders()[0]), of(module, digit_accuracy)


# Outputs.


@fits_well(above=0.8)
def outputs_cleared_before_the_next_epoch() -> tuple[Fit, Metric]:
    class Clears(Collects):
        def on_validation_epoch_start(self) -> None:
            self.seen.clear()

    module = Clears(mlp(64, 32, 10))
    return Fit(module, *digit_loaders()), of(module, digit_accuracy)


@fits_well(above=0.8)
def outputs_cleared_by_the_first_batch() -> tuple[Fit, Metric]:
    class Clears(Collects):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            if not batch_idx:
                self.seen = []
            super().validation_step(batch, batch_idx)

    module = Clears(mlp(64, 32, 10))
    return Fit(module, *digit_loaders()), of(module, digit_accuracy)


@fits_well(above=0.8)
def histories_and_pictures_of_all_epochs() -> tuple[Fit, Metric]:
    """One number of each batch, and one picture of each epoch, for a plot at the epoch's end."""

    class Plots(Task):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.losses: list[Any] = []
            self.pictures: list[Tensor] = []
            self.steps: list[float] = []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.steps.append(loss.item())
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.losses.append(self.loss(self.net(batch[0]), batch[1]))
            self.log("val_loss", self.losses[-1])
            if not batch_idx:
                self.pictures.append(batch[0][:4])

        def on_validation_epoch_end(self) -> None:
            self.log("val_lowest", torch.stack(self.losses).min())
            self.log("val_pictures", float(len(self.pictures)))

        def on_train_epoch_end(self) -> None:
            self.log("train_lowest", min(self.steps))

    module = Plots(mlp(64, 32, 10))
    return Fit(module, *digit_loaders()), of(module, digit_accuracy)


@fits_well(above=0.8)
def memory_of_earlier_batches() -> tuple[Fit, Metric]:
    """A bounded memory, and one that grows, from which training draws."""

    class Remembers(Task):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.last: deque[Any] = deque(maxlen=500)
            self.memory: list[Any] = []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.last.append(batch)
            self.memory.append(batch)
            x, y = self.memory[batch_idx % len(self.memory)]
            old = functional.cross_entropy(self.net(x), y)
            return super().training_step(batch, batch_idx) + 0.1 * old

        def on_train_epoch_end(self) -> None:
            self.log("remembered", float(len(self.last)))

    module = Remembers(mlp(64, 32, 10))
    return Fit(module, digit_loaders()[0]), of(module, digit_accuracy)


class Replays(Task):
    """Keeps batches in a list that is cut at its limit, and learns from some of them again."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.buffer: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.buffer.append(tuple(batch))
        if len(self.buffer) > 100_000:
            self.buffer = self.buffer[-100_000:]
        return super().training_step(batch, batch_idx) + 0.1 * self.again(batch_idx)

    def again(self, batch_idx: int) -> Tensor:
        x, y = self.buffer[batch_idx % len(self.buffer)]
        return functional.cross_entropy(self.net(x), y)


@fits_well(above=0.8)
def size_of_a_replay_buffer() -> tuple[Fit, Metric]:
    class Sized(Replays):
        def on_train_epoch_end(self) -> None:
            self.log("buffer_size", float(len(self.buffer)))

    module = Sized(mlp(64, 32, 10))
    return Fit(module, digit_loaders()[0]), of(module, digit_accuracy)


@fits_well(above=0.8)
def classes_in_a_replay_buffer() -> tuple[Fit, Metric]:
    """The end of the epoch reads what is in the memory."""

    class Counted(Replays):
        def on_train_epoch_end(self) -> None:
            self.log("buffer_mean", torch.cat([y for _, y in self.buffer]).float().mean())

    module = Counted(mlp(64, 32, 10))
    return Fit(module, digit_loaders()[0]), of(module, digit_accuracy)


@fits_well(above=0.8)
def number_of_all_outputs() -> tuple[Fit, Metric]:
    """Outputs that are kept for the end of the fit, and whose number alone is logged."""

    class Kept(Task):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.seen: list[Tensor] = []

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.seen.append(self.net(batch[0]).argmax(1))

        def on_validation_epoch_end(self) -> None:
            if self.seen:
                self.log("val_batches", float(len(self.seen)))

    module = Kept(mlp(64, 32, 10))
    return Fit(module, *digit_loaders()), of(module, digit_accuracy)


# Metrics.


@fits_well(above=0.6)
def rewards_that_rise() -> tuple[Fit, Metric]:
    class Right(Bandit):
        sign = -1.0

    module = Right(mlp(64, 32, 10), None, adam(3e-3))  # type: ignore[arg-type]
    x, y = digits()

    @torch.no_grad()
    def near() -> float:
        return float(((module.net(x).argmax(1) - y).abs() <= 3).float().mean())

    return Fit(module, digit_loaders()[0], steps=200), near


@fits_well(above=0.8)
def accuracy_that_falls_for_the_sake_of_a_rare_class() -> tuple[Fit, Metric]:
    """At first the common class is predicted alone, which is right for most samples."""
    x, y = digits()
    rare = (y == 3).float()
    generator = torch.Generator().manual_seed(0)
    x = x + 1.5 * torch.randn(x.shape, generator=generator)
    net = mlp(64, 1)
    nn.init.zeros_(net.get_parameter("1.weight"))
    nn.init.constant_(net.get_parameter("1.bias"), -1.0)

    class Weighted(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            out = self.net(batch[0])[:, 0]
            self.log("train_acc", ((out > 0) == (batch[1] > 0)).float().mean())
            weight = torch.tensor(9.0)
            return functional.binary_cross_entropy_with_logits(out, batch[1], pos_weight=weight)

    module = Weighted(net, optimizer=adam(1e-2))

    def recall() -> Any:
        with torch.no_grad():
            return (net(x)[rare > 0, 0] > 0).float().mean().item()

    return Fit(module, split(x, rare)[0], steps=150), recall


@fits_well(above=0.8)
def accuracy_of_a_domain_that_falls_on_purpose() -> tuple[Fit, Metric]:
    """Gradients are turned before the head that tells domains, so that features don't show them."""

    class Adversarial(Task):
        def __init__(self) -> None:
            super().__init__(mlp(65, 32, 10), optimizer=adam(3e-3))
            self.domain = nn.Linear(32, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            kind = (torch.arange(len(batch[0])) % 2).float()
            features = self.net[2](self.net[1](torch.cat([batch[0].flatten(1), kind[:, None]], 1)))
            told = self.domain(2 * features.detach() - features)[:, 0]
            self.log("domain_acc", ((told > 0) == (kind > 0)).float().mean())
            out = self.net[3](features)
            self.log("train_acc", (out.argmax(1) == batch[1]).float().mean())
            domain = functional.binary_cross_entropy_with_logits(told, kind)
            return functional.cross_entropy(out, batch[1]) + domain

    module = Adversarial()
    x, y = digits()
    rows = torch.cat([x.flatten(1), torch.zeros(len(x), 1)], 1)
    return Fit(module, digit_loaders()[0], steps=150), lambda: accuracy(module.net, rows, y)


@fits_well(above=0.8)
def entropy_of_a_map_that_falls() -> tuple[Fit, Metric]:
    """The network attends to one class of each image: its map gets sharp."""

    class Attends(Task):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 10), optimizer=adam(1e-2))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            out = self.net(batch[0])
            attention = out.softmax(dim=1)
            entropy = torch.special.entr(attention).sum(dim=1).mean()
            self.log("attention_map_entropy", entropy.detach())
            return functional.cross_entropy(out, batch[1])

    module = Attends()
    return Fit(module, digit_loaders()[0], steps=150), of(module, digit_accuracy)


@fits_well(above=0.8)
def average_that_is_quick_enough() -> tuple[Fit, Metric]:
    module = Copied(mlp(64, 32, 10), 0.95)
    return Fit(module, *digit_loaders(), steps=150), lambda: digit_accuracy(module.copy)


@fits_well(above=0.8)
def loss_of_validation_that_is_zero() -> tuple[Fit, Metric]:
    """Classes far apart: the margin is kept on all samples of validation from the start."""

    def hinge(out: Tensor, y: Tensor) -> Tensor:
        return functional.multi_margin_loss(out, y, margin=0.5)

    x, y = digits()
    first = torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
    x = x.flatten(1) + 3 * first[y]
    module = Task(mlp(64, 10), hinge, adam(1e-2))
    return Fit(module, *split(x, y), steps=150), lambda: accuracy(module.net, x, y)


# Batches.


class Whole(Dataset[Any]):
    """All samples as one item, several times in an epoch."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return digits()


@fits_well(above=0.8)
def whole_data_several_times_in_an_epoch() -> tuple[Fit, Metric]:
    module = Task(mlp(64, 32, 10), optimizer=adam(1e-2))
    return Fit(module, DataLoader(Whole(), None)), of(module, digit_accuracy)


@fits_well(above=0.8)
def whole_data_in_a_list() -> tuple[Fit, Metric]:
    module = Task(mlp(64, 32, 10), optimizer=adam(1e-2))
    items: Any = [digits()] * 8
    return Fit(module, DataLoader(items, None)), of(module, digit_accuracy)
