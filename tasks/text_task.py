"""What tasks on running text share: which text, as which tokens, in sequences of which length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Generic, Protocol, TypeVar

from attention_zoo.contract import Pattern
from tasks import bible
from tasks.contract import Metric, Recipe, Task
from tasks.options import chosen, scored_pattern, whole
from tasks.sources import Source
from tasks.text import Text, corpus_of


class TextSize(Protocol):
    """``vocabulary`` None: tokens are bytes; otherwise at most so many subwords."""

    @property
    def length(self) -> int: ...
    @property
    def vocabulary(self) -> int | None: ...
    @property
    def recipe(self) -> Recipe: ...


Size = TypeVar("Size", bound=TextSize)


class TextTask(Task, Generic[Size]):
    """A task on the Bible or on PG-19.

    Args:
        sizes: by name.
        size: one of them: of the backbone, its recipe and its evaluation.
        pattern: under test, one of the card's.
        length: tokens of a sequence; None means: as the size says.
        data: ``registry`` (the Bible) or ``original`` (PG-19).
        data_root: the folder of the original data; None: in the cache.
        translation: which text of the registry, ``world_english`` or ``king_james``.
    """

    sources: ClassVar[tuple[Source, ...]] = (bible.SOURCE,)

    def __init__(
        self,
        sizes: Mapping[str, Size],
        *,
        size: str,
        pattern: Pattern | str | None,
        length: int | None,
        data: str,
        data_root: str | None,
        translation: str,
    ) -> None:
        self.setting = chosen("size", size, sizes)
        self.size = size
        self.pattern = scored_pattern(self.card, pattern)
        self.recipe = self.setting.recipe
        self.length = self.setting.length if length is None else whole("length", length, at_least=2)
        self.text = Text(corpus_of(data, translation, data_root), self.setting.vocabulary)
        self.card = replace(
            type(self).card,
            source=self.text.corpus.source,
            licence=self.text.corpus.licence,
            unit="held-out book" if data == "original" else type(self).card.unit,
        )

    def also_measure(self, metrics: Sequence[Metric]) -> None:
        """Adds metrics that options ask for to the card of this object."""
        self.card = replace(self.card, metrics=(*self.card.metrics, *metrics))

    @property
    def lengths(self) -> tuple[int, int | None]:
        return self.length, None

    def prepare(self) -> None:
        for split in ("train", "validation", "test"):
            self.text.tokens(split)
