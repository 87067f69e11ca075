"""The contract of a task: data, a backbone with attention slots, a loss, metrics, and the floors to read them by.

A task never names a mechanism. Its backbone asks ``slots[pattern]`` for a layer wherever it attends, and gets the
mechanism under test in the slots of one pattern and exact attention in all others (as in CAB).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import numpy as np
from torch import Tensor, nn

from attention_zoo.contract import Attention, Pattern
from tasks.schedules import Schedule, cosine
from tasks.sources import Source

Split = Literal["train", "validation", "test"]
Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Metric:
    """A figure of merit.

    The value over a set of units is ``f(sum_i w_i x_i / sum_i w_i)`` over the units' values x and weights w, with f the
    identity (``aggregate="mean"``) or exp (``"exp_mean"``: perplexity from mean negative log-likelihoods).
    """

    name: str
    unit: str
    higher_is_better: bool
    description: str
    aggregate: Literal["mean", "exp_mean"] = "mean"

    def value(self, scores: Scores) -> float:
        """The metric over all units of ``scores``."""
        mean = float(np.average(scores.values[self.name], weights=scores.weights.get(self.name)))
        return float(np.exp(mean)) if self.aggregate == "exp_mean" else mean


@dataclass(frozen=True)
class Scores:
    """Per metric, a value (before ``aggregate``) and a weight per resampling unit: document, series, utterance, image.

    ``units`` names the units in order; it is the same for every model, so that comparisons can be paired.
    A metric without ``weights`` weighs its units equally.
    """

    units: list[str]
    values: Mapping[str, np.ndarray]
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, array in (*self.values.items(), *self.weights.items()):
            if array.shape != (len(self.units),):
                raise ValueError(f"{name}: {array.shape} values for {len(self.units)} units")


@dataclass(frozen=True)
class TaskCard:
    """What a task is, where its data come from and how to read its numbers.

    Attributes:
        name: of the config in ``conf/task``.
        patterns: those scored here; ``primary_pattern`` is the default of ``cab run``.
        metrics: the first one is the primary one.
        lengths: per size, (target length, source length) that the attention under test sees; source None: one sequence.
        unit: what a resampling unit is (``document``, ``window of one day`` ...).
        floors: per trivial predictor, what it does. ``floor`` names the one to beat.
        source, licence, citation: of the data (and of the task's form, where published).
    """

    name: str
    title: str
    patterns: tuple[Pattern, ...]
    primary_pattern: Pattern
    metrics: tuple[Metric, ...]
    lengths: Mapping[str, tuple[int, int | None]]
    unit: str
    floors: Mapping[str, str]
    floor: str
    source: str
    licence: str
    citation: str

    @property
    def primary_metric(self) -> Metric:
        return self.metrics[0]


class SlotFactory(Protocol):
    """Builds the layer of one slot; each slot passes its own width, heads and lengths."""

    def __call__(
        self, embed_dim: int, num_heads: int, *, max_length: int, max_length_key: int | None = None
    ) -> Attention: ...


Slots = Mapping[Pattern, SlotFactory]


@dataclass(frozen=True)
class Recipe:
    """How a size is trained: AdamW, a linear warm-up, a schedule, gradients clipped by their norm.

    A step is one update, from ``accumulate`` batches, whose mean loss it follows. ``gradient_clip`` None: not clipped.
    ``activation_checkpointing``: activations of a block are computed again in the backward pass, not kept for it.
    """

    max_steps: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-8
    gradient_clip: float | None = 1.0
    schedule: Schedule = cosine
    accumulate: int = 1
    activation_checkpointing: bool = False


@dataclass(frozen=True)
class Artifact:
    """A sample output that a person can look at or listen to."""

    name: str
    media_type: str
    content: bytes


class Task:
    """One task at one size. Constructed from ``conf/task/<name>.yaml``; options are keyword-only and typed.

    Everything is deterministic in (options, split, seed): nothing reads a global random state.
    ``pattern`` is an option of every task: the pattern under test, one of ``card.patterns``.
    ``card`` belongs to the class; an object whose options change what it says (the data, say) has one of its own.
    ``sources`` are the packages that carry the data; none where they are generated.
    """

    card: TaskCard
    sources: ClassVar[tuple[Source, ...]] = ()
    pattern: Pattern
    size: str
    recipe: Recipe

    @property
    def lengths(self) -> tuple[int, int | None]:
        """(target length, source length or None) under test with these options; the card's where none changes them."""
        return self.card.lengths[self.size]

    def prepare(self) -> None:
        """Fetches and unpacks the data where they are not cached. Shows progress; idempotent; interruptible."""

    def build_model(self, slots: Slots) -> nn.Module:
        """The backbone. Parameters outside the slots come from torch's global generator, which the caller seeds."""
        raise NotImplementedError

    def batches(self, split: Split, seed: int, start: int = 0) -> Iterator[Batch]:
        """Training batches without end, from batch ``start`` on: the same as skipping ``start`` batches, at no cost.

        For the other splits: the fixed batches of the split, once.
        """
        raise NotImplementedError

    def blank_batch(self, rows: int = 1) -> Batch:
        """A training batch of the task's shapes, its values of no meaning; fetches nothing. For counting work."""
        raise NotImplementedError

    def tokens(self, batch: Batch) -> int:
        """How many tokens of the sequence under test a batch holds, padding left out."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The scalar that training minimises."""
        raise NotImplementedError

    def evaluate(self, model: nn.Module, split: Split) -> Scores:
        """Every metric of the card, per resampling unit. ``model`` is in eval mode, and no gradient is recorded."""
        raise NotImplementedError

    def floors(self, split: Split) -> Mapping[str, Scores]:
        """The trivial predictors that the card names, on the same units as :meth:`evaluate`."""
        raise NotImplementedError

    def samples(self, model: nn.Module) -> list[Artifact]:
        """Sample outputs; none where the task has nothing to show."""
        return []
