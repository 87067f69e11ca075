"""Associative recall: generated problems, backbone, loss, metrics and floors, joined."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import Batch, Metric, Recipe, Scores, Slots, Split, Task, TaskCard
from tasks.options import chosen, scored_pattern, whole
from tasks.recall import data
from tasks.recall.model import CrossRecall, SelfRecall


@dataclass(frozen=True)
class Size:
    """The problem, the backbone, how it is trained, and how many problems are scored."""

    pairs: int
    vocabulary: int
    length: int
    width: int
    heads: int
    layers: int
    batch: int
    scored: int
    recipe: Recipe


SIZES: Mapping[str, Size] = {
    "tiny": Size(
        pairs=16,
        vocabulary=32,
        length=64,
        width=64,
        heads=4,
        layers=2,
        batch=16,
        scored=256,
        recipe=Recipe(max_steps=150, learning_rate=6e-3, warmup_steps=10),
    ),
}


class Recall(Task):
    """Name the value that belongs to each key, from the pairs in the context.

    The same problem in every pattern, for equal options, split and seed. In the self patterns source and target are
    one sequence of ``length`` tokens, pairs first, so that every query follows its pair; in the cross patterns the
    target attends to the source, ``length / 2`` tokens each.

    Args:
        size: of the backbone and its recipe, and of the problem where an option is None.
        pattern: under test, any of the four.
        pairs: of a key and a value in a problem; each key is asked for once.
        vocabulary: how many keys there are, and how many values.
        length: of source and target together, even.
        tokens: ``one`` token per pair (the sum of two embeddings), or ``two``, side by side.
    """

    card: TaskCard = TaskCard(
        name="recall",
        title="Associative recall (generated)",
        patterns=tuple(Pattern),
        primary_pattern=Pattern.NONCAUSAL_SELF,
        metrics=(
            Metric("accuracy", "fraction", True, "queries whose likeliest value is right"),
            Metric("nll", "nats", False, "mean negative log-likelihood of the right value"),
        ),
        lengths={name: (size.length, None) for name, size in SIZES.items()},
        unit="problem",
        floors={
            "uniform": "every value of the vocabulary alike",
            "context": "the values of the problem as often as they occur in it, whatever the key",
        },
        floor="context",
        source="generated",
        licence="Apache-2.0, as the code",
        citation="two-token form: Arora et al., Zoology, ICLR 2024, arXiv:2312.04927 (MQAR)",
    )

    def __init__(
        self,
        *,
        size: str = "tiny",
        pattern: Pattern | str | None = None,
        pairs: int | None = None,
        vocabulary: int | None = None,
        length: int | None = None,
        tokens: str = "one",
    ) -> None:
        self.setting = chosen("size", size, SIZES)
        self.size = size
        self.pattern = scored_pattern(self.card, pattern)
        self.recipe = self.setting.recipe
        per_pair = chosen("tokens", tokens, data.TOKENS)
        self.tokens_per_pair = tokens
        self.vocabulary = whole("vocabulary", self.setting.vocabulary if vocabulary is None else vocabulary, at_least=2)
        self.pairs = whole(
            "pairs",
            self.setting.pairs if pairs is None else pairs,
            at_least=1,
            at_most=self.vocabulary,
            why=f"the keys of a problem differ, and vocabulary={self.vocabulary}",
        )
        self.length = whole(
            "length",
            self.setting.length if length is None else length,
            at_least=2 * per_pair * self.pairs,
            why=f"half of it holds pairs={self.pairs} of tokens={tokens}",
        )
        if self.length % 2:
            raise ValueError(f"length={self.length} is odd: source and target are equally long; try {self.length + 1}")

    @property
    def lengths(self) -> tuple[int, int | None]:
        return (self.length // 2, self.length // 2) if self.pattern.is_cross else (self.length, None)

    def build_model(self, slots: Slots) -> nn.Module:
        size, positions = self.setting, data.TOKENS[self.tokens_per_pair] > 1
        if self.pattern.is_cross:
            return CrossRecall(
                slots,
                self.pattern,
                vocabulary=self.vocabulary,
                width=size.width,
                heads=size.heads,
                layers=size.layers,
                half=self.length // 2,
                positions=positions,
            )
        return SelfRecall(
            slots,
            self.pattern,
            vocabulary=self.vocabulary,
            width=size.width,
            heads=size.heads,
            layers=size.layers,
            length=self.length,
            positions=positions,
        )

    def _problems(self, split: Split, count: int, seed: int, index: int) -> data.Problems:
        return data.problems(
            split,
            pairs=self.pairs,
            vocabulary=self.vocabulary,
            half=self.length // 2,
            tokens=self.tokens_per_pair,
            count=count,
            seed=seed,
            index=index,
        )

    def batches(self, split: Split, seed: int, start: int = 0) -> Iterator[Batch]:
        """``source_keys``, ``source_values``, ``target_keys``, ``answers``: int64 ``[B, length / 2]``.

        The problems of the other splits do not depend on the seed.
        """
        rows = self.setting.batch
        if split == "train":
            while True:
                yield _tensors(self._problems(split, rows, seed, start))
                start += 1
        for first in range(start * rows, self.setting.scored, rows):
            yield _tensors(self._problems(split, min(rows, self.setting.scored - first), 0, first // rows))

    def tokens(self, batch: Batch) -> int:
        return len(batch["answers"]) * self.lengths[0]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(_logits(model, batch).flatten(0, 1), batch["answers"].flatten())

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> Scores:
        device = next(model.parameters()).device
        predictions = []
        for batch in self.batches(split, 0):
            logits = _logits(model, {name: tensor.to(device) for name, tensor in batch.items()}).float().cpu()
            predictions.append(torch.log_softmax(logits.double(), dim=-1).numpy())
        return self._scores(split, np.concatenate(predictions))

    def floors(self, split: Split) -> Mapping[str, Scores]:
        batches = list(self.batches(split, 0))
        values = np.concatenate([batch["source_values"].numpy() for batch in batches])
        held = values[:, :, None] == 1 + np.arange(self.vocabulary)
        counts = held.sum(1, keepdims=True)
        shape = (*values.shape, self.vocabulary)
        with np.errstate(divide="ignore"):  # a value that does not occur is never the answer
            context = np.log(counts / self.pairs)
        return {
            "uniform": self._scores(split, np.full(shape, -math.log(self.vocabulary))),
            "context": self._scores(split, np.broadcast_to(context, shape)),
        }

    def _scores(self, split: Split, log_probabilities: np.ndarray) -> Scores:
        """Means per problem from log probabilities ``[N, T, V]``; ties of the likeliest share the hit."""
        answers = np.concatenate([batch["answers"].numpy() for batch in self.batches(split, 0)])
        asked = answers != data.IGNORE
        of_answer = np.take_along_axis(log_probabilities, np.where(asked, answers, 0)[:, :, None], 2)[:, :, 0]
        likeliest = log_probabilities == log_probabilities.max(2, keepdims=True)
        hit = (of_answer == log_probabilities.max(2)) / likeliest.sum(2)
        return Scores(
            units=[str(i) for i in range(len(answers))],
            values={
                "accuracy": np.where(asked, hit, 0.0).sum(1) / self.pairs,
                "nll": -np.where(asked, of_answer, 0.0).sum(1) / self.pairs,
            },
        )


def _tensors(problems: data.Problems) -> Batch:
    return {name: torch.from_numpy(array) for name, array in vars(problems).items()}


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch["source_keys"], batch["source_values"], batch["target_keys"])
