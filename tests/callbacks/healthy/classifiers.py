"""Classifiers that train well."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_practices.callbacks import ProgressiveUnfreezing
from tests.advisor.programs import Task, cnn, digit_loaders, digits, mlp, split
from tests.callbacks.faulty_fits import Fit
from tests.callbacks.healthy.declared import Metric, Own, accuracy, digit_accuracy, fits_well, of


def adam(lr: float) -> Any:
    return partial(torch.optim.Adam, lr=lr)


@fits_well(above=0.95)
def convolutions_with_batch_norm() -> tuple[Fit, Metric]:
    module = Task(cnn(), optimizer=adam(3e-3))
    return Fit(module, *digit_loaders(), steps=220), of(module, digit_accuracy)


@fits_well(above=0.9, full=True)
def two_moons_with_tanh() -> tuple[Fit, Metric]:
    from sklearn.datasets import make_moons

    points, classes = make_moons(1000, noise=0.15, random_state=0)
    x, y = torch.tensor(points).float(), torch.tensor(classes).float()
    net = nn.Sequential(mlp(2, 32, 32, 1, activation=nn.Tanh), nn.Flatten(0))
    module = Task(net, functional.binary_cross_entropy_with_logits, adam(1e-2))

    def metric() -> Any:
        return ((net(x) > 0) == (y > 0)).float().mean().item()

    return Fit(module, *split(x, y), steps=250), metric


@fits_well(above=0.93, full=True)
def ten_selu_layers_with_alpha_dropout() -> tuple[Fit, Metric]:
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(10):
        layers += [nn.Linear(64, 64), nn.SELU(), nn.AlphaDropout(0.03)]
        nn.init.kaiming_normal_(layers[3 * i + 1].weight, nonlinearity="linear")  # type: ignore
    net = nn.Sequential(*layers, nn.Linear(64, 10))
    module = Task(net, optimizer=adam(1e-3))
    return Fit(module, *digit_loaders(), steps=200), of(module, digit_accuracy)


class Residual(nn.Module):
    """Blocks whose last weight begins at zero, without norms."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(64, 48), nn.Linear(48, 10)
        self.blocks = nn.ModuleList([mlp(48, 48, 48) for _ in range(depth)])
        for block in self.blocks:
            nn.init.zeros_(block.get_parameter("3.weight"))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.flatten(1))
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.head(x)
        return out


@fits_well(above=0.95, full=True)
def twelve_residual_blocks_without_norms() -> tuple[Fit, Metric]:
    module = Task(Residual(12))
    return Fit(module, *digit_loaders(), steps=200), of(module, digit_accuracy)


@fits_well(above=0.93, full=True)
def mixed_samples_and_smooth_labels() -> tuple[Fit, Metric]:
    class Mixed(Own):
        def loss_of(self, batch: Any) -> Tensor:
            x, y = batch
            if self.training:
                share, other = 0.7 + 0.3 * torch.rand(()), torch.randperm(len(x))
                x = share * x + (1 - share) * x[other]
                hot = functional.one_hot(y, 10).float()
                y = share * hot + (1 - share) * hot[other]
            return functional.cross_entropy(self.net(x), y, label_smoothing=0.1)

    module = Mixed(mlp(64, 128, 10))
    return Fit(module, *digit_loaders(), steps=250), of(module, digit_accuracy)


@fits_well(above=0.8, full=True)
def rare_class_with_a_focal_loss() -> tuple[Fit, Metric]:
    x, y = digits()
    rare = (y == 3).float()
    net = nn.Sequential(mlp(64, 64, 1), nn.Flatten(0))

    def focal(logits: Tensor, target: Tensor) -> Tensor:
        loss = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return (loss * (1 - (-loss).exp()) ** 2).mean()

    def recall() -> Any:
        return (net(x)[rare > 0] > 0).float().mean().item()

    return Fit(Task(net, focal, adam(3e-3)), *split(x, rare), steps=250), recall


@fits_well(above=0.9, full=True)
def several_labels() -> tuple[Fit, Metric]:
    x, y = digits()
    labels = torch.stack([y % 2, y > 4, (y == 0) | (y == 8), y % 3 == 0], 1).float()
    net = mlp(64, 64, 4)
    module = Task(net, functional.binary_cross_entropy_with_logits, adam(3e-3))

    def metric() -> Any:
        return ((net(x) > 0) == (labels > 0)).float().mean().item()

    return Fit(module, *split(x, labels), steps=200), metric


@fits_well(above=0.9)
def thirty_two_samples_with_augmentation() -> tuple[Fit, Metric]:
    """It ends at a training loss near 0, on purpose."""

    class Augmented(Own):
        def loss_of(self, batch: Any) -> Tensor:
            x, y = batch
            if self.training:
                shift = int(torch.randint(-1, 2, ()))
                x = x.roll(shift, dims=-1) + 0.3 * torch.randn_like(x)
            return functional.cross_entropy(self.net(x), y)

    x, y = digits()
    x, y = x[y < 3], y[y < 3]
    train = DataLoader(TensorDataset(x[:32], y[:32]), 16, shuffle=True)
    val = DataLoader(TensorDataset(x[200:], y[200:]), 400)
    module = Augmented(mlp(64, 64, 3), optimizer=adam(3e-3))
    return Fit(module, train, val, steps=150), lambda: accuracy(module.net, x[200:], y[200:])


class Experts(nn.Module):
    """Each sample goes to the two best of eight experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(64, 8)
        self.experts = nn.ModuleList([mlp(64, 24, 10) for _ in range(8)])
        self.balance = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        shares = self.gate(x).softmax(1)
        weights, chosen = shares.topk(2)
        used = functional.one_hot(chosen[:, 0], 8).float().mean(0)
        self.balance = 8 * (used * shares.mean(0)).sum()
        out = torch.zeros(len(x), 10)
        for i, expert in enumerate(self.experts):
            rows, place = (chosen == i).nonzero(as_tuple=True)
            if len(rows):
                out = out.index_add(0, rows, weights[rows, place, None] * expert(x[rows]))
        return out


@fits_well(above=0.93)
def mixture_of_experts() -> tuple[Fit, Metric]:
    class Balanced(Own):
        def loss_of(self, batch: Any) -> Any:
            loss = functional.cross_entropy(self.net(batch[0]), batch[1])
            return loss + 0.01 * self.net.balance

    module = Balanced(Experts(), optimizer=adam(5e-3))
    return Fit(module, *digit_loaders(), steps=200), of(module, digit_accuracy)


@fits_well(above=0.9)
def convolution_on_a_graph() -> tuple[Fit, Metric]:
    x, y = digits()
    x, y = x[:600].flatten(1), y[:600]
    near = torch.cdist(x, x).topk(6, largest=False).indices
    edges = torch.zeros(600, 600).scatter_(1, near, 1.0)
    edges = edges / edges.sum(1, keepdim=True)
    given = torch.rand(600, generator=torch.Generator().manual_seed(0)) < 0.3
    net = nn.ModuleList([nn.Linear(64, 32), nn.Linear(32, 10)])

    def logits(edges: Tensor, x: Tensor) -> Tensor:
        out: Tensor = edges @ net[1](functional.relu(edges @ net[0](x)))
        return out

    class Transductive(Own):
        def loss_of(self, batch: Any) -> Tensor:
            out = logits(batch["edges"], batch["x"])
            mask = batch["given"] if self.training else ~batch["given"]
            return functional.cross_entropy(out[mask], batch["y"][mask])

    graph = {"x": x, "edges": edges, "y": y, "given": given}
    graphs: Any = [graph]
    loader: Any = DataLoader(graphs, batch_size=None)

    def metric() -> float:
        return (logits(edges, x)[~given].argmax(1) == y[~given]).float().mean().item()

    return Fit(Transductive(net, optimizer=adam(1e-2)), loader, loader, steps=150), metric


def trained_teacher() -> nn.Sequential:
    x, y = digits()
    teacher = mlp(64, 128, 10)
    optimizer = torch.optim.Adam(teacher.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(teacher(x), y).backward()
        optimizer.step()
    return teacher


@fits_well(above=0.93, full=True)
def distillation() -> tuple[Fit, Metric]:
    class Distil(Own):
        def __init__(self) -> None:
            super().__init__(mlp(64, 32, 10), optimizer=adam(3e-3))
            self.teacher = trained_teacher().requires_grad_(False)

        def loss_of(self, batch: Any) -> Tensor:
            soft = (self.teacher(batch[0]) / 3).softmax(1)
            own = (self.net(batch[0]) / 3).log_softmax(1)
            return 9 * functional.kl_div(own, soft, reduction="batchmean")

    module = Distil()
    return Fit(module, *digit_loaders(), steps=200), of(module, digit_accuracy)


class LowRank(nn.Module):
    """A frozen layer and a product of rank four, whose second factor begins at zero."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, 4, bias=False)
        self.up = nn.Linear(4, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) + self.up(self.down(x))
        return out


@fits_well(above=0.9)
def low_rank_adapters_of_a_trained_network() -> tuple[Fit, Metric]:
    """The images are turned, which the network hasn't seen."""
    teacher: Any = trained_teacher()
    net = nn.Sequential(nn.Flatten(), LowRank(teacher[1]), nn.ReLU(), LowRank(teacher[3]))
    x, y = digits()
    module = Task(
        net, optimizer=lambda p: torch.optim.AdamW([q for q in p if q.requires_grad], 1e-2)
    )
    x = x.rot90(1, (2, 3))

    def metric() -> Any:
        return (net(x).argmax(1) == y).float().mean().item()

    return Fit(module, *split(x, y), steps=250), metric


@fits_well(above=0.9)
def backbone_that_is_unfrozen_by_blocks() -> tuple[Fit, Metric]:
    trained = copy.deepcopy(trained_teacher())

    class Fine(Task):
        def __init__(self) -> None:
            super().__init__(nn.ModuleDict())
            self.backbone, self.head = trained[:3], nn.Linear(128, 10)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    module = Fine()
    freezing = ProgressiveUnfreezing(backbone="backbone", head="head")

    def metric() -> float:
        return digit_accuracy(nn.Sequential(module.backbone, module.head))

    return Fit(
        module, *digit_loaders(), steps=-1, callbacks=(freezing,), options={"max_epochs": 10}
    ), metric


@fits_well(above=0.9)
def segmentation_with_dice() -> tuple[Fit, Metric]:
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 2, 1)
    )
    images, _ = digits()
    noisy = images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    masks = (images[:, 0] > 0.5).long()

    class Segment(Own):
        def loss_of(self, batch: Any) -> Any:
            logits = self.net(batch[0])
            shares, wanted = logits.softmax(1), functional.one_hot(batch[1], 2).movedim(-1, 1)
            dice = 2 * (shares * wanted).sum((0, 2, 3)) / (shares + wanted).sum((0, 2, 3))
            return functional.cross_entropy(logits, batch[1]) + 1 - dice.mean()

    def metric() -> Any:
        return (net(noisy).argmax(1) == masks).float().mean().item()

    return Fit(Segment(net, optimizer=adam(1e-2)), *split(noisy, masks), steps=120), metric


@fits_well(above=0.8, full=True)
def detection_on_a_grid() -> tuple[Fit, Metric]:
    """Each cell tells whether an object is there, which one, and where."""
    images, classes = digits()
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(0, 9, (len(images), 2), generator=generator)
    scenes = images.min() * torch.ones(len(images), 1, 16, 16)
    for scene, image, (top, left) in zip(scenes, images, places.tolist(), strict=True):
        scene[:, top : top + 8, left : left + 8] = image
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 13, 1),
    )  # fmt: skip

    class Detect(Own):
        def loss_of(self, batch: Any) -> Tensor:
            x, y, place = batch
            out = self.net(x)
            cell = (place + 4) // 4  # of the middle
            rows = torch.arange(len(x))
            there = torch.zeros(len(x), 4, 4)
            there[rows, cell[:, 0], cell[:, 1]] = 1.0
            own = out[rows, :, cell[:, 0], cell[:, 1]]
            found = functional.binary_cross_entropy_with_logits(
                out[:, 0], there, pos_weight=torch.tensor(5.0)
            )
            box = functional.smooth_l1_loss(own[:, 11:], (place + 4) / 4 - cell.float())
            return found + functional.cross_entropy(own[:, 1:11], y) + box

    def metric() -> Any:
        net.eval()
        best = net(scenes)[:, 0].flatten(1).argmax(1)
        cell = (places + 4) // 4
        return (best == cell[:, 0] * 4 + cell[:, 1]).float().mean().item()

    loaders = split(scenes, classes, places)
    return Fit(Detect(net, optimizer=adam(3e-3)), *loaders, steps=250), metric
