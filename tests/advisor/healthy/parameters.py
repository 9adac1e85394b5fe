"""Healthy programs whose modes, parameters, gradients or optimizers are unusual, on purpose."""

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet18

from tests.advisor.faulty.graphs import Dropping, Listed
from tests.advisor.faulty.parameters import Gan, Net, frozen_cnn
from tests.advisor.programs import (
    Arguments,
    Task,
    cnn,
    diabetes_loaders,
    digit_loaders,
    healthy,
    mlp,
)

# Modes


@healthy
def batch_norms_alone_in_eval_mode() -> Arguments:
    net = cnn()
    for part in net:
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    return Task(net), digit_loaders()


@healthy
def frozen_backbone_in_eval_mode() -> Arguments:
    net = frozen_cnn()
    net[0].eval()
    return Task(net), digit_loaders()


@healthy
def frozen_backbone_put_into_eval_mode_by_a_hook() -> Arguments:
    class Hooked(Task):
        def on_train_epoch_start(self) -> None:
            self.net.get_submodule("0").eval()

    return Hooked(frozen_cnn()), digit_loaders()


@healthy
def trained_backbone_with_the_statistics_of_its_pretraining() -> Arguments:
    class Fixed(Task):
        def on_train_epoch_start(self) -> None:
            self.net.get_submodule("0").eval()

    return Fixed(nn.Sequential(cnn()[:6], *cnn()[6:])), digit_loaders()


@healthy
def layers_without_modes_in_eval_mode() -> Arguments:
    return Task(
        nn.Sequential(mlp(64, 32, 32).eval(), nn.ReLU(), nn.Linear(32, 10))
    ), digit_loaders()


@healthy
def lightnings_transfer_learning() -> Arguments:
    """Lightning's own example: eval and no_grad in forward, and all parameters in the optimizer."""

    class Transfer(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            layers = list(resnet18().children())[:-1]
            self.feature_extractor = nn.Sequential(*layers).eval()
            self.classifier = nn.Linear(512, 10)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.feature_extractor.eval()
            with torch.no_grad():
                features = self.feature_extractor(batch[0].expand(-1, 3, -1, -1)).flatten(1)
            return functional.cross_entropy(self.classifier(features), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    return Transfer(), digit_loaders(16)[0]


# Teachers and targets


class Teacher(LightningModule):
    """Learns to predict the features of a moving average of itself, and the classes.

    Args:
        frozen: Whether the teacher's parameters have ``requires_grad=False``.
        network: Makes a network of 32 features.
    """

    def __init__(self, frozen: bool, network: nn.Module) -> None:
        super().__init__()
        self.student = network
        self.teacher = copy.deepcopy(network)
        self.teacher.requires_grad_(not frozen)
        self.head = nn.Linear(32, 10)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        with torch.no_grad():
            for p, q in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                p.lerp_(q, 0.01)
            target = self.teacher(x)
        h = self.student(x + 0.1 * torch.randn_like(x))
        return functional.cross_entropy(self.head(h), y) + functional.mse_loss(h, target)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


@healthy
def ema_teacher_with_gradients_on() -> Arguments:
    return Teacher(False, mlp(64, 32, 32)), digit_loaders()[0]


@healthy
def momentum_encoder_whose_batch_norms_move() -> Arguments:
    return Teacher(True, cnn()[:-1]), digit_loaders()[0]


@healthy
def target_network_that_is_copied_later() -> Arguments:
    class Target(Teacher):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            if batch_idx % 100 == 99:
                self.teacher.load_state_dict(self.student.state_dict())
            h = self.student(x)
            return functional.mse_loss(h, 0.9 * self.teacher(x).detach()) + (
                functional.cross_entropy(self.head(h), y)
            )

    return Target(False, mlp(64, 32, 32)), digit_loaders()[0]


@healthy
def perceptual_network_that_no_optimizer_holds() -> Arguments:
    class Perceptual(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(mlp(64, 32, 64), nn.Unflatten(1, (1, 8, 8)))
            self.features = cnn()[:6].eval()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, made = batch[0], self.net(batch[0])
            return functional.mse_loss(made, x) + (
                functional.mse_loss(self.features(made), self.features(x))
            )

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.net.parameters())

    return Perceptual(), digit_loaders()[0]


# Gradients


class Tasks(LightningModule):
    """Two tasks on one trunk, one task a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = mlp(64, 32, 32)
        self.classes, self.parity = nn.Linear(32, 10), nn.Linear(32, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        h = functional.relu(self.trunk(batch[0]))
        if self.is_second(batch_idx):
            return functional.cross_entropy(self.parity(h), batch[1] % 2)
        return functional.cross_entropy(self.classes(h), batch[1])

    def is_second(self, batch_idx: int) -> bool:
        return batch_idx % 2 == 1

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


@healthy
def tasks_that_alternate() -> Arguments:
    return Tasks(), digit_loaders()[0]


@healthy
def tasks_of_which_one_is_rare() -> Arguments:
    class Rare(Tasks):
        def is_second(self, batch_idx: int) -> bool:
            return batch_idx % 6 == 5

    return Rare(), digit_loaders()[0]


@healthy
def experts_of_which_one_gets_nothing_yet() -> Arguments:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(64, 10) for _ in range(3)])

        def forward(self, x: Tensor) -> Any:
            x = x.flatten(1)
            return self.experts[0](x) + self.experts[1](x)

    return Task(Experts()), digit_loaders()


@healthy
def generator_that_trains_each_fifth_step() -> Arguments:
    class Critic(Gan):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            opt_g, opt_d = self.optimizers()  # type: ignore[attr-defined]
            x = batch[0]
            fake = self.generator(torch.randn(len(x), 4)).detach()
            between = torch.lerp(x, fake, torch.rand(len(x), 1)).requires_grad_()
            (slope,) = torch.autograd.grad(
                self.discriminator(between).sum(), between, create_graph=True
            )
            penalty = (slope.norm(dim=1) - 1).square().mean()
            loss = self.discriminator(fake).mean() - self.discriminator(x).mean() + 10 * penalty
            opt_d.zero_grad()
            self.manual_backward(loss)
            opt_d.step()
            if batch_idx % 50 == 49:
                opt_g.zero_grad()
                self.manual_backward(
                    -self.discriminator(self.generator(torch.randn(len(x), 4))).mean()
                )
                opt_g.step()

    return Critic(), diabetes_loaders()[0]


@healthy
def gan_by_hand() -> Arguments:
    return Gan(), diabetes_loaders()[0]


@healthy
def adversarial_autoencoder_with_a_shared_encoder() -> Arguments:
    class Autoencoder(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.encoder, self.decoder = mlp(10, 32, 4), mlp(4, 32, 10)
            self.discriminator = mlp(4, 32, 1)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            opt_r, opt_d, opt_e = self.optimizers()  # type: ignore[attr-defined]
            x, z = batch[0], torch.randn(len(batch[0]), 4)
            score, encoder = self.discriminator, self.encoder
            losses = (
                (opt_r, lambda: functional.mse_loss(self.decoder(encoder(x)), x)),
                (opt_d, lambda: (functional.softplus(score(encoder(x).detach()))
                                 + functional.softplus(-score(z))).mean()),
                (opt_e, lambda: functional.softplus(-score(encoder(x))).mean()),
            )  # fmt: skip
            for optimizer, loss in losses:
                optimizer.zero_grad()
                self.manual_backward(loss())
                optimizer.step()

        def configure_optimizers(self) -> Any:
            both = [*self.encoder.parameters(), *self.decoder.parameters()]
            parts = (both, self.discriminator.parameters(), self.encoder.parameters())
            return [torch.optim.Adam(part, 1e-3) for part in parts]

    return Autoencoder(), diabetes_loaders()[0]


@healthy
def optimizer_of_its_own_that_calls_backward() -> Arguments:
    class Own(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.own = {"adam": torch.optim.Adam(self.parameters(), 1e-3)}

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            self.own["adam"].zero_grad()
            super().training_step(batch, batch_idx).backward()
            self.own["adam"].step()

        def configure_optimizers(self) -> None:
            return None

    return Own(), digit_loaders()


@healthy
def updates_without_an_optimizer() -> Arguments:
    class Sgd(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            self.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            with torch.no_grad():
                for p in self.parameters():
                    p.sub_(0.1 * (0 if p.grad is None else p.grad))

        def configure_optimizers(self) -> None:
            return None

    return Sgd(), digit_loaders()


@healthy
def codebook_that_is_a_moving_average() -> Arguments:
    """A VQ-VAE with a codebook and sums that are parameters, and updated by hand."""

    class Quantized(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = mlp(64, 32, 8), mlp(8, 32, 64)
            self.codes = nn.Embedding(16, 8)
            self.sums = nn.Parameter(torch.randn(16, 8))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0].flatten(1)
            z = self.encoder(x)
            chosen = torch.cdist(z, self.codes.weight).argmin(dim=1)
            hits = functional.one_hot(chosen, 16).float()
            self.sums = nn.Parameter(0.9 * self.sums + 0.1 * hits.T @ z)
            self.codes.weight.data.lerp_(self.sums.data / (hits.sum(0)[:, None] + 1), 0.1)
            q = hits @ self.codes.weight
            commitment = functional.mse_loss(q.detach(), z)
            return functional.mse_loss(self.decoder(z + (q - z).detach()), x) + commitment

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    return Quantized(), digit_loaders()[0]


@healthy
def rounding_with_gradients_straight_through() -> Arguments:
    class Rounded(Net):
        def forward(self, x: Tensor) -> Any:
            h = torch.sigmoid(self.encoder(x))
            return self.head(h + (h.round() - h).detach())

    return Rounded(), digit_loaders()


@healthy
def term_that_begins_with_a_factor_of_zero() -> Arguments:
    class Warm(Net):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(32, 32)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            h = self.encoder(x)
            factor = min(1.0, self.global_step / 1e3) if self.global_step > 500 else 0.0
            term = functional.mse_loss(torch.round(self.other(h)) + self.other(h), h.detach())
            return functional.cross_entropy(self.head(functional.relu(h)), y) + factor * term

    return Warm(), digit_loaders()


@healthy
def low_rank_adapter() -> Arguments:
    class Adapted(nn.Module):
        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            self.layer = layer.requires_grad_(False)
            self.a = nn.Parameter(torch.randn(4, layer.in_features) / 8)
            self.b = nn.Parameter(torch.zeros(layer.out_features, 4))

        def forward(self, x: Tensor) -> Any:
            return self.layer(x) + x @ self.a.T @ self.b.T

    net = nn.Sequential(nn.Flatten(), Adapted(nn.Linear(64, 32)), nn.ReLU(),
                        Adapted(nn.Linear(32, 10)))  # fmt: skip
    return Task(net, optimizer=lambda p: torch.optim.Adam(p, 0.01)), digit_loaders()


class Zero(nn.Module):
    """A residual branch whose factor begins at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = mlp(width, width, width)
        self.factor = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        return x + self.factor * self.branch(x)


@healthy
def branches_that_begin_at_zero_with_warmup_from_zero() -> Arguments:
    def optimizer(parameters: Any) -> Any:
        made = torch.optim.AdamW(parameters, 1e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda step: min(1.0, step / 20))
        return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    net = nn.Sequential(mlp(64, 32), Zero(32), Zero(32), nn.ReLU(), nn.Linear(32, 10))
    return Task(net, optimizer=optimizer), digit_loaders()


@healthy
def accumulated_gradients_of_branches_that_begin_at_zero() -> Arguments:
    from lightning.pytorch import Trainer

    net = nn.Sequential(mlp(64, 32), Zero(32), Zero(32), nn.ReLU(), nn.Linear(32, 10))
    trainer = Trainer(max_epochs=3, accumulate_grad_batches=20, logger=False, accelerator="cpu",
                      enable_checkpointing=False)  # fmt: skip
    return Task(net), digit_loaders(), trainer


@healthy
def group_whose_rate_is_zero_at_first() -> Arguments:
    class Later(Net):
        def configure_optimizers(self) -> Any:
            groups: Any = [{"params": self.encoder.parameters(), "lr": 0.0},
                      {"params": self.head.parameters()}]  # fmt: skip
            return torch.optim.Adam(groups, 1e-3)

    return Later(), digit_loaders()


@healthy
def rate_that_a_hook_sets() -> Arguments:
    class Hooked(Net):
        def optimizer_step(self, *args: Any) -> None:
            optimizer, closure = args[2:]
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * min(1.0, (self.global_step + 1) / 10)
            optimizer.step(closure=closure)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 0.0)

    return Hooked(), digit_loaders()


# Registration


@healthy
def layers_in_a_module_list() -> Arguments:
    return Listed(nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 32)])), digit_loaders()


@healthy
def lists_of_registered_layers() -> Arguments:
    class Both(Net):
        def __init__(self) -> None:
            super().__init__()
            self.order = [self.encoder, nn.ReLU(), self.head]

        def forward(self, x: Tensor) -> Any:
            for layer in self.order:
                x = layer(x)
            return x

    return Both(), digit_loaders()


@healthy
def inputs_with_gradients() -> Arguments:
    """Adversarial training: the step differentiates by its input first."""

    class Adversarial(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            moved = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(functional.cross_entropy(self(moved), y), moved)
            delta = (0.05 * slope.sign()).requires_grad_()
            return functional.cross_entropy(self(x + delta), y)

    return Adversarial(), digit_loaders()


@healthy
def weights_of_an_inner_loop() -> Arguments:
    """One step on half of the batch, then the loss of the other half, as in MAML."""

    class Inner(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            (x, y), half = batch, len(batch[0]) // 2
            names, weights = zip(*self.head.named_parameters(), strict=True)
            h = functional.relu(self.encoder(x))

            def loss(weights: Any, part: slice) -> Tensor:
                named = dict(zip(names, weights, strict=True))
                logits = torch.func.functional_call(self.head, named, (h[part],))
                return functional.cross_entropy(logits, y[part])

            slopes = torch.autograd.grad(loss(weights, slice(half)), weights, create_graph=True)
            moved = [w - 0.1 * slope for w, slope in zip(weights, slopes, strict=True)]
            return loss(moved, slice(half, None))

    return Inner(), digit_loaders()


@healthy
def tied_weights_and_checkpointed_activations() -> Arguments:
    class Tied(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(64, 16), nn.Linear(16, 64)
            self.mix = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
            self.code = nn.Linear(64, 16)
            self.code.weight = self.encoder.weight

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0].flatten(1)
            h: Any = checkpoint(self.mix, torch.tanh(self.encoder(x)), use_reentrant=False)
            again = self.decoder(h)
            return functional.mse_loss(again, x) + functional.mse_loss(self.code(again), h)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    return Tied(), digit_loaders()[0]


# Dropout


@healthy
def functional_dropout_of_the_mode() -> Arguments:
    return Dropping(), digit_loaders()


@healthy
def monte_carlo_dropout() -> Arguments:
    class Sampled(Dropping):
        def drop(self, h: Tensor) -> Tensor:
            return functional.dropout(h, 0.2, training=True)

    return Sampled(), digit_loaders()


@healthy
def monte_carlo_dropout_by_mode() -> Arguments:
    class Sampled(Net):
        def __init__(self) -> None:
            super().__init__()
            self.encoder.append(nn.Dropout(0.2))

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.encoder[-1].train()
            passes = torch.stack([self(batch[0]).softmax(dim=1) for _ in range(3)])
            self.encoder[-1].eval()
            self.log("val_loss", functional.nll_loss(passes.mean(0).log(), batch[1]))

    return Sampled(), digit_loaders()


@healthy
def transformer_with_dropout() -> Arguments:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(8, 16)
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.body(self.embed(x.squeeze(1))).mean(dim=1))

    return Task(Rows()), digit_loaders()
