"""The registry's speech as it is: fetched (10 MB and the text) and synthesised once, then from the cache."""

from __future__ import annotations

import hashlib
import zipfile

import numpy as np
import pytest

from tasks.tts import data
from tasks.tts.fastspeech2_task import FastSpeech2Speech


@pytest.mark.slow
def test_speech_is_what_the_card_says():
    corpus = FastSpeech2Speech().corpus
    assert {split: len(rows) for split, rows in corpus.rows.items()} == {"train": 1600, "validation": 96, "test": 128}
    assert len(set(corpus.keys)) == len(corpus.keys) == 1824
    assert np.isfinite(corpus.mel.astype(np.float32)).all()
    assert corpus.frames.max() <= 160
    assert corpus.lengths.max() <= 48
    texts = data.texts("phrases")
    letters = {split: {data.letters(text) for text in texts[split]} for split in texts}
    assert not letters["train"] & (letters["validation"] | letters["test"])
    assert not letters["validation"] & letters["test"]
    said = {split: {tuple(corpus[row].phonemes) for row in corpus.rows[split]} for split in data.SPLITS}
    assert not said["train"] & said["test"]
    voiced = np.expm1(corpus.pitch)
    assert 90 < np.median(voiced) < 120  # Hz: the voice's
    values = {name: scores.values for name, scores in FastSpeech2Speech().floors("test").items()}
    assert (values["phoneme_mean"]["mcd"] < values["mean_frame"]["mcd"]).mean() > 0.99
    assert (values["phoneme_mean"]["mel_l1"] < values["mean_frame"]["mel_l1"]).mean() > 0.99


@pytest.mark.slow
def test_the_synthesiser_repeats_itself(tmp_path):
    with zipfile.ZipFile(data.SOURCE.wheel()) as archive:
        archive.extractall(tmp_path, [f"espeakng_loader/{member}" for member in data._MEMBERS])
    texts = ["In the beginning, God created the heavens and the earth.", "Jesus wept.", "Jesus wept."]
    first, again = (list(data._spoken(tmp_path / "espeakng_loader", tmp_path, texts)) for _ in range(2))
    for (samples, names, starts), (samples_, names_, starts_) in zip(first, again, strict=True):
        np.testing.assert_array_equal(samples, samples_)
        np.testing.assert_array_equal(starts, starts_)
        assert names.tolist() == names_.tolist()
    samples, names, starts = first[1]
    assert names.tolist()[:8] == ["dZ", "'i:", "z", "@", "s", "w", "'E", "p"]
    assert len(samples) == 17_447
    assert (np.diff(starts) >= 0).all()
    assert hashlib.sha256(first[0][0].astype("<i2").tobytes()).hexdigest()[:12] == "cc4c46cc5cd9"
