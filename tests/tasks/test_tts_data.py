"""The registry's speech: which texts are taken, how they are cut, and arrays; without fetching anything."""

from __future__ import annotations

import hashlib
import platform
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks import bible
from tasks.sources import DataUnavailable
from tasks.tts import data, espeak, features
from tasks.tts.symbols import ARPABET, ESPEAK


def tone(count: int, frequency: float = 120.0) -> np.ndarray:
    t = np.arange(count) / 22_050
    return np.rint(6000 * sum(np.sin(2 * np.pi * k * frequency * t) / k for k in range(1, 6))).astype(np.int16)


def spoken(
    key: str, count: int = 11_000, frequency: float = 120.0, phonemes: tuple[int, ...] = (3, 1, 2)
) -> data.Utterance:
    starts = np.linspace(300, 0.8 * count, len(phonemes)).astype(int)
    found = data.utterance(key, np.array(phonemes), starts, tone(count, frequency))
    assert found is not None
    return found


def corpus() -> data.Corpus:
    splits = ["train", "train", "validation", "test", "train"]
    made = [spoken(f"k{i}", 9000 + 700 * i, 100.0 + 20 * i, (3, 1, 2, 1)[: 2 + i % 3]) for i in range(5)]
    return data.Corpus.of(("a", "b", "c"), zip(splits, made, strict=True))  # type: ignore[arg-type]


def test_frames_of_an_utterance_are_those_of_its_phonemes():
    found = spoken("k")
    assert len(found.mel) == found.durations.sum() == round(11_000 / 256)
    # 300 samples before the first phoneme belong to it; bounds are the nearest frames.
    assert found.durations.tolist() == np.diff(np.rint([0, 4550 / 256, 8800 / 256, 11_000 / 256])).tolist()
    np.testing.assert_allclose(np.expm1(found.pitch), 120.0, rtol=5e-3)  # a period is a whole number of samples
    full = features.log_mel(torch.from_numpy(tone(11_000).astype(np.float32) / 32768))
    np.testing.assert_array_equal(found.mel, full[: len(found.mel)])


def test_phonemes_of_no_frame_at_the_end_are_left_out_and_others_kept():
    samples = tone(10_000)
    found = data.utterance("k", np.array([5, 6, 7, 8]), np.array([0, 3000, 3010, 10_000]), samples)
    assert found is not None
    assert found.phonemes.tolist() == [5, 6, 7]
    assert found.durations.tolist() == [12, 0, 27]
    assert np.isfinite(found.pitch).all()
    assert np.isfinite(found.energy).all()


def test_what_has_no_pitch_is_left_out():
    assert data.utterance("k", np.array([1]), np.array([0]), np.zeros(5000, np.int16)) is None


def test_corpus_survives_its_file(tmp_path):
    first = corpus()
    path = tmp_path / "corpus.npz"
    path.write_bytes(first.to_bytes())
    assert first.to_bytes() == path.read_bytes()
    again = data.Corpus.read(path)
    assert again.symbols == first.symbols
    assert again.keys == first.keys
    for row in range(5):
        for name in ("phonemes", "durations", "pitch", "energy", "mel"):
            np.testing.assert_array_equal(getattr(first[row], name), getattr(again[row], name))
    assert {split: rows.tolist() for split, rows in again.rows.items()} == {
        "train": [0, 1, 4],
        "validation": [2],
        "test": [3],
    }


def test_statistics_are_of_the_training_frames_alone():
    made = corpus()
    frames = np.concatenate([made[row].mel for row in (0, 1, 4)]).astype(np.float64)
    mean, deviation = made.statistics
    np.testing.assert_allclose(mean, frames.mean(axis=0), rtol=1e-5)  # float32
    np.testing.assert_allclose(deviation, np.maximum(frames.std(axis=0), 1e-2), rtol=1e-3)
    means, durations = made.phoneme_means
    at = np.concatenate([np.repeat(made[row].phonemes, made[row].durations) for row in (0, 1, 4)])
    np.testing.assert_allclose(means[2], frames[at == 2].mean(axis=0), rtol=1e-9)
    third = np.concatenate([made[row].durations[made[row].phonemes == 3] for row in (0, 1, 4)])
    assert durations[3] == third.mean()
    np.testing.assert_array_equal(means[0], mean)  # no phoneme is padding


def test_batches_are_padded_and_standardised():
    made = corpus()
    batch = made.batch(np.array([4, 0]))
    mean, deviation = made.statistics
    assert batch["frames"].tolist() == [made.frames[4], made.frames[0]]
    for i, row in enumerate((4, 0)):
        count, frames = made.lengths[row], made.frames[row]
        assert batch["phonemes"][i, :count].tolist() == made[row].phonemes.tolist()
        assert (batch["phonemes"][i, count:] == data.PAD).all()
        assert not batch["durations"][i, count:].any()
        restored = batch["mel"][i, :frames].numpy() * deviation + mean
        np.testing.assert_allclose(restored, made[row].mel, atol=1e-4)  # float32 values up to 12
        assert not batch["mel"][i, frames:].any()


def test_text_is_cleaned():
    assert data.cleaned('"The `son` [of man]  (so-called)"') == "The 'son' of man so called"
    assert data.letters("The 'son',  of Man.") == "the son of man"


@pytest.fixture
def chapters(monkeypatch):
    books = {
        "train": [
            b"In the beginning it was so, and it was good.\nIn the beginning it was so;",
            b"Short. And he said to them,",
        ],
        "validation": [b"And he said to them; this is another matter. Once upon a time `twas!"],
        "test": [b"And, he said: to them. Once upon a time `twas"],
    }
    monkeypatch.setattr(
        bible,
        "chapters",
        lambda translation, split: tuple(bible.Chapter(1, n, text) for n, text in enumerate(books[split])),
    )


def test_pieces_are_between_signs_and_held_out_ones_unheard(chapters):
    selection = data.SELECTIONS["phrases"]
    found = data.texts("phrases")
    assert sorted(found["train"]) == ["And he said to them,", "In the beginning it was so,", "and it was good."]
    assert found["validation"] == ["this is another matter."]
    assert found["test"] == ["Once upon a time 'twas"]
    low, high = selection.characters
    assert all(low <= len(text) <= high for texts in found.values() for text in texts)
    assert found["train"] == sorted(found["train"], key=data._digest)


def test_unknown_phoneme_is_one_line():
    with pytest.raises(ValueError, match="phoneme 'zz'") as error:
        data.tokens(["a", "zz"], ("a", "b"))
    assert "\n" not in str(error.value)
    assert data.tokens(["b", "a"], ("a", "b")).tolist() == [2, 1]


def test_inventories_name_each_phoneme_once():
    assert len(set(ESPEAK)) == len(ESPEAK) == 130
    assert len(set(ARPABET)) == len(ARPABET) == 3 + 24 + 15 * 3


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("linux", "aarch64"), ("win32", "AMD64")])
def test_other_platforms_are_told_what_to_do(tmp_path, monkeypatch, system, machine):
    monkeypatch.setenv("CAB_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(DataUnavailable, match=rf"Linux x86-64 only.*{system} {machine}.*data=original") as error:
        data.load("phrases")
    assert "\n" not in str(error.value)
    # A copied corpus is read all the same.
    folder = tmp_path / "derived" / data.SOURCE.sha256[:16]
    folder.mkdir(parents=True)
    content = corpus().to_bytes()
    (folder / "speech_phrases_2.npz").write_bytes(content)
    (folder / "speech_phrases_2.npz.sha256").write_text(hashlib.sha256(content).hexdigest())
    assert data.load("phrases").keys == corpus().keys


def test_a_library_that_does_not_load_is_one_line(tmp_path):
    (tmp_path / "libespeak-ng.so").write_bytes(b"not a library")
    with pytest.raises(DataUnavailable, match=r"speech synthesiser.*does not run here: OSError") as error:
        list(data._spoken(tmp_path, tmp_path, ["hello"]))
    assert "\n" not in str(error.value)


def test_the_synthesiser_s_process_needs_no_package_of_ours():
    names = {
        line.split()[1]
        for line in Path(espeak.__file__).read_text().splitlines()
        if line.startswith(("import ", "from "))
    }
    assert not any(name.startswith(("tasks", "cab", "attention_zoo", "torch")) for name in names)
