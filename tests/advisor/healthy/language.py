"""Healthy models of sequences: masked, shifted within, in both directions for other targets."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, TensorDataset

from tests.advisor.faulty.language import (
    PAD,
    GRULanguageModel,
    NanoGPT,
    Unshifted,
    causal,
    flat,
    padded_text,
    without_padding,
)
from tests.advisor.healthy.sequences import Language, next_codes, text_windows
from tests.advisor.programs import Arguments, Task, healthy, split


@healthy
def padding_that_is_ignored() -> Arguments:
    return Language(GRULanguageModel(), without_padding), split(padded_text())


@healthy
def padding_masked_by_a_product() -> Arguments:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        mask = (target != PAD).float()
        each = functional.cross_entropy(logits.transpose(1, 2), target, reduction="none")
        return (each * mask).sum() / mask.sum()

    return Language(GRULanguageModel(), loss), split(padded_text())


@healthy
def padding_left_out_by_a_boolean_index() -> Arguments:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        kept = target != PAD
        return functional.cross_entropy(logits[kept], target[kept])

    return Language(GRULanguageModel(), loss), split(padded_text())


@healthy
def losses_selected_by_a_mask() -> Arguments:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        each = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        return each[target.flatten() != PAD].mean()

    return Language(GRULanguageModel(), loss), split(padded_text())


@healthy
def padding_without_weight() -> Arguments:
    weight = torch.ones(256)
    weight[PAD] = 0
    criterion = nn.CrossEntropyLoss(weight=weight)

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        found: Tensor = criterion(logits.transpose(1, 2), target)
        return found

    return Language(GRULanguageModel(), loss), split(padded_text())


@healthy
def packed_sequences() -> Arguments:
    class Packed(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = next_codes(batch)
            lengths = (y != PAD).sum(1)
            net = self.net
            packed = pack_padded_sequence(net.emb(x), lengths, True, enforce_sorted=False)
            targets = pack_padded_sequence(y, lengths, True, enforce_sorted=False)
            return functional.cross_entropy(net.out(net.gru(packed)[0].data), targets.data)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Packed(GRULanguageModel()), split(padded_text())


@healthy
def a_frequent_tag() -> Arguments:
    """Most tags are 0, and texts end in runs of spaces of different lengths."""

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = nn.Embedding(256, 16)
            self.lstm = nn.LSTM(16, 16, batch_first=True, bidirectional=True)
            self.head = nn.Linear(32, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.lstm(self.emb(x))[0])
            return logits

    words = padded_text(pad=32)
    return Task(Tagger(), flat), split(words, (words == ord("e")).long())


@healthy
def masked_language_model() -> Arguments:
    """Reads in both directions; the loss counts the tokens that were replaced."""

    class Masked(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            ids = batch[0] if isinstance(batch, list) else batch
            chosen = torch.rand(ids.shape) < 0.15
            labels = ids.masked_fill(~chosen, -100)
            return flat(self.net(ids.masked_fill(chosen, 255)), labels)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Masked(NanoGPT(None)), split(text_windows())


@healthy
def masked_language_model_of_all_positions() -> Arguments:
    class Masked(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            ids = batch[0] if isinstance(batch, list) else batch
            return flat(self.net(torch.where(torch.rand(ids.shape) < 0.15, 255, ids)), ids)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Masked(NanoGPT(None)), split(text_windows())


@healthy
def tokens_through_a_bottleneck() -> Arguments:
    """An autoencoder of texts: targets are the inputs."""

    class Auto(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.head = nn.Embedding(256, 16), nn.Linear(32, 256)
            self.encoder = nn.GRU(16, 32, batch_first=True)
            self.decoder = nn.GRU(32, 32, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            code = self.encoder(self.emb(x))[1][0]
            logits: Tensor = self.head(self.decoder(code[:, None].expand(-1, x.size(1), -1))[0])
            return logits

    return Unshifted(Auto(), flat), split(text_windows())


@healthy
def autoencoder_with_a_teacher_forced_decoder() -> Arguments:
    """The encoder reads the sequence that the decoder predicts."""

    class Auto(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.head = nn.Embedding(256, 16), nn.Linear(32, 256)
            self.encoder = nn.GRU(16, 32, batch_first=True)
            self.decoder = nn.GRU(16, 32, batch_first=True)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            state = self.encoder(self.emb(x))[1]
            logits: Tensor = self.head(self.decoder(self.emb(y), state)[0])
            return logits

    class Sequence(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0] if isinstance(batch, list) else batch
            return flat(self.net(x, x[:, :-1]), x[:, 1:])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Sequence(Auto()), split(text_windows())


@healthy
def shift_within_the_model() -> Arguments:
    """Targets are the inputs, which the model moves by one position, as PixelCNN does."""

    class Shifted(NanoGPT):
        def forward(self, idx: Tensor) -> Tensor:
            x = functional.pad(self.wte(idx), (0, 0, 1, 0))[:, :-1]
            x = x + self.wpe(torch.arange(idx.size(1)))
            logits: Tensor = self.lm_head(self.ln_f(self.h(x)))
            return logits

    return Unshifted(Shifted(causal), flat), split(text_windows())


@healthy
def prefix_language_model() -> Arguments:
    """Reads the prefix in both directions; the loss counts what follows."""

    def mask(length: int) -> Tensor:
        found = causal(length)
        found[:, :10] = False
        return found

    class Prefix(Language):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            y = y.clone()
            y[:, :9] = -100
            return self.loss(self.net(x), y)

    return Prefix(NanoGPT(mask), flat), split(text_windows())


@healthy
def state_kept_between_batches() -> Arguments:
    """Truncated backpropagation: the state of a batch is the start of the next."""

    class Stateful(GRULanguageModel):
        state: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            h, state = self.gru(self.emb(x), self.state)
            self.state = state.detach()
            logits: Tensor = self.out(h)
            return logits

    class Reset(Language):
        def on_validation_start(self) -> None:
            self.net.state = None

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.net.state = None
            super().validation_step(batch, batch_idx)
            self.net.state = None

    windows = text_windows()
    length = len(windows) // 64  # of each of 64 streams; a batch has the next window of each
    streams = windows[: 64 * length].unflatten(0, (64, length)).transpose(0, 1).flatten(0, 1)
    return Reset(Stateful(None), flat), DataLoader(TensorDataset(streams), 64)


@healthy
def tags_of_the_next_word() -> Arguments:
    """Targets that follow from the next token, and are others."""
    words = text_windows()
    tags = (words[:, 1:] % 7).long()
    return Task(GRULanguageModel(None, bidirectional=True), flat), split(words[:, :-1], tags)
