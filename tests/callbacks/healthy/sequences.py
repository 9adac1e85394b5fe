"""Recurrent networks, transformers and embeddings of words that train well."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.healthy.sequences import Decoder, Language, text_windows
from tests.advisor.programs import Task, digit_loaders, split
from tests.callbacks.faulty_fits import Fit
from tests.callbacks.healthy.declared import Metric, Own, digit_accuracy, fits_well, of


def adam(lr: float) -> Any:
    return partial(torch.optim.Adam, lr=lr)


class Reader(nn.Module):
    """Reads the rows of an image."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.rnn, self.head = kind(8, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(x.squeeze(1))[0][:, -1])
        return out


@fits_well(above=0.9)
def lstm_over_rows() -> tuple[Fit, Metric]:
    module = Task(Reader(nn.LSTM), optimizer=adam(1e-2))
    return Fit(module, *digit_loaders(), steps=200), of(module, digit_accuracy)


class Cells(nn.Module):
    """A gated recurrent cell, unrolled in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(8, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.zeros(len(x), 32)
        for row in x.squeeze(1).unbind(1):
            hidden = self.cell(row, hidden)
        out: Tensor = self.head(hidden)
        return out


@fits_well(above=0.9, full=True)
def gru_cell_with_clipping() -> tuple[Fit, Metric]:
    module = Task(Cells(), optimizer=adam(1e-2))
    fit = Fit(module, *digit_loaders(), steps=200, options={"gradient_clip_val": 1.0})
    return fit, of(module, digit_accuracy)


class Patches(nn.Module):
    """A transformer over the rows of an image."""

    def __init__(self, *, norm_first: bool, depth: int) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(8, 32), nn.Linear(32, 10)
        self.position = nn.Parameter(0.02 * torch.randn(8, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.enter(x.squeeze(1)) + self.position
        out: Tensor = self.head(self.encoder(tokens).mean(1))
        return out


@fits_well(above=0.9)
def transformer_with_norms_first() -> tuple[Fit, Metric]:
    module = Task(Patches(norm_first=True, depth=3), optimizer=adam(2e-3))
    return Fit(module, *digit_loaders(), steps=200), of(module, digit_accuracy)


@fits_well(above=0.85, full=True)
def transformer_with_norms_last_and_warmup() -> tuple[Fit, Metric]:
    class Warm(Task):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), 2e-3)
            rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / 100))
            return [optimizer], [{"scheduler": rates, "interval": "step"}]

    module = Warm(Patches(norm_first=False, depth=3))
    return Fit(module, *digit_loaders(), steps=250), of(module, digit_accuracy)


def flat_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(logits.reshape(-1, 256), target.reshape(-1))


@fits_well(below=1.5, full=True)
def language_model_with_tied_weights() -> tuple[Fit, Metric]:
    codes = text_windows()
    module = Language(
        Decoder(), flat_cross_entropy, lambda p: torch.optim.AdamW(p, 3e-3, weight_decay=0.1)
    )

    @torch.no_grad()
    def metric() -> float:
        return flat_cross_entropy(module.net(codes[:64, :-1]), codes[:64, 1:]).item()

    return Fit(module, *split(codes, batch_size=32), steps=350), metric


@fits_well(above=0.9, full=True)
def words_by_skip_grams() -> tuple[Fit, Metric]:
    """Two tables; negatives are drawn anew. Words of one topic have to be near each other."""
    generator = torch.Generator().manual_seed(0)
    topics = torch.randint(0, 5, (4000,), generator=generator)
    center, around = (topics * 8 + torch.randint(0, 8, (4000,), generator=generator) for _ in "ab")
    net = nn.ModuleDict({"word": nn.Embedding(40, 12), "context": nn.Embedding(40, 12)})
    for table in net.values():
        nn.init.uniform_(table.weight, -0.5, 0.5)  # type: ignore[arg-type]

    class SkipGram(Own):
        def loss_of(self, batch: Any) -> Tensor:
            word, context = self.net["word"](batch[0]), self.net["context"](batch[1])
            others = self.net["context"](torch.randint(0, 40, (len(word), 5)))
            near = functional.logsigmoid((word * context).sum(1))
            far = functional.logsigmoid(-(others @ word[:, :, None]).squeeze(2)).sum(1)
            return -(near + far).mean()

    def metric() -> float:
        vectors = functional.normalize(net.get_parameter("word.weight"))
        near = (vectors @ vectors.T).fill_diagonal_(-1).argmax(1)
        return (near // 8 == torch.arange(40) // 8).float().mean().item()

    fit = Fit(SkipGram(net, optimizer=adam(1e-2)), *split(center, around), steps=300)
    return fit, metric


@fits_well(above=0.95, full=True)
def labels_of_padded_sequences() -> tuple[Fit, Metric]:
    """Losses are masked by hand: no reduction, then a sum over what isn't padding."""
    codes = text_windows()[:, :-1].clone()
    lengths = torch.arange(len(codes)) % 16 + 16
    kept = torch.arange(32) < lengths[:, None]
    vowels = torch.isin(codes, torch.tensor(list(b"aeiou"))).long()
    embedding, rnn = nn.Embedding(256, 16), nn.GRU(16, 16, batch_first=True, bidirectional=True)
    net = nn.ModuleList([embedding, rnn, nn.Linear(32, 2)])

    def logits(x: Tensor) -> Tensor:
        out: Tensor = net[2](rnn(embedding(x))[0]).transpose(1, 2)
        return out

    class Tags(Own):
        def loss_of(self, batch: Any) -> Any:
            x, y, mask = batch
            loss = functional.cross_entropy(logits(x), y, reduction="none")
            return (loss * mask).sum() / mask.sum()

    def metric() -> float:
        return (logits(codes).argmax(1) == vowels)[kept].float().mean().item()

    fit = Fit(Tags(net, optimizer=adam(1e-2)), *split(codes, vowels, kept.float()), steps=120)
    return fit, metric
