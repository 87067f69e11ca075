"""LJSpeech's layout, on a small fixture of tones: what is read, and what is said of missing and damaged files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.sources import DataUnavailable
from tasks.tts import original
from tasks.tts.fastspeech2_task import FastSpeech2Speech
from tasks.tts.symbols import ARPABET
from tasks.tts.vocoder import wav

NAMES = ("LJ001-0001", "LJ003-0001", "LJ004-0001", "LJ004-0002")
INTERVALS = [("sil", 0.1), ("HH", 0.11), ("AH0", 0.2), ("L", 0.15), ("sp", 0.1), ("OW1", 0.2), ("", 0.14)]


def grid(intervals: list[tuple[str, float]]) -> str:
    lines, start = [], 0.0
    for number, (text, length) in enumerate(intervals, start=1):
        times = f"            xmin = {start} \n            xmax = {start + length} \n"
        lines.append(f'        intervals [{number}]:\n{times}            text = "{text}" \n')
        start += length
    tier = "".join(lines)
    words = f'        intervals [1]:\n            xmin = 0 \n            xmax = {start} \n            text = "hello" \n'
    return (
        f'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0 \nxmax = {start} \n'
        f"tiers? <exists> \nsize = 2 \n"
        f'item []: \n    item [1]:\n        class = "IntervalTier" \n        name = "words" \n        xmin = 0 \n'
        f"        xmax = {start} \n        intervals: size = 1 \n{words}"
        f'    item [2]:\n        class = "IntervalTier" \n        name = "phones" \n        xmin = 0 \n'
        f"        xmax = {start} \n        intervals: size = {len(intervals)} \n{tier}"
    )


@pytest.fixture
def root(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("CAB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "LJSpeech-1.1"
    (folder / "wavs").mkdir(parents=True)
    folder.joinpath("metadata.csv").write_text("".join(f'{name}|Mr. "X"|mister "X"\n' for name in NAMES))
    with zipfile.ZipFile(folder / original.ALIGNMENT, "w") as archive:
        for name in NAMES:
            archive.writestr(f"{name}.TextGrid", grid(INTERVALS))
    for number, name in enumerate(NAMES):
        t = torch.arange(22_050) / 22_050
        tone = sum(0.1 * torch.sin(2 * torch.pi * k * (100 + 20 * number) * t) for k in range(1, 6))
        (folder / "wavs" / f"{name}.wav").write_bytes(wav(tone))
    return folder


def test_layout_is_read(root):
    corpus = original.load(root)
    assert corpus.keys == list(NAMES)
    assert {split: rows.tolist() for split, rows in corpus.rows.items()} == {
        "train": [2, 3],
        "validation": [1],
        "test": [0],
    }
    spoken = corpus[2]
    # The silences at both ends are cut off; bounds are the times from the first phone's, in hops of 256 samples.
    assert [ARPABET[token - 1] for token in spoken.phonemes] == ["HH", "AH0", "L", "sp", "OW1"]
    bounds = np.rint(np.cumsum([0, 0.11, 0.2, 0.15, 0.1, 0.2]) * 22_050 / 256).astype(int)
    assert spoken.durations.tolist() == np.diff(bounds).tolist()
    assert len(spoken.mel) == bounds[-1] == round(0.76 * 22_050 / 256)
    np.testing.assert_allclose(np.expm1(spoken.pitch), 140.0, rtol=5e-3)  # a period is a whole number of samples


def test_features_are_made_once_and_again_after_a_change(root, monkeypatch):
    first = original.load(root)
    made = []
    monkeypatch.setattr(original, "_aligned", lambda *arguments: made.append(arguments))
    np.testing.assert_array_equal(original.load(root).mel, first.mel)
    assert not made
    monkeypatch.undo()
    monkeypatch.setenv("CAB_CACHE", str(root.parent / "cache"))
    (root / "wavs" / f"{NAMES[2]}.wav").write_bytes(wav(0.1 * torch.sin(torch.arange(22_050) / 40)))
    assert not np.array_equal(original.load(root).mel, first.mel)


def test_task_reads_the_folder_that_it_is_given(root):
    task = FastSpeech2Speech(data="original", data_root=str(root))
    assert task.card.source == original.SOURCE
    assert FastSpeech2Speech.card.source != original.SOURCE
    assert len(task.symbols) == len(ARPABET)
    batch = next(task.batches("test", seed=0))
    assert batch["phonemes"].shape == (1, 5)


@pytest.mark.parametrize("missing", ["metadata.csv", f"wavs/{NAMES[1]}.wav", original.ALIGNMENT])
def test_missing_file_is_one_line_with_its_home(root, missing):
    (root / missing).unlink()
    with pytest.raises(DataUnavailable, match=rf"{Path(missing).name} is not in {root}.*https://") as error:
        original.load(root)
    assert "\n" not in str(error.value)


def rewrite(root: Path, name: str, content: str | None) -> None:
    with zipfile.ZipFile(root / original.ALIGNMENT, "w") as archive:
        for other in NAMES:
            text = content if other == name else grid(INTERVALS)
            if text is not None:
                archive.writestr(f"{other}.TextGrid", text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{NAMES[0]}|only text\n", "line 1: 2 columns"),
        (f"{NAMES[0]}|text|\n", "line 1: no normalised transcription"),
        ("|text|text\n", "line 1: no id"),
        (f"{NAMES[0]}|a|a\n{NAMES[0]}|b|b\n", "an id occurs twice"),
        ("", "no utterance"),
    ],
)
def test_wrong_metadata_is_one_line(root, content, message):
    (root / "metadata.csv").write_text(content)
    with pytest.raises(ValueError, match=rf"metadata\.csv.*{message}") as error:
        original.load(root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no LJ004-0001.TextGrid"),
        (grid(INTERVALS).replace('"phones"', '"phonemes"'), "0 tiers named 'phones'"),
        (grid([("sil", 0.5), ("", 0.5)]), "no phone but silence"),
        (grid([("HH", 0.5), ("XY", 0.5)]), "phoneme 'XY'"),
        (grid(INTERVALS).replace("xmin = 0.21", "xmin = 0.4"), "ends at 0.21 s and the next starts at 0.4 s"),
        (grid(INTERVALS).replace("xmax = 0.21", "xmax = soon"), "a time is not a number"),
        (grid([("HH", 3.0)]), "ends at 3.0 s, the recording at 1.00 s"),
    ],
)
def test_wrong_alignment_is_one_line(root, content, message):
    rewrite(root, NAMES[2], content)
    with pytest.raises(ValueError, match=message) as error:
        original.load(root)
    assert "\n" not in str(error.value)


def other_rate(content: bytes) -> bytes:
    return content.replace((22_050).to_bytes(4, "little"), (16_000).to_bytes(4, "little"), 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "not a WAV file"),
        (lambda content: b"garbage" * 100, "not a WAV file"),
        (lambda content: content[:1000], "truncated after"),
        (other_rate, "1 channels, 16 bits, 16000 Hz; expected"),
        (lambda content: wav(torch.zeros(22_050)), "no pitch anywhere"),
    ],
)
def test_damaged_recording_is_one_line(root, damage, message):
    path = root / "wavs" / f"{NAMES[2]}.wav"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{NAMES[2]}\.wav.*{message}") as error:
        original.load(root)
    assert "\n" not in str(error.value)


def test_damaged_archive_is_one_line(root):
    (root / original.ALIGNMENT).write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"ljspeech_mfa\.zip: not a ZIP archive"):
        original.load(root)
