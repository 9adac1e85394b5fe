"""Language models and taggers: padding in the loss, missing masks, targets that aren't shifted."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.advisor.healthy.sequences import Decoder, Language, Recurrent, text_windows
from tests.advisor.programs import Arguments, Task, faulty, split

PAD = 0
Loss = Callable[[Tensor, Tensor], Tensor]


def padded_text(pad: int = PAD, share: int = 2) -> Tensor:
    """Return windows of text that end in padding, of lengths from half a window on."""
    codes = text_windows().clone()
    length = codes.shape[1]
    lengths = torch.arange(len(codes)) % (length // share) + length - length // share
    codes[torch.arange(length) >= lengths[:, None]] = pad
    return codes


def flat(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross entropy of logits (N, T, C), with padding."""
    return functional.cross_entropy(logits.reshape(-1, logits.size(-1)), target.reshape(-1))


def without_padding(logits: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PAD)


class GRULanguageModel(nn.Module):
    def __init__(self, padding_idx: int | None = PAD, bidirectional: bool = False) -> None:
        super().__init__()
        self.emb = nn.Embedding(256, 24, padding_idx=padding_idx)
        self.gru = nn.GRU(24, 32, batch_first=True, bidirectional=bidirectional)
        self.out = nn.Linear(64 if bidirectional else 32, 256)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.gru(self.emb(x))[0])
        return logits


def _masked() -> Arguments:
    return Language(GRULanguageModel(), without_padding), split(padded_text())


@faulty("LP242", "net.out", source="an embedding with padding_idx, a loss without", mended=_masked)
def padding_of_a_language_model() -> Arguments:
    return Language(GRULanguageModel(), flat), split(padded_text())


@faulty("LP242", source="loss of each position, averaged with the padding", mended=_masked)
def padding_in_the_mean_of_positions() -> Arguments:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        per_token = nn.CrossEntropyLoss(reduction="none")(logits.permute(0, 2, 1), target)
        return per_token.mean(dim=1).mean()

    return Language(GRULanguageModel(), loss), split(padded_text())


@faulty("LP242", source="padding by a token that no embedding declares", mended=_masked)
def undeclared_padding() -> Arguments:
    return Language(GRULanguageModel(padding_idx=None), flat), split(padded_text(pad=3))


@faulty("LP242", "net.head", source="a tagger that learns the tag of padding")
def padding_of_a_tagger() -> Arguments:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.word_embeddings = nn.Embedding(256, 16, padding_idx=PAD)
            self.lstm = nn.LSTM(16, 16, batch_first=True, bidirectional=True)
            self.head = nn.Linear(32, 3)

        def forward(self, words: Tensor) -> Tensor:
            tags: Tensor = self.head(self.lstm(self.word_embeddings(words))[0])
            return tags

    words = padded_text()
    tags = torch.isin(words, torch.tensor(list(b"aeiou"))).long() + (words == 32).long() * 2
    return Task(Tagger(), lambda z, y: flat(z, y)), split(words, tags)


class Block(nn.Module):
    """A block of a decoder, with a mask that is given."""

    def __init__(self, width: int, mask: Callable[[int], Tensor] | None) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.c_attn(self.ln_1(x)).chunk(3, dim=-1)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
        if self.mask is not None:
            scores = scores.masked_fill(self.mask(x.size(1)), float("-inf"))
        x = x + self.c_proj(scores.softmax(dim=-1) @ v)
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    def __init__(self, mask: Callable[[int], Tensor] | None) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(256, 32), nn.Embedding(64, 32)
        self.h = nn.Sequential(Block(32, mask), Block(32, mask))
        self.ln_f, self.lm_head = nn.LayerNorm(32), nn.Linear(32, 256, bias=False)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.wte(idx) + self.wpe(torch.arange(idx.size(1), device=idx.device))
        logits: Tensor = self.lm_head(self.ln_f(self.h(x)))
        return logits


def causal(length: int) -> Tensor:
    return torch.triu(torch.ones(length, length, dtype=torch.bool), diagonal=1)


def _causal() -> Arguments:
    return Language(NanoGPT(causal), flat), split(text_windows())


@faulty("LP243", "net.lm_head", source="attention written out without a mask", mended=_causal)
def attention_without_mask() -> Arguments:
    return Language(NanoGPT(None), flat), split(text_windows())


@faulty("LP243", source="a mask that is one position too wide", mended=_causal)
def mask_off_by_one() -> Arguments:
    def wide(length: int) -> Tensor:
        return torch.triu(torch.ones(length, length, dtype=torch.bool), diagonal=2)

    return Language(NanoGPT(wide), flat), split(text_windows())


@faulty("LP243", "net.encoder", source="nn.TransformerEncoder as a decoder, without a mask")
def transformer_encoder_without_mask() -> Arguments:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(256, 32)
            layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, num_layers=2)
            self.head = nn.Linear(32, 256)

        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = self.head(self.encoder(self.embed(tokens)))
            return logits

    class LM(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            (ids,) = batch
            logits = self.net(ids)
            return functional.cross_entropy(logits[:, :-1].reshape(-1, 256), ids[:, 1:].reshape(-1))

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return LM(Model()), split(text_windows())


@faulty("LP243", "net.gru", source="a bidirectional network that predicts the next character")
def bidirectional_language_model() -> Arguments:
    return Language(GRULanguageModel(None, bidirectional=True), flat), split(text_windows())


@faulty("LP243", "net.decoder", source="nn.TransformerDecoder without tgt_mask")
def transformer_decoder_without_mask() -> Arguments:
    class Reverse(nn.Module):
        """Writes a text backwards."""

        def __init__(self) -> None:
            super().__init__()
            self.src, self.tgt = nn.Embedding(256, 32), nn.Embedding(256, 32)
            layer = nn.TransformerDecoderLayer(32, 4, 64, batch_first=True)
            self.encoder = nn.GRU(32, 32, batch_first=True)
            self.decoder = nn.TransformerDecoder(layer, 1)
            self.generator = nn.Linear(32, 256)

        def forward(self, source: Tensor, target: Tensor) -> Tensor:
            memory = self.encoder(self.src(source))[0]
            logits: Tensor = self.generator(self.decoder(self.tgt(target), memory))
            return logits

    class Translate(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            source, target = batch
            return flat(self.net(source, target[:, :-1]), target[:, 1:])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    text = text_windows()
    return Translate(Reverse()), split(text[:, :-3], text.flip(1))


class Unshifted(Task):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0] if isinstance(batch, list) else batch
        return self.loss(self.net(x), x)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


@faulty("LP244", "net.head", source="cross_entropy(model(x), x)", mended=_causal)
def targets_not_shifted() -> Arguments:
    return Unshifted(Decoder(), flat), split(text_windows())


@faulty("LP244", "net.head", source="a recurrent network, with targets beside the inputs")
def targets_of_a_recurrent_network_not_shifted() -> Arguments:
    text = text_windows()
    return Task(Recurrent(), nn.CrossEntropyLoss()), split(text, text.clone())


@faulty("LP244", "net.lm_head", source="labels in a dict that the model was to shift")
def labels_not_shifted() -> Arguments:
    class Labels(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            ids = batch[0] if isinstance(batch, list) else batch
            inputs = {"input_ids": ids, "labels": ids.clone()}
            logits = self.net(inputs["input_ids"])
            return functional.cross_entropy(logits.transpose(1, 2), inputs["labels"])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    return Labels(NanoGPT(causal)), split(text_windows())


@faulty("LP243", "net.rnn", source="one-hot characters, time first, in a bidirectional LSTM")
def one_hot_characters_in_both_directions() -> Arguments:
    class CharRNN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(128, 24, bidirectional=True)
            self.fc = nn.Linear(48, 128)

        def forward(self, x: Tensor) -> Tensor:
            one_hot = functional.one_hot(x.t(), 128).float()
            scores: Tensor = self.fc(self.rnn(one_hot)[0])
            return scores.view(-1, 128)

    def loss(scores: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(scores, y.t().reshape(-1))

    return Language(CharRNN(), loss), split(text_windows().clamp(max=127))
