"""Parsing, split, vocabulary and floors of the articles, on texts made up here (the real ones are copyrighted)."""

from __future__ import annotations

import csv
import io
import random

import numpy as np
import pytest

from tasks.summarization import data

NONSENSE = [f"{first}{second}" for first in ("bar", "lom", "tin", "gos", "pel") for second in ("ka", "ro", "mi", "su")]


def table(*rows: tuple[str, str, str], columns: tuple[str, ...] = data.COLUMNS) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([columns, *rows])
    return buffer.getvalue().encode()


def text(seed: int, length: int = 60) -> str:
    return " ".join(random.Random(seed).choices(NONSENSE, k=length))


def corpus(count: int = 300) -> data.Corpus:
    rows = [(f"Head {index}", f"{text(-index - 1, 4)}" if index % 2 else "", text(index)) for index in range(count)]
    return data.Corpus.of(data.parse(table(*rows), "fixture"))


def test_words_keep_inner_signs_and_drop_lost_characters():
    assert data.words("Don't\ufffd RE-ENTER, 3.5%!") == ["don't", "re-enter", ",", "3", ".", "5", "%", "!"]


def test_first_sentence_does_not_end_inside_an_abbreviation():
    first = 'The U.S. Kabaro met the lomsu of Tinmi at "noon."'
    assert data.lead_length(f"{first} Then more happened. And more.") == len(data.words(first))
    assert data.lead_length("no full stop here") == 4


def test_head_is_title_then_subtitle_or_the_one_there_is():
    rows = [("A Title", "Its subtitle", text(1)), ("Alone", "", text(2)), ("", "Only below", text(3))]
    heads = [document.head for document in data.parse(table(*rows), "fixture")]
    assert heads == [["a", "title", "<sep>", "its", "subtitle"], ["alone"], ["only", "below"]]


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
    documents = data.parse(table(*rows), "fixture")
    assert [document.head for document in documents] == [["kept"], ["kept", "too"]]


def test_long_article_is_cut_but_keyed_by_all_of_it():
    long = text(1, data.KEPT_WORDS + 10)
    (document,) = data.parse(table(("A", "", long)), "fixture")
    (other,) = data.parse(table(("A", "", long + " more")), "fixture")
    assert document.text == data.words(long)[: data.KEPT_WORDS]
    assert document.key != other.key
    assert document.lead == data.KEPT_WORDS


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


def test_corpus_survives_its_file(tmp_path):
    documents = data.parse(table(("A title", "below", text(1)), ("Çok güzel", "", text(2))), "fixture")
    path = tmp_path / "corpus.npz"
    path.write_bytes(data.Corpus.of(documents).to_bytes())
    assert path.read_bytes() == data.Corpus.of(documents).to_bytes()  # the cache's digest wants equal bytes
    read = data.Corpus.read(path)
    for index, document in enumerate(documents):
        assert [read.words[number] for number in read.text_of(index)] == document.text
        assert [read.words[number] for number in read.head_of(index)] == document.head
    assert read.keys == [document.key for document in documents]
    assert read.leads.tolist() == [document.lead for document in documents]


def test_every_document_is_in_one_split_which_its_words_alone_decide():
    whole = corpus()
    numbers = np.concatenate([whole.splits[split] for split in ("train", "validation", "test")])
    assert sorted(numbers.tolist()) == list(range(300))
    assert len(whole.splits["train"]) > 200
    assert min(len(whole.splits["validation"]), len(whole.splits["test"])) > 10
    half = corpus(150)
    for split in ("train", "validation", "test"):
        assert {half.keys[document] for document in half.splits[split]} == {
            whole.keys[document] for document in whole.splits[split] if whole.keys[document] in set(half.keys)
        }


def test_vocabulary_counts_the_training_part_only():
    rows = [(f"Head {index}", "", f"{text(index)} only{index}") for index in range(100)]
    articles = data.Corpus.of(data.parse(table(*rows), "fixture"))
    vocabulary = data.Vocabulary.fit(articles, 10_000)
    for split, known in (("train", True), ("validation", False), ("test", False)):
        for document in articles.splits[split]:
            own = [articles.words[number].startswith("only") for number in articles.text_of(document)].index(True)
            token = vocabulary.token_of[articles.text_of(document)[own]]
            assert (token != data.UNKNOWN) == known
            if known:
                assert vocabulary.words[token] == articles.words[articles.text_of(document)[own]]


def test_vocabulary_holds_the_most_frequent_words():
    rows = [(f"t{index}", "", " ".join(["common"] * 10 + ["rarer"] * 9 + [f"w{index}"])) for index in range(30)]
    articles = data.Corpus.of(
        [data.Document(f"{index:064x}", words.split(), [title], 20) for index, (title, _, words) in enumerate(rows)]
    )
    assert data.Vocabulary.fit(articles, 7).words == [*data.SPECIALS, "common", "rarer"]


def test_pairs_shift_cut_and_pad():
    articles = data.Corpus.of(
        [
            data.Document("0" * 64, ["a", "b", "c"], ["x", "<sep>", "y"], 2),
            data.Document("8" * 64, ["b", "q"], ["x", "x", "x", "x", "x"], 2),
        ]
    )
    vocabulary = data.Vocabulary.fit(articles, 100)
    a, b, c, x, y = (vocabulary.words.index(word) for word in "abcxy")
    pairs = data.Pairs.of(articles, vocabulary, np.array([0, 1]), source_length=4, target_length=4)
    assert pairs.source.tolist() == [[a, b, c, data.PAD], [b, data.UNKNOWN, data.PAD, data.PAD]]
    assert pairs.target.tolist() == [[x, data.SEPARATOR, y, data.END], [x, x, x, x]]
    assert pairs.decoder_inputs.tolist() == [[data.BEGIN, x, data.SEPARATOR, y], [data.BEGIN, x, x, x]]
    longer = data.Pairs.of(articles, vocabulary, np.array([0]), source_length=2, target_length=6)
    assert longer.target.tolist() == [[x, data.SEPARATOR, y, data.END, data.PAD, data.PAD]]
    assert longer.decoder_inputs.tolist() == [[data.BEGIN, x, data.SEPARATOR, y, data.PAD, data.PAD]]


def test_unigram_is_smoothed_counts_over_what_can_occur():
    target = np.array([[5, 6, data.END, data.PAD], [5, 5, data.END, data.PAD]])
    probability = data.unigram(target, size=8)
    expected = np.array([0, 1, 0, 3, 1, 4, 2, 1]) / 12  # counts plus one; nothing for padding and the beginning
    np.testing.assert_allclose(probability, expected, rtol=1e-12)  # rounding of a quotient


def test_lead_floor_against_loops():
    rng = np.random.default_rng(0)
    source = rng.integers(5, 12, size=(6, 10))
    target = rng.integers(3, 12, size=(6, 5))
    target[2, 3:] = data.PAD
    pairs = data.Pairs(source, target, rng.integers(1, 11, size=6))
    lead = data.lead_probability(pairs)
    base = data.unigram(target, 12)[target]
    weight = data.fit_lead_weight(base, lead, target)
    losses = data.mean_negative_log((1 - weight) * base + weight * lead, target)
    for row in range(6):
        first = source[row, : pairs.lead[row]].tolist()
        tokens = [token for token in target[row] if token != data.PAD]
        total = 0.0
        for column, token in enumerate(tokens):
            share = first.count(token) / len(first)
            assert lead[row, column] == pytest.approx(share)
            total -= np.log((1 - weight) * base[row, column] + weight * share)
        assert losses[row] == pytest.approx(total / len(tokens))

    def total_loss(w: float) -> float:
        probability = np.where(target == data.PAD, 1.0, (1 - w) * base + w * lead)
        return float(-np.log(probability).sum())

    assert all(total_loss(weight) <= total_loss(w) + 1e-9 for w in np.linspace(0, 0.98, 50))  # ties within rounding
