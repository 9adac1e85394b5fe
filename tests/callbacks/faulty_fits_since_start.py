"""Fits with a fault that begins during the fit, or shows in what is logged."""

import copy
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from tests.advisor.programs import Task, digit_loaders, digits, mlp, split
from tests.callbacks.faulty_fits import ByHand, Fit, adam, faulty, train


class Anew(Dataset[Any]):
    """Gives one sample, whatever the index is."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        x, y = digits()
        return x[7], y[7]


@faulty("LP819", source="datasets that ignore their index, with batches of one sample")
def one_sample_in_each_batch() -> Fit:
    return Fit(Task(mlp(64, 32, 10)), DataLoader(Anew(), 1), steps=40)


# Modes.


class Samples(Callback):
    """Looks at outputs in eval mode, and forgets to put training mode back."""

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int
    ) -> None:
        if number == 4:
            module.eval()
            with torch.no_grad():
                module.net(batch[0][:4])


@faulty("LP820", source="reports of callbacks that draw samples: dropout is off from then on")
def callback_that_leaves_eval_mode() -> Fit:
    net = nn.Sequential(mlp(64, 64), nn.Dropout(0.3), nn.ReLU(), nn.Linear(64, 10))
    return Fit(Task(net), train(), callbacks=(Samples(),))


class Coder(ByHand):
    """An encoder and a decoder with an optimizer each; pictures are drawn by the decoder."""

    def __init__(self, *, gives_back: bool) -> None:
        super().__init__(mlp(64, 32))
        self.gives_back = gives_back
        self.decoder = nn.Sequential(nn.Linear(32, 48), nn.BatchNorm1d(48), nn.ReLU(),
                                     nn.Linear(48, 64))  # fmt: skip

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        x = batch[0]
        loss = functional.mse_loss(self.decoder(self.net(x)), x.flatten(1))
        both: Any = self.optimizers()
        for one in both:
            one.zero_grad()
        self.manual_backward(loss)
        for one in both:
            one.step()
        if not batch_idx % 5:
            self.draw(x)

    @torch.no_grad()
    def draw(self, x: Tensor) -> Tensor:
        self.decoder.eval()
        drawn: Tensor = self.decoder(torch.randn(4, 32))
        if self.gives_back:
            self.decoder.train()
        return drawn

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(part.parameters(), 1e-3) for part in (self.net, self.decoder)]


@faulty("LP820", "decoder", source="samples that a training step draws from a decoder in eval mode")
def decoder_that_is_left_in_eval_mode() -> Fit:
    return Fit(Coder(gives_back=False), train())


# Unfreezing.


class Staged(Task):
    """A first layer that is trained from the second epoch on."""

    how = "forgotten"

    def __init__(self) -> None:
        super().__init__(mlp(64, 32, 10), optimizer=adam(1e-2))
        for p in self.net[1].parameters():
            p.requires_grad = False

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            for p in self.net[1].parameters():
                p.requires_grad = True
            if self.how == "added":
                optimizer: Any = self.optimizers()
                optimizer.add_param_group({"params": self.net[1].parameters(), "lr": 1e-3})

    def configure_optimizers(self) -> Any:
        given = self.parameters()
        chosen = given if self.how == "from the start" else [p for p in given if p.requires_grad]
        return self.optimizer(chosen)


@faulty("LP821", "net.1.weight", source="questions on staged unfreezing: layers in no optimizer")
def layer_unfrozen_without_optimizer() -> Fit:
    return Fit(Staged(), train(), steps=130)


class Grows(Callback):
    """Adds a layer to the network, and to no optimizer."""

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            new = nn.Linear(10, 10)
            nn.init.eye_(new.weight)
            module.net = nn.Sequential(module.net, new)


@faulty("LP821", "net.1.weight", source="networks that grow while they are trained")
def layer_added_without_optimizer() -> Fit:
    return Fit(ByHand(mlp(64, 32, 10)), train(), steps=130, callbacks=(Grows(),))


# Outputs.


class Collects(Task):
    """Computes the accuracy of an epoch from outputs that it collects."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: list[Any] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.seen.append({"guess": self.net(batch[0]).argmax(1), "y": batch[1]})

    def on_validation_epoch_end(self) -> None:
        self.show()

    def show(self) -> None:
        guess, y = (torch.cat([one[key] for one in self.seen]) for key in ("guess", "y"))
        self.log("val_acc", (guess == y).float().mean())


@faulty("LP822", source="validation outputs in lists that nothing clears")
def outputs_never_cleared() -> Fit:
    return Fit(Collects(mlp(64, 32, 10)), *digit_loaders(), steps=100)


class Grown(Callback):
    """Concatenates the predictions of validation to those before."""

    def __init__(self) -> None:
        self.errors = torch.empty(0)

    def on_validation_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        wrong = module.net(batch[0]).argmax(1) != batch[1]
        self.errors = torch.cat([self.errors, wrong.float()])

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        module.log("val_wrong", self.errors.mean())


@faulty("LP822", source="a callback whose tensor of errors grows at each validation")
def tensor_that_grows() -> Fit:
    return Fit(Task(mlp(64, 32, 10)), *digit_loaders(), steps=100, callbacks=(Grown(),))


@faulty("LP822", source="Lightning 2.0: training_step_outputs that are not freed")
def outputs_of_training_never_cleared() -> Fit:
    class Trains(Task):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.outs: list[Tensor] = []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.outs.append((self.net(batch[0]).argmax(1) == batch[1]).detach())
            return super().training_step(batch, batch_idx)

        def on_train_epoch_end(self) -> None:
            self.log("train_acc_of_epoch", torch.cat(self.outs).float().mean())

    return Fit(Trains(mlp(64, 32, 10)), train(), steps=100)


@faulty("LP822", source="a tensor of the module that grows with each training batch")
def training_outputs_joined() -> Fit:
    class Joins(Task):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.right = torch.empty(0, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            right = self.net(batch[0]).argmax(1, keepdim=True) == batch[1][:, None]
            self.right = torch.cat([self.right, right.float()])
            return super().training_step(batch, batch_idx)

        def on_train_epoch_end(self) -> None:
            if len(self.right):
                self.log("train_acc_of_epoch", self.right.mean())

    return Fit(Joins(mlp(64, 32, 10)), train(), steps=100)


# Metrics.


class Bandit(Task):
    """A policy that is rewarded for the right digit; it logs the reward."""

    sign = 1.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        choices = torch.distributions.Categorical(logits=self.net(batch[0]))
        drawn = choices.sample()
        reward = ((drawn - batch[1]).abs() <= 3).float()
        self.log("train/mean_reward", reward.mean())
        loss: Tensor = self.sign * (choices.log_prob(drawn) * (reward - 0.5)).mean()
        return loss


@faulty("LP823", source="policy gradients without the minus")
def rewards_that_are_avoided() -> Fit:
    return Fit(Bandit(mlp(64, 32, 10), None, adam(3e-3)), train(), steps=200)  # type: ignore[arg-type]


@faulty("LP823", source="a score that is given back as the loss")
def overlap_that_is_lowered() -> Fit:
    class Overlap(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            mask = (batch[0] > 0).float().flatten(1)
            guess = self.net(batch[0]).sigmoid()
            dice: Tensor = 2 * (guess * mask).sum() / (guess.sum() + mask.sum())
            self.log("train_dice", dice)
            return dice

    return Fit(Overlap(mlp(64, 32, 64), optimizer=adam(3e-3)), train(), steps=150)


class Copied(Task):
    """Validates a copy of its network, which follows it slowly."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__(net, optimizer=adam(3e-3))
        self.decay = decay
        self.copy: Any = copy.deepcopy(net).requires_grad_(False)

    def on_train_batch_end(self, *args: Any) -> None:
        with torch.no_grad():
            for old, new in zip(self.copy.parameters(), self.net.parameters(), strict=True):
                old.lerp_(new, 1 - self.decay)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        out = self.copy(batch[0])
        self.log("val_loss", self.loss(out, batch[1]))
        self.log("val_acc", (out.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.net.parameters())


@faulty("LP824", source="questions on averages of weights at chance in short fits")
def average_that_is_too_slow() -> Fit:
    return Fit(Copied(mlp(64, 32, 10), 0.9999), *digit_loaders(), steps=200)


@faulty("LP824", source="a copy of the weights whose update is never called")
def copy_that_is_never_updated() -> Fit:
    return Fit(Copied(mlp(64, 32, 10), 1.0), *digit_loaders(), steps=120)


@faulty("LP824", source="validation of the network that was loaded, in place of the trained one")
def network_of_the_start_is_validated() -> Fit:
    first = mlp(64, 32, 10)

    class Other(Task):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("loss/val", self.loss(first(batch[0]), batch[1]))

    return Fit(Other(copy.deepcopy(first)), *split(*digits()), steps=120)
