"""Losses without a graph, zero gradients, unregistered layers, dropout that stays on."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.faulty.parameters import Gan, Net
from tests.advisor.programs import (
    Arguments,
    Task,
    diabetes_loaders,
    digit_loaders,
    faulty,
    mlp,
)


def _net() -> Arguments:
    return Net(), digit_loaders()


def _regression() -> Arguments:
    return Task(mlp(10, 32, 1), functional.mse_loss), diabetes_loaders()


# Losses without a graph


@faulty("LP111", "head", mended=_net, source="element 0 of tensors does not require grad: argmax")
def loss_of_the_predicted_classes() -> Arguments:
    class Classes(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            predicted = self(batch[0]).argmax(dim=1).float()
            return functional.mse_loss(predicted, batch[1].float())

    return Classes(), digit_loaders()


@faulty("LP111", "encoder", "head", mended=_net, source="element 0 of tensors: no_grad is left in")
def training_step_under_no_grad() -> Arguments:
    class NoGrad(Net):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Any:
            return super().forward(x)

    return NoGrad(), digit_loaders()


@faulty("LP111", "head", mended=_net, source="element 0 of tensors: a loss made anew")
def loss_is_made_anew() -> Arguments:
    class Anew(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return torch.tensor(loss.item())

    return Anew(), digit_loaders()


@faulty("LP111", "generator", mended=_net, source="element 0 of tensors, in manual optimization")
def generator_loss_under_no_grad() -> Arguments:
    class Frozen(Gan):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            opt_g, _ = self.optimizers()  # type: ignore[attr-defined]
            with torch.no_grad():
                fake = self.generator(torch.randn(len(batch[0]), 4))
                score = self.discriminator(fake)
            opt_g.zero_grad()
            self.manual_backward(functional.softplus(-score).mean())
            opt_g.step()

    return Frozen(), diabetes_loaders()[0]


@faulty("LP112", "head", mended=_net, source="questions: requires_grad_(False) after the new head")
def everything_is_frozen() -> Arguments:
    module = Net()
    module.requires_grad_(False)
    return module, digit_loaders()


# Gradients of zero


@faulty("LP226", mended=_regression, source="questions about round in a loss")
def rounded_predictions() -> Arguments:
    def loss(y: Tensor, target: Tensor) -> Tensor:
        return functional.mse_loss(torch.round(y), target)

    return Task(mlp(10, 32, 1), loss), diabetes_loaders()


@faulty("LP109", "encoder", mended=_net, source="Bengio et al., 2013: units that are a step")
def sign_between_layers() -> Arguments:
    class Sign(Net):
        def forward(self, x: Tensor) -> Any:
            return self.head(torch.sign(self.encoder(x)))

    return Sign(), digit_loaders()


@faulty("LP204", mended=_net, source="questions about softmax over one unit")
def softmax_over_one_unit() -> Arguments:
    net = nn.Sequential(mlp(10, 16, 1), nn.Softmax(dim=1))
    loss = functional.binary_cross_entropy
    return Task(net, lambda y, t: loss(y, (t > 0).float())), diabetes_loaders()


# Layers that aren't registered


class Listed(Net):
    """Its hidden layers are in a list."""

    def __init__(self, hidden: Any) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, x: Tensor) -> Any:
        h = functional.relu(self.encoder(x))
        parts = self.hidden.values() if isinstance(self.hidden, dict) else self.hidden
        for layer in parts:
            h = functional.relu(layer(h))
        return self.head(h)


def _listed() -> Arguments:
    return Listed(nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 32)])), digit_loaders()


@faulty("LP107", "hidden", mended=_listed, source="torch.nn.ModuleList, and questions about it")
def layers_in_a_list() -> Arguments:
    return Listed([nn.Linear(32, 32), nn.Linear(32, 32)]), digit_loaders()


@faulty("LP107", "hidden", mended=_listed, source="torch.nn.ModuleDict, and questions about it")
def layers_in_a_dict() -> Arguments:
    return Listed({"a": nn.Linear(32, 32), "b": nn.Linear(32, 32)}), digit_loaders()


@faulty("LP107", "net.experts", mended=_listed, source="questions: experts in a list of lists")
def layers_in_a_list_of_a_submodule() -> Arguments:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = [(mlp(64, 16), mlp(16, 10)), (mlp(64, 16), mlp(16, 10))]
            self.gate = nn.Linear(64, 2)

        def forward(self, x: Tensor) -> Any:
            gates = self.gate(x.flatten(1)).softmax(dim=1)
            outputs = torch.stack([second(first(x)) for first, second in self.experts], dim=1)
            return (gates[..., None] * outputs).sum(dim=1)

    return Task(Experts()), digit_loaders()


@faulty("LP107", "layers", mended=_listed, source="ValueError: optimizer got an empty list")
def all_layers_in_a_list() -> Arguments:
    class All(Task):
        def __init__(self) -> None:
            super().__init__(nn.Identity())
            self.layers = [nn.Linear(64, 32), nn.Linear(32, 10)]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            return self.loss(self.layers[1](self.layers[0](x.flatten(1)).relu()), y)

    return All(), digit_loaders()[0]


@faulty("LP107", "bias", mended=_net, source="questions: a tensor with requires_grad=True")
def tensor_instead_of_a_parameter() -> Arguments:
    class Plain(Net):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.zeros(10, requires_grad=True)

        def forward(self, x: Tensor) -> Any:
            return super().forward(x) + self.bias

    return Plain(), digit_loaders()


class Blocks:
    """Layers in an object of a plain class."""

    def __init__(self) -> None:
        self.layers = [nn.Linear(64, 32)]


@faulty("LP107", "blocks", mended=_net, source="a class of blocks that isn't an nn.Module")
def layers_in_a_plain_object() -> Arguments:
    class Hidden(Net):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = [Blocks()]

        def forward(self, x: Tensor) -> Any:
            return self.head(self.encoder(x) + self.blocks[0].layers[0](x.flatten(1)))

    return Hidden(), digit_loaders()


@faulty("LP107", mended=_net, source="questions: a layer that is made in forward")
def layer_is_made_in_forward() -> Arguments:
    class Made(Net):
        def forward(self, x: Tensor) -> Any:
            h = nn.Linear(32, 32)(functional.relu(self.encoder(x)))
            return self.head(h)

    return Made(), digit_loaders()


# Dropout


class Dropping(Net):
    """Drops in a method of its own."""

    def forward(self, x: Tensor) -> Any:
        return self.head(self.drop(functional.relu(self.encoder(x))))

    def drop(self, h: Tensor) -> Any:
        return functional.dropout(h, 0.3, training=self.training)


def dropping() -> Arguments:
    return Dropping(), digit_loaders()


@faulty("LP110", source="questions: functional.dropout and model.eval()")
def functional_dropout_stays_on() -> Arguments:
    class On(Dropping):
        def drop(self, h: Tensor) -> Tensor:
            return functional.dropout(h, 0.3)

    return On(), digit_loaders()


@faulty("LP110", source="questions: functional.dropout and model.eval()")
def functional_dropout_stays_on_without_validation_data() -> Arguments:
    class On(Dropping):
        def drop(self, h: Tensor) -> Tensor:
            return functional.dropout(
                h,
                p=0.3,
            )

    return On(), digit_loaders()[0]


@faulty("LP110", source="questions: nn.Dropout that is made in forward")
def dropout_is_made_in_forward() -> Arguments:
    class On(Dropping):
        def drop(self, h: Tensor) -> Any:
            return nn.Dropout(0.3)(h)

    return On(), digit_loaders()


@faulty("LP110", "net.0", source="torch: scaled_dot_product_attention always drops")
def attention_drops_in_eval_mode() -> Arguments:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x: Tensor) -> Any:
            q, k, v = self.qkv(x.squeeze(1)).chunk(3, dim=-1)
            return functional.scaled_dot_product_attention(q, k, v, dropout_p=0.2)

    return Task(nn.Sequential(Attention(), mlp(64, 10))), digit_loaders()
