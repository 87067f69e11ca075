"""The text: whole, split by book, nothing shared between the splits."""

from __future__ import annotations

from itertools import combinations
from typing import get_args

import pytest

from tasks import bible
from tasks.contract import Split

SPLITS: tuple[Split, ...] = get_args(Split)


@pytest.mark.parametrize("translation", list(bible.TRANSLATIONS))
def test_the_splits_hold_every_chapter_once(translation: str) -> None:
    names = [chapter.name for split in SPLITS for chapter in bible.chapters(translation, split)]
    assert len(names) == len(set(names)) == 1189  # the chapters of the Protestant canon
    verses = sum(chapter.text.count(b"\n") + 1 for split in SPLITS for chapter in bible.chapters(translation, split))
    assert verses == 31_102


def test_no_book_is_in_two_splits() -> None:
    books = {split: {chapter.book for chapter in bible.chapters("world_english", split)} for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not books[one] & books[other]
    for split, names in bible.HELD_OUT.items():
        assert books[split] == set(names)
        assert len(bible.chapters("world_english", split)) >= 50  # units enough for a bootstrap


def test_held_out_text_is_not_in_the_training_stream() -> None:
    stream = b"\n\n".join(chapter.text for chapter in bible.chapters("world_english", "train"))
    for split in bible.HELD_OUT:
        for chapter in bible.chapters("world_english", split):
            middle = len(chapter.text) // 2
            # 200 bytes are more than any verse that one book quotes of another word for word
            assert chapter.text[middle : middle + 200] not in stream
