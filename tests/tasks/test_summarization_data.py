"""Parsing, split, sentences, tokenisers, pairs and floors, on texts made up here (the real ones are copyrighted)."""

from __future__ import annotations

import csv
import io
import random

import numpy as np
import pytest

from tasks.summarization import data, floors
from tasks.summarization.tokens import (
    BEGIN,
    END,
    PAD,
    SEPARATOR,
    SPECIALS,
    UNKNOWN,
    SubwordTokeniser,
    WordTokeniser,
    encode_lines,
    words,
)

NONSENSE = [f"{first}{second}" for first in ("bar", "lom", "tin", "gos", "pel") for second in ("ka", "ro", "mi", "su")]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CAB_CACHE", str(tmp_path / "cache"))


def table(*rows: tuple[str, str, str], columns: tuple[str, ...] = data.COLUMNS) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([columns, *rows])
    return buffer.getvalue().encode()


def text(seed: int, length: int = 60) -> str:
    return " ".join(random.Random(seed).choices(NONSENSE, k=length))


def articles(count: int = 300) -> list[data.Article]:
    rows = [(f"Head {index}", f"{text(-index - 1, 4)}" if index % 2 else "", text(index)) for index in range(count)]
    return data.parse(table(*rows), "fixture")


def test_words_keep_inner_signs_and_drop_lost_characters():
    assert words("Don't\ufffd RE-ENTER, 3.5%!") == ["don't", "re-enter", ",", "3", ".", "5", "%", "!"]
    assert words("One two three", 2) == ["one", "two"]


def test_sentences_do_not_end_inside_an_abbreviation():
    first = 'The U.S. Kabaro met the lomsu of Tinmi at "noon." '
    second = "Then some more of it happened! "
    assert data.lead(f"{first}{second}And more.", 1) == first
    assert data.lead(f"{first}{second}And more.", 2) == first + second
    assert data.lead(f"{first}{second}And more.", 3) == f"{first}{second}And more."
    assert data.lead("no full stop here", 1) == "no full stop here"


def test_summary_is_title_over_subtitle_or_the_one_there_is():
    rows = [("A Title", "Its  subtitle", text(1)), ("Alone", "", text(2)), ("", "Only below", text(3))]
    summaries = [article.summary for article in data.parse(table(*rows), "fixture")]
    assert summaries == ["A Title\nIts subtitle", "Alone", "Only below"]


def test_unusable_and_repeated_articles_are_left_out():
    rows = [
        ("Kept", "", text(1)),
        ("No text", "", ""),
        ("Blank text", "", " \n "),
        ("Too short", "", text(2, data.MIN_WORDS - 1)),
        ("", " ", text(3)),
        ("Same text", "", text(1).upper()),
        ("An update of the first", "", text(1, 50) + " and other words"),
        ("KEPT", "", text(4)),
        ("Kept too", "", text(5, data.MIN_WORDS)),
    ]
    assert [article.summary for article in data.parse(table(*rows), "fixture")] == ["Kept", "Kept too"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table(("a", "b", text(1)), columns=("title", "subtitel", "text")), "'subtitle'.*did you mean 'subtitel'"),
        (table(("", "", text(1)), ("a", "", "")), "none of its 2 articles"),
        (table(), "none of its 0 articles"),
    ],
)
def test_unusable_file_is_one_line(content, message):
    with pytest.raises(ValueError, match=message) as error:
        data.parse(content, "news.csv")
    assert "news.csv" in str(error.value)
    assert "\n" not in str(error.value)


def test_articles_survive_their_file():
    found = data.parse(table(("A title", "below", text(1) + "\nÇok\u2028güzel"), ("B", "", text(2))), "fixture")
    assert data.from_lines(data.to_lines(found)) == found
    assert "\u2028" in found[0].text  # which Python takes for a line break, and JSON does not


def test_every_article_is_in_one_part_which_its_words_alone_decide():
    everything = articles()
    parts = data.split(everything)
    assert sorted(article.key for part in parts.values() for article in part) == sorted(a.key for a in everything)
    assert len(parts["train"]) > 200
    assert min(len(parts["validation"]), len(parts["test"])) > 10
    half = data.split(everything[:150])
    for name, part in half.items():
        assert set(part) == set(parts[name]) & set(everything[:150])


def test_word_vocabulary_is_the_most_frequent_words():
    tokeniser = WordTokeniser.fit(["common common rarer", "Common rarer rare also"], 8)
    assert tokeniser.vocabulary == [*SPECIALS, "common", "rarer", "also"]  # equal counts by alphabet
    assert tokeniser.encode("Also a COMMON") == [7, UNKNOWN, 5]
    assert tokeniser.encode("also common rarer", 2) == [7, 5]
    assert tokeniser.decode([BEGIN, 5, 6, SEPARATOR, 7, UNKNOWN, END, PAD]) == "common rarer\nalso"


@pytest.mark.parametrize("kind", [WordTokeniser, SubwordTokeniser])
def test_no_text_spells_a_special(kind):
    corpus = ["<sep> <eos> <pad> plain words"] * 3
    tokeniser = kind.fit(corpus, 400)
    tokens = tokeniser.encode("<sep><eos> <pad>")
    assert min(tokens) >= len(SPECIALS)
    assert encode_lines(tokeniser, "plain\nwords") == [
        *tokeniser.encode("plain"),
        SEPARATOR,
        *tokeniser.encode("words"),
    ]


def test_subwords_give_any_text_back():
    corpus = [text(seed) for seed in range(20)]
    tokeniser = SubwordTokeniser.fit(corpus, 300)
    assert len(tokeniser) == 300
    for line in ("barka lomro", "Unseen CASE, 3.5 %", "Çok güzel — 日本"):
        assert tokeniser.decode(tokeniser.encode(line)) == line
    assert len(tokeniser.encode("barka lomro barka")) < len("barka lomro barka") / 2
    assert tokeniser.decode([*tokeniser.encode("barka"), SEPARATOR, *tokeniser.encode("x"), END, PAD]) == "barka\nx"
    assert tokeniser.encode("barka lomro", 1) == tokeniser.encode("barka lomro")[:1]


def test_subwords_are_trained_once_per_text(tmp_path):
    corpus = [text(seed) for seed in range(5)]
    first = SubwordTokeniser.fit(corpus, 300)
    (path,) = (tmp_path / "cache" / "subwords").iterdir()
    content = path.read_bytes()
    assert SubwordTokeniser.fit(corpus, 300).encode("barka lomro") == first.encode("barka lomro")
    assert path.read_bytes() == content
    SubwordTokeniser.fit([*corpus, "more"], 300)
    assert len(list(path.parent.iterdir())) == 2


def test_subwords_need_room_for_bytes():
    with pytest.raises(ValueError, match=r"vocabulary=260.*261"):
        SubwordTokeniser.fit(["text"], 260)


def article(body: str, summary: str) -> data.Article:
    return data.Article("0" * 64, body, summary)


def test_pairs_shift_cut_and_pad():
    tokeniser = WordTokeniser([*SPECIALS, "a", "b", "c", "x", "y"])
    a, b, c, x, y = (tokeniser.vocabulary.index(word) for word in "abcxy")
    both = [article("a b c", "x\ny"), article("b q", "x x x x x")]
    pairs = data.Pairs.of(both, tokeniser, source_length=4, target_length=4)
    assert pairs.source.tolist() == [[a, b, c, PAD], [b, UNKNOWN, PAD, PAD]]
    assert pairs.target.tolist() == [[x, SEPARATOR, y, END], [x, x, x, x]]
    assert pairs.decoder_inputs.tolist() == [[BEGIN, x, SEPARATOR, y], [BEGIN, x, x, x]]
    longer = data.Pairs.of(both[:1], tokeniser, source_length=2, target_length=6)
    assert longer.source.tolist() == [[a, b]]
    assert longer.target.tolist() == [[x, SEPARATOR, y, END, PAD, PAD]]
    assert longer.decoder_inputs.tolist() == [[BEGIN, x, SEPARATOR, y, PAD, PAD]]


def test_unigram_is_smoothed_counts_over_what_can_occur():
    target = np.array([[5, 6, END, PAD], [5, 5, END, PAD]])
    probability = floors.unigram(target, known=8, size=10)
    expected = np.array([0, 1, 0, 3, 1, 4, 2, 1, 0, 0]) / 12  # counts plus one; nothing for what cannot occur
    np.testing.assert_allclose(probability, expected, rtol=1e-12)  # rounding of a quotient


def test_lead_floor_against_loops():
    rng = np.random.default_rng(0)
    tokeniser = WordTokeniser([*SPECIALS, *"abcdefg"])
    sentence = "A b c d e f. "
    made_up = [article(sentence * 2 + "A " + " ".join(rng.choice(list("abcdefg"), 9)), "x") for _ in range(6)]
    target = rng.integers(3, 12, size=(6, 5))
    target[2, 3:] = PAD
    for sentences, source_length in ((1, 40), (2, 40), (2, 9)):
        share = floors.lead_probability(made_up, tokeniser, target, sentences, source_length)
        base = floors.unigram(target, 12, 12)[target]
        weight = floors.fit_lead_weight(base, share, target)
        losses = floors.mean_negative_log((1 - weight) * base + weight * share, target)
        for row in range(6):
            first = tokeniser.encode(sentence * sentences)[:source_length]
            tokens = [token for token in target[row] if token != PAD]
            total = 0.0
            for column, token in enumerate(tokens):
                assert share[row, column] == pytest.approx(first.count(token) / len(first))
                total -= np.log((1 - weight) * base[row, column] + weight * first.count(token) / len(first))
            assert losses[row] == pytest.approx(total / len(tokens))
