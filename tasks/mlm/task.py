"""Masked-token prediction on real text: data, encoder, loss, metrics and floors, joined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks import bible
from tasks.contract import Artifact, Batch, Metric, Recipe, Scores, Slots, Split, TaskCard
from tasks.mlm import data
from tasks.mlm.model import Encoder
from tasks.schedules import linear
from tasks.text import Text
from tasks.text_task import TextTask


@dataclass(frozen=True)
class Size:
    """Length in tokens, the backbone, how it is trained, and how much of each held-out document is scored.

    ``vocabulary`` None: tokens are bytes; otherwise at most so many subwords, and so many rows of the embedding beside
    the mask's. The first ``short_steps`` batches have the lengths of ``short_lengths`` in turn, with as many tokens as
    the others: BERT, too, trains most of its steps on short sequences (Devlin et al., 2019, appendix A.2). A mask finds
    its neighbours sooner among few positions than among many.
    """

    length: int
    vocabulary: int | None
    width: int
    heads: int
    hidden: int
    layers: int
    tied: bool
    dropout: float
    batch: int
    short_lengths: tuple[int, ...]
    short_steps: int
    windows_per_document: int
    recipe: Recipe


SIZES: Mapping[str, Size] = {
    "tiny": Size(
        length=64,
        vocabulary=None,
        width=64,
        heads=4,
        hidden=128,
        layers=2,
        tied=False,
        dropout=0.0,
        batch=16,
        short_lengths=(16, 32),
        short_steps=300,
        windows_per_document=8,
        recipe=Recipe(max_steps=600, learning_rate=4e-3, warmup_steps=20),
    ),
    "base": Size(
        length=512,
        vocabulary=8191,
        width=512,
        heads=8,
        hidden=2048,
        layers=8,
        tied=True,
        dropout=0.1,
        batch=32,
        short_lengths=(),
        short_steps=0,
        windows_per_document=64,
        recipe=Recipe(max_steps=15_000, learning_rate=5e-4, warmup_steps=1000, schedule=linear),
    ),
    # CAB's: RoBERTa-base at 2,048 tokens, 8 sequences x 4 batches on each of 8 A100.
    "paper": Size(
        length=2048,
        vocabulary=50_264,
        width=768,
        heads=12,
        hidden=3072,
        layers=12,
        tied=True,
        dropout=0.1,
        batch=8,
        short_lengths=(),
        short_steps=0,
        windows_per_document=10_000,
        recipe=Recipe(
            max_steps=125_000,
            learning_rate=3e-4,
            warmup_steps=5000,
            epsilon=1e-6,
            gradient_clip=None,
            schedule=linear,
            accumulate=32,
        ),
    ),
}


class MaskedLanguageModelling(TextTask[Size]):
    """Minimise ``-log p(b_i | corrupted text)`` over the selected 15 % of the tokens of a text.

    Options as for :class:`tasks.text_task.TextTask`.
    """

    card: TaskCard = TaskCard(
        name="mlm",
        title="Masked language modelling",
        patterns=(Pattern.NONCAUSAL_SELF,),
        primary_pattern=Pattern.NONCAUSAL_SELF,
        metrics=(
            Metric("perplexity", "per selected token", False, "exp of the mean negative log-likelihood", "exp_mean"),
            Metric("accuracy", "fraction", True, "selected tokens whose likeliest value is right"),
        ),
        lengths={name: (size.length, None) for name, size in SIZES.items()},
        unit="chapter of a held-out book",
        floors={
            "uniform": "every token alike",
            "unigram": "the frequencies of the training tokens",
            "no_context": "the best from the token's own place alone, which a model that mixes nothing can learn",
        },
        floor="unigram",
        source=bible.Bible.source,
        licence=bible.SOURCE.licence,
        citation="form: Devlin et al., BERT, NAACL 2019, arXiv:1810.04805; Liu et al., RoBERTa, arXiv:1907.11692",
    )

    def __init__(
        self,
        *,
        size: str = "tiny",
        pattern: Pattern | str | None = None,
        length: int | None = None,
        data: str = "registry",
        data_root: str | None = None,
        translation: str = "world_english",
    ) -> None:
        super().__init__(
            SIZES,
            size=size,
            pattern=pattern,
            length=length,
            data=data,
            data_root=data_root,
            translation=translation,
        )

    @property
    def mask(self) -> int:
        """The token that stands for a masked one."""
        return self.text.size

    def build_model(self, slots: Slots) -> nn.Module:
        size = self.setting
        return Encoder(
            slots,
            tokens=self.text.size + 1,
            classes=self.text.size,
            width=size.width,
            heads=size.heads,
            hidden=size.hidden,
            layers=size.layers,
            max_length=self.length,
            tied=size.tied,
            dropout=size.dropout,
        )

    def training_length(self, index: int) -> int:
        """Tokens per sequence of training batch ``index``."""
        short = self.setting.short_lengths
        return self.length if index >= self.setting.short_steps else min(self.length, short[index % len(short)])

    def batches(self, split: Split, seed: int, start: int = 0) -> Iterator[Batch]:
        """``inputs`` and ``targets`` int64, ``selected`` and ``padding`` bool, all ``[B, L]``."""
        rows = self.setting.batch
        if split == "train":
            while True:
                length = self.training_length(start)
                count = rows * self.length // length
                yield _tensors(data.training_batch(self.text, length, count, seed, start))
                start += 1
        masked = self._windows(split).masked
        for first in range(start * rows * 4, len(masked.inputs), rows * 4):
            part = slice(first, first + rows * 4)
            yield _tensors(
                data.Masked(masked.inputs[part], masked.targets[part], masked.selected[part], masked.padding[part])
            )

    def _windows(self, split: Split) -> data.Windows:
        return _held_out(self.text, split, self.length, self.setting.windows_per_document)

    def blank_batch(self, rows: int = 1) -> Batch:
        targets = torch.arange(rows * self.length).reshape(rows, self.length) % self.text.size
        selected = torch.arange(self.length).expand(rows, -1) % 7 == 0
        inputs = targets.masked_fill(selected, self.mask)
        return {"inputs": inputs, "targets": targets, "selected": selected, "padding": torch.zeros_like(selected)}

    def tokens(self, batch: Batch) -> int:
        return int((~batch["padding"]).sum())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(_logits(model, batch), batch["targets"][batch["selected"]])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> Scores:
        device = next(model.parameters()).device
        found, hits = [], []
        for batch in self.batches(split, 0):
            on_device = {name: tensor.to(device) for name, tensor in batch.items()}
            logits = _logits(model, on_device).double()
            targets = on_device["targets"][on_device["selected"]]
            found.append(nn.functional.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0].cpu().numpy())
            likeliest = logits == logits.max(-1, keepdim=True).values
            hits.append((likeliest.gather(1, targets[:, None])[:, 0] / likeliest.sum(-1)).cpu().numpy())
        return _scores(self._windows(split), np.concatenate(found), np.concatenate(hits))

    def floors(self, split: Split) -> Mapping[str, Scores]:
        windows = self._windows(split)
        masked, unigram = windows.masked, self.text.unigram
        inputs, targets = masked.inputs[masked.selected], masked.targets[masked.selected]
        commonest = int(unigram.argmax())
        # Without context the likeliest token is the visible one itself, and the commonest behind a mask.
        guess = np.where(inputs == self.mask, commonest, inputs)
        alike = np.full(len(targets), 1 / self.text.size)
        return {
            "uniform": _scores(windows, np.log(alike), alike),
            "unigram": _scores(windows, np.log(unigram[targets]), targets == commonest),
            "no_context": _scores(windows, np.log(data.without_context(inputs, targets, unigram)), targets == guess),
        }

    @torch.no_grad()
    def samples(self, model: nn.Module) -> list[Artifact]:
        """The first validation windows: as corrupted (``_`` is a mask), as filled in, and as they were."""
        device = next(model.parameters()).device
        batch = {name: tensor[:4].to(device) for name, tensor in next(self.batches("validation", 0)).items()}
        filled = batch["inputs"].clone()
        filled[batch["selected"]] = _logits(model, batch).argmax(-1)
        rows = zip(batch["inputs"], filled, batch["targets"], strict=True)
        lines = [self._line(row.cpu().numpy()) for group in rows for row in group]
        return [Artifact("filled.txt", "text/plain", b"\n".join(lines))]

    def _line(self, tokens: np.ndarray) -> bytes:
        parts = (b"_" if token == self.mask else self.text.decode(tokens[i : i + 1]) for i, token in enumerate(tokens))
        return b"".join(parts).replace(b"\n", b" ")


def _tensors(masked: data.Masked) -> Batch:
    return {name: torch.from_numpy(array) for name, array in vars(masked).items()}


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    padding = batch["padding"]
    return model(batch["inputs"], batch["selected"], key_padding_mask=padding if bool(padding.any()) else None)


@cache
def _held_out(text: Text, split: Split, length: int, per_document: int) -> data.Windows:
    return data.held_out_windows(text, split, length, per_document)


def _scores(windows: data.Windows, log_probabilities: np.ndarray, hits: np.ndarray) -> Scores:
    """Means per document from the log probability of each selected token and its hit, ``[S]``.

    Ties of the likeliest share a hit. A document weighs as much as it has selected tokens.
    """
    masked, count = windows.masked, len(windows.units)
    unit_of = np.repeat(windows.unit_of, masked.selected.sum(1))
    weights = np.bincount(unit_of, minlength=count).astype(float)

    def per_unit(values: np.ndarray) -> np.ndarray:
        return np.bincount(unit_of, weights=values, minlength=count) / weights

    return Scores(
        units=windows.units,
        values={"perplexity": per_unit(-log_probabilities), "accuracy": per_unit(hits)},
        weights={"perplexity": weights, "accuracy": weights},
    )
