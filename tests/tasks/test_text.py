"""Text as tokens: nothing lost, documents apart, the cache checked, PG-19 in its published layout."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.contract import Split
from tasks.lm.task import LanguageModelling
from tasks.mlm.task import MaskedLanguageModelling
from tasks.pg19 import PG19
from tasks.sources import DataUnavailable
from tasks.subwords import BYTES, Subwords
from tasks.text import END, SPECIALS, Text, _tokens, spread, windows_of

SPLITS: tuple[Split, ...] = get_args(Split)
BOOKS = {
    "train": {"10": "The cat sat on the mat, and the cat ate. " * 40, "7": "Ünïcode — and <eos> in a text.\n" * 30},
    "validation": {"3": "The mat was the cat's. " * 20},
    "test": {"5": "A dog came to the mat. " * 20, "6": "x"},
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAB_CACHE", str(tmp_path / "cache"))
    for split, books in BOOKS.items():
        (tmp_path / "pg19" / split).mkdir(parents=True)
        for name, text in books.items():
            (tmp_path / "pg19" / split / f"{name}.txt").write_text(text, encoding="utf-8")
    return tmp_path / "pg19"


@pytest.mark.parametrize("vocabulary", [None, 300])
def test_documents_come_back_whole_and_apart(root: Path, vocabulary: int | None) -> None:
    text = Text(PG19(root), vocabulary)
    for split in SPLITS:
        tokens = text.tokens(split)
        assert tokens.names == sorted(BOOKS[split])
        for index, name in enumerate(tokens.names):
            assert text.decode(tokens.document(index)).decode() == BOOKS[split][name]
        between = [tokens.stream[end:start] for end, start in pairwise_edges(tokens.ends, tokens.starts)]
        expected = [] if split != "train" else [text.separator.tolist()] * (len(tokens.names) - 1)
        assert [gap.tolist() for gap in between if len(gap)] == expected
    assert int(text.tokens("train").stream.max()) < text.size
    assert text.unigram.sum() == pytest.approx(1)


def pairwise_edges(ends: np.ndarray, starts: np.ndarray) -> Iterator[tuple[int, int]]:
    return zip(ends[:-1].tolist(), starts[1:].tolist(), strict=True)


def test_bytes_of_subwords_add_up_to_the_text(root: Path) -> None:
    text = Text(PG19(root), 400)
    content = "".join(BOOKS["train"].values()).encode() + bytes("日本", "utf-8")
    assert int(text.byte_lengths[text.encode(content)].sum()) == len(content)
    assert text.byte_lengths[END] == 0
    assert len(text.byte_lengths) == 400  # rows that no subword fills count nothing


@given(st.text(max_size=60))
def test_no_text_is_unknown(text: str) -> None:
    learned = Subwords.fit(["a b c"], BYTES + 1, SPECIALS, key="test_no_text_is_unknown")
    assert learned.decode(learned.encode(text)) == text


def test_what_is_learned_or_cached_follows_the_text(root: Path) -> None:
    before = Text(PG19(root), 300).tokens("train").stream.tolist()
    path = root / "train" / "10.txt"
    path.write_text(path.read_text() + "Another ending.")
    _tokens.cache_clear()  # as in a new process
    after = Text(PG19(root), 300).tokens("train").stream.tolist()
    assert before != after


def test_a_torn_cache_is_made_again(root: Path, tmp_path: Path) -> None:
    text = Text(PG19(root))
    whole = text.tokens("test").stream.tobytes()
    (stream,) = (path for path in (tmp_path / "cache" / "tokens").glob("*.bin") if path.stat().st_size == len(whole))
    stream.write_bytes(whole[:-3])
    _tokens.cache_clear()
    assert text.tokens("test").stream.tobytes() == whole


@pytest.mark.parametrize("kind", [LanguageModelling, MaskedLanguageModelling])
def test_original_data_are_read_from_their_folder(root: Path, kind: type[LanguageModelling]) -> None:
    task = kind(length=16, data="original", data_root=str(root))
    task.prepare()
    assert "PG-19" in task.card.source
    assert task.card.unit == "held-out book"
    assert "PG-19" not in kind.card.source
    units = task.floors("test")["unigram"].units
    # A book of one letter has nothing to predict from what came before; a masked letter can be guessed.
    assert units == (["5"] if kind is LanguageModelling else ["5", "6"])


def test_what_is_missing_or_damaged_is_one_line(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match=r"no train/\*\.txt .*gs://deepmind-gutenberg"):
        LanguageModelling(data="original", data_root=str(tmp_path / "nowhere")).prepare()
    (root / "test" / "8.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"8\.txt is empty"):
        list(PG19(root).documents("test"))
    (root / "test" / "8.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"8\.txt is not UTF-8 at byte 0"):
        list(PG19(root).documents("test"))
    (root / "test" / "8.txt").rename(root / "test" / "10.txt")
    with pytest.raises(ValueError, match=r"book 10\.txt is in test and in train"):
        list(PG19(root).documents("test"))


def test_windows_do_not_overlap_and_a_short_document_gives_one(root: Path) -> None:
    tokens = Text(PG19(root)).tokens("test")
    found = list(windows_of(tokens, 50, 4, ahead=1))
    assert [index for index, _ in found] == [0, 0, 0, 0, 1]
    assert [len(content) for _, content in found] == [51, 51, 51, 51, 1]
    whole = tokens.document(0).tobytes()
    places = [whole.index(content.tobytes()) for index, content in found if index == 0]
    assert places[0] == 0 or places == sorted(places)


def test_spread_takes_different_indices_up_to_all() -> None:
    assert spread(10, 3) == [0, 3, 6]
    assert spread(2, 5) == [0, 1]
    indices = spread(997, 31)
    assert len(indices) == 31
    assert all(a < b for a, b in pairwise(indices))
    assert np.ptp(np.diff(indices)) <= 1
