"""Multi-News in its published layout, on a fixture made here: reading, normalising, and each way it can be broken."""

from __future__ import annotations

import pytest

from attention_zoo.contract import Pattern
from tasks.sources import DataUnavailable
from tasks.summarization import original
from tasks.summarization.task import Summarization

COUNTS = {"train": 12, "val": 3, "test": 4}


def source(stem: str, number: int) -> str:
    body = " ".join(f"{stem}{number}word{i}" for i in range(30))
    return f"First story {body}. NEWLINE_CHAR NEWLINE_CHAR More of it. ||||| Second story, {number} words. |||||"


def target(stem: str, number: int) -> str:
    return f"– Summary {stem} {number} of what\u2028happened"  # U+2028 is no line feed


@pytest.fixture
def folder(tmp_path):
    for stem, count in COUNTS.items():
        for ending, line in ((".src", source), (".tgt", target)):
            lines = [line(stem, number) + "\n" for number in range(count)]
            (tmp_path / f"{stem}{ending}").write_bytes("".join(lines).encode())
    return tmp_path


def test_parts_pairs_and_separators(folder):
    parts = original.read(folder)
    assert {name: len(articles) for name, articles in parts.items()} == {"train": 12, "validation": 3, "test": 4}
    third = parts["validation"][2]
    lines = third.text.split("\n")
    assert lines[0].startswith("First story val2word0 ")
    assert lines[2:] == [" More of it.", "|||||", "Second story, 2 words."]
    assert third.summary == "– Summary val 2 of what happened"
    assert len({article.key for articles in parts.values() for article in articles}) == 19


def test_both_releases_of_the_files_read_alike(folder):
    before = original.read(folder)
    for path in list(folder.iterdir()):
        content = path.read_bytes().decode()
        path.unlink()
        if path.suffix == ".src":
            content = content.replace("|||||", "story_separator_special_tag")
            path = path.with_name(path.name + ".cleaned")
        path.write_bytes(content.removesuffix("\n").encode())  # also without the last line feed
    assert original.read(folder) == before


def test_training_examples_of_other_parts_are_left_out(folder):
    for ending, line in ((".src", source), (".tgt", target)):
        with (folder / f"train{ending}").open("a", encoding="utf-8") as file:
            file.write(line("test", 1) + "\n" + line("val", 0) + "\n")
    parts = original.read(folder)
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [12, 3, 4]


@pytest.mark.parametrize("missing", ["train.src", "val.tgt", "test.src"])
def test_missing_file_is_named_with_where_to_get_it(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(DataUnavailable, match=f"no {missing}.*Alex-Fabbri/Multi-News.*data_root") as error:
        original.read(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("val.tgt", b"one\ntwo\n", "val.tgt has 2 lines, and val.src has 3"),
        ("val.tgt", b"one\n\nthree\n", "val.tgt, line 2: no words"),
        ("val.src", b"one |||||\n ||||| NEWLINE_CHAR |||||\nthree\n", "val.src, line 2: no words"),
        ("test.src", b"caf\xe9 one\n", "test.src is not UTF-8 at byte 3"),
    ],
)
def test_broken_file_is_one_line(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        original.read(folder)
    assert "\n" not in str(error.value)


def test_empty_files_are_one_line(folder):
    for ending in (".src", ".tgt"):
        (folder / f"test{ending}").write_bytes(b"")
    with pytest.raises(ValueError, match=r"test\.src is empty"):
        original.read(folder)


def test_task_reads_it_with_its_own_card(folder, monkeypatch):
    monkeypatch.setenv("CAB_CACHE", str(folder / "cache"))
    task = Summarization(size="tiny", data="original", data_root=str(folder), pattern=Pattern.CAUSAL_SELF)
    assert len(task.articles["train"]) == 12
    assert "Multi-News" in task.card.source
    assert "newser" in task.card.licence
    assert "NewsArticles" in Summarization.card.source
    batch = next(task.batches("train", seed=0))
    assert batch["source"].shape == (16, 96)
    assert set(task.floors("test")) == set(task.card.floors)
    # base and paper read subwords, trained on this training part
    subwords = Summarization(size="base", data="original", data_root=str(folder), vocabulary=500)
    assert 261 < len(subwords.tokeniser) <= 500
    assert subwords.tokeniser.decode(subwords.tokeniser.encode("– Çok güzel")) == "– Çok güzel"


def test_default_folder_is_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CAB_CACHE", str(tmp_path))
    with pytest.raises(DataUnavailable, match=str(tmp_path / "original" / "multi_news")):
        Summarization(data="original").prepare()
