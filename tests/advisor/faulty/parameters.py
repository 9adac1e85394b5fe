"""Modes, parameters and optimizers with faults."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18

from tests.advisor.programs import (
    Arguments,
    Task,
    cnn,
    diabetes_loaders,
    digit_loaders,
    faulty,
    mlp,
)


class Net(LightningModule):
    """An encoder and a head; subclasses have faults."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = mlp(64, 32, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Any:
        return self.head(functional.relu(self.encoder(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


def _net() -> Arguments:
    return Net(), digit_loaders()


# Modes


@faulty("LP101", "net.0", source="transformers: from_pretrained returns a model in eval mode")
def backbone_left_in_eval_mode() -> Arguments:
    return Task(nn.Sequential(nn.Sequential(cnn()[:6]).eval(), *cnn()[6:])), digit_loaders()


@faulty("LP101", "net", source="questions about dropout without effect while fine-tuning")
def whole_network_in_eval_mode() -> Arguments:
    net = nn.Sequential(mlp(64, 64, 64), nn.Dropout(0.3), nn.ReLU(), nn.Linear(64, 10))
    return Task(net.eval()), digit_loaders()


@faulty("LP101", "net.0", source="transformers: an encoder with dropout that is left in eval mode")
def transformer_left_in_eval_mode() -> Arguments:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    net = nn.Sequential(encoder, nn.Flatten(), nn.Linear(64, 10))

    class Rows(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.loss(self.net(batch[0].squeeze(1)), batch[1])

    return Rows(net), digit_loaders()[0]


def frozen_cnn() -> nn.Sequential:
    body = cnn()[:6]
    return nn.Sequential(body.requires_grad_(False), *cnn()[6:])


@faulty("LP102", "net.0", source="Keras issue 9965 and torch questions: frozen batch norms move")
def frozen_backbone_moves_its_statistics() -> Arguments:
    return Task(frozen_cnn()), digit_loaders()


@faulty("LP102", "backbone", source="torchvision's tutorial on fine-tuning, without eval")
def frozen_resnet_moves_its_statistics() -> Arguments:
    class Probe(Net):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = resnet18(num_classes=64).requires_grad_(False)

        def forward(self, x: Tensor) -> Any:
            with torch.no_grad():
                x = self.backbone(x.expand(-1, 3, -1, -1))
            return super().forward(x)

    return Probe(), digit_loaders(16)


# Gradients


@faulty("LP103", "encoder", source="questions about detach: the encoder doesn't learn")
def encoder_is_detached() -> Arguments:
    class Detached(Net):
        def forward(self, x: Tensor) -> Any:
            return self.head(functional.relu(self.encoder(x).detach()))

    return Detached(), digit_loaders()


@faulty("LP103", "encoder", source="questions about .data: the graph ends without an error")
def encoder_goes_through_data() -> Arguments:
    class Data(Net):
        def forward(self, x: Tensor) -> Any:
            return self.head(functional.relu(self.encoder(x).data))

    return Data(), digit_loaders()


@faulty("LP103", "encoder", source="questions about NumPy in a forward pass")
def encoder_goes_through_numpy() -> Arguments:
    class Numpy(Net):
        def forward(self, x: Tensor) -> Any:
            h = self.encoder(x).detach().cpu().numpy()
            return self.head(torch.from_numpy(h).clamp(min=0))

    return Numpy(), digit_loaders()


@faulty("LP103", "encoder", source="questions about torch.tensor of a tensor")
def encoder_runs_under_no_grad() -> Arguments:
    class NoGrad(Net):
        def forward(self, x: Tensor) -> Any:
            with torch.no_grad():
                h = self.encoder(x)
            return self.head(functional.relu(h))

    return NoGrad(), digit_loaders()


@faulty("LP103", "encoder", source="questions about argmax between two networks")
def argmax_between_two_networks() -> Arguments:
    class Argmax(Net):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(32, 32)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.table(self.encoder(x).argmax(dim=1)))

    return Argmax(), digit_loaders()


class Gan(LightningModule):
    """Manual optimization of a generator and a discriminator of rows of features."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = mlp(4, 32, 10)
        self.discriminator = mlp(10, 32, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        opt_g, opt_d = self.optimizers()  # type: ignore[attr-defined]
        x, ones = batch[0], torch.ones(len(batch[0]), 1)
        fake = self.generator(torch.randn(len(x), 4))
        bce = functional.binary_cross_entropy_with_logits
        loss = bce(self.discriminator(self.passed(fake)), ones)
        opt_g.zero_grad()
        self.manual_backward(loss)
        opt_g.step()
        loss = bce(self.discriminator(x), ones) + bce(self.discriminator(fake.detach()), 0 * ones)
        opt_d.zero_grad()
        self.manual_backward(loss)
        opt_d.step()

    def passed(self, fake: Tensor) -> Tensor:
        return fake

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(part.parameters(), 1e-3) for part in self.children()]


@faulty("LP103", "generator", source="questions about GANs whose generator's step detaches too")
def generator_is_detached_in_its_own_step() -> Arguments:
    class Detached(Gan):
        def passed(self, fake: Tensor) -> Tensor:
            return fake.detach()

    return Detached(), diabetes_loaders()[0]


@faulty("LP104", "between", source="NeuraLint: a layer that forward leaves out")
def layer_is_left_out() -> Arguments:
    class Left(Net):
        def __init__(self) -> None:
            super().__init__()
            self.between = nn.Linear(32, 32)

    return Left(), digit_loaders()


@faulty("LP104", "net.fc2", source="questions about find_unused_parameters")
def layer_of_a_submodule_is_left_out() -> Arguments:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.fc3 = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Any:
            return self.fc3(functional.relu(self.fc1(functional.relu(self.fc1(x.flatten(1))))))

    return Task(Body()), digit_loaders()


# Optimizers


@faulty("LP105", "head", source="questions about an optimizer of model.encoder.parameters()")
def head_is_in_no_optimizer() -> Arguments:
    class Forgotten(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.encoder.parameters())

    return Forgotten(), digit_loaders()


@faulty("LP105", "scale", source="questions about a learned temperature that stays as it is")
def parameter_is_in_no_group() -> Arguments:
    class Forgotten(Net):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Any:
            return self.scale * super().forward(x)

        def configure_optimizers(self) -> Any:
            groups = [{"params": part.parameters()} for part in (self.encoder, self.head)]
            return torch.optim.AdamW(groups)

    return Forgotten(), digit_loaders()


@faulty("LP105", "encoder", "head", source="configure_optimizers without return")
def no_optimizer() -> Arguments:
    class NoReturn(Net):
        def configure_optimizers(self) -> Any:
            torch.optim.Adam(self.parameters())

    return NoReturn(), digit_loaders()


@faulty("LP105", "discriminator", also=["LP624"], source="GANs: both optimizers of one network")
def both_optimizers_hold_the_generator() -> Arguments:
    class Wrong(Gan):
        def configure_optimizers(self) -> Any:
            return [torch.optim.Adam(self.generator.parameters(), 1e-3) for _ in range(2)]

    return Wrong(), diabetes_loaders()[0]


class Early(Net):
    """Makes its optimizer in ``__init__``."""

    def __init__(self) -> None:
        super().__init__()
        self.optimizer = torch.optim.Adam(self.parameters())

    def configure_optimizers(self) -> Any:
        return self.optimizer


@faulty(
    "LP108", "head", also=["LP105"], mended=_net,
    source="questions about fine-tuning: the head is replaced after the optimizer is made",
)  # fmt: skip
def head_is_replaced_after_the_optimizer() -> Arguments:
    module = Early()
    module.head = nn.Linear(32, 10)
    return module, digit_loaders()


@faulty("LP106", "generator", source="questions about GANs: Adam(self.parameters()) for one")
def optimizer_of_the_discriminator_holds_all() -> Arguments:
    class All(Gan):
        def configure_optimizers(self) -> Any:
            return [torch.optim.Adam(self.generator.parameters()),
                    torch.optim.Adam(self.parameters())]  # fmt: skip

    return All(), diabetes_loaders()[0]


@faulty("LP106", "head", source="torch.optim.Optimizer: a group with duplicate parameters")
def parameters_twice_in_a_group() -> Arguments:
    class Twice(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([*self.parameters(), *self.head.parameters()], 0.1)

    return Twice(), digit_loaders()


@faulty("LP117", "net", mended=_net, source="TheDeepChecker: parameters that never change")
def learning_rate_of_zero() -> Arguments:
    return Task(mlp(64, 64, 10), optimizer=lambda p: torch.optim.Adam(p, lr=0.0)), digit_loaders()


@faulty("LP117", "net", mended=_net, source="a schedule that multiplies a rate of zero")
def schedule_of_a_learning_rate_of_zero() -> Arguments:
    def optimizer(parameters: Any) -> Any:
        made = torch.optim.SGD(parameters, lr=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda step: min(1.0, step / 10))
        return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return Task(mlp(64, 64, 10), optimizer=optimizer), digit_loaders()
