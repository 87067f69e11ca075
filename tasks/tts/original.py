"""LJSpeech in its original layout, with phonemes and durations from a forced alignment. Knows nothing of models.

    <data_root>/metadata.csv        one line per utterance: id|transcription|normalised transcription
    <data_root>/wavs/<id>.wav       16 bits, one channel, 22,050 Hz
    <data_root>/ljspeech_mfa.zip    <id>.TextGrid per utterance, with a tier "phones" in ARPABET

The archive is what fairseq publishes for its LJSpeech example (Montreal Forced Aligner); silence before the first and
after the last phone is cut off, as there. Split as FastSpeech's (and fairseq's): chapters LJ001 and LJ002 are the test
part, LJ003 is the validation part. The features of all utterances are made once and kept in the cache folder.
"""

from __future__ import annotations

import hashlib
import re
import sys
import wave
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from tasks.contract import Split
from tasks.published import LJSPEECH
from tasks.sources import DataUnavailable, cache_folder
from tasks.tts.data import Corpus, Utterance, tokens, utterance
from tasks.tts.features import SAMPLE_RATE
from tasks.tts.symbols import ARPABET
from tasks.whole_file import write_whole

SOURCE = "LJSpeech 1.1 (K. Ito and L. Johnson, 2017): 13,100 utterances of one speaker, 24 h"
LICENCE = "public domain"
NAME = "LJSpeech-1.1"  # of its folder in the cache
HOME = "https://keithito.com/LJ-Speech-Dataset"
ALIGNMENT = "ljspeech_mfa.zip"
ALIGNMENT_HOME = "https://dl.fbaipublicfiles.com/fairseq/s2/ljspeech_mfa.zip"
HELD_OUT: dict[str, Split] = {"LJ001": "test", "LJ002": "test", "LJ003": "validation"}
_SILENCES = ("", "sil", "sp", "spn")
_FORMAT = 1  # of the cached arrays

_INTERVAL = re.compile(r'xmin\s*=\s*(\S+)\s+xmax\s*=\s*(\S+)\s+text\s*=\s*"((?:[^"]|"")*)"')


def _need(path: Path, home: str) -> Path:
    if not path.exists():
        raise DataUnavailable(f"{path.name} is not in {path.parent}: get it from {home} and put it there")
    return path


def identifiers(path: Path) -> list[str]:
    """The utterances of ``metadata.csv``, in its order; ``ValueError`` for a line without a transcription."""
    found: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        columns = line.split("|")
        if len(columns) != 3:
            raise ValueError(f"{path}, line {number}: {len(columns)} columns between '|', expected 3")
        name, _, normalised = (column.strip() for column in columns)
        if not name or not normalised:
            raise ValueError(f"{path}, line {number}: no {'id' if not name else 'normalised transcription'}")
        found.append(name)
    if not found:
        raise ValueError(f"{path}: no utterance")
    if len(set(found)) != len(found):
        raise ValueError(f"{path}: an id occurs twice")
    return found


def samples(path: Path) -> np.ndarray:
    """The waveform of a WAV file, int16 [N]; ``ValueError`` for another form, or for a damaged file."""
    try:
        with wave.open(str(path), "rb") as file:
            form = (file.getnchannels(), 8 * file.getsampwidth(), file.getframerate())
            if form != (1, 16, SAMPLE_RATE):
                raise ValueError(
                    f"{path}: {form[0]} channels, {form[1]} bits, {form[2]} Hz; expected 1, 16, {SAMPLE_RATE}"
                )
            content = file.readframes(file.getnframes())
            if len(content) != 2 * file.getnframes():
                raise ValueError(f"{path}: truncated after {len(content) // 2} of {file.getnframes()} samples")
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path}: not a WAV file that can be read ({error or 'too short'})") from error
    return np.frombuffer(content, dtype="<i2").astype(np.int16)


def phones(content: str, name: str) -> list[tuple[float, float, str]]:
    """Start, end (seconds) and symbol of each interval of the tier ``phones`` of a TextGrid in Praat's long form."""
    tiers = re.split(r"item\s*\[\d+\]\s*:", content)
    found = [tier for tier in tiers if re.search(r'name\s*=\s*"phones"', tier)]
    if len(found) != 1:
        raise ValueError(f"{name}: {len(found)} tiers named 'phones', expected 1")
    try:
        intervals = [(float(start), float(end), text) for start, end, text in _INTERVAL.findall(found[0])]
        declared = int(re.findall(r"intervals:\s*size\s*=\s*(\d+)", found[0])[0])
    except ValueError as error:
        raise ValueError(f"{name}: a time is not a number ({error})") from error
    except IndexError as error:
        raise ValueError(f"{name}: the tier 'phones' has no intervals") from error
    if len(intervals) != declared:
        raise ValueError(f"{name}: {len(intervals)} intervals that can be read, {declared} declared")
    voiced = [index for index, (_, _, text) in enumerate(intervals) if text not in _SILENCES]
    if not voiced:
        raise ValueError(f"{name}: no phone but silence")
    intervals = intervals[voiced[0] : voiced[-1] + 1]
    for (_, end, _), (start, _, _) in pairwise(intervals):
        if abs(start - end) > 1e-3:
            raise ValueError(f"{name}: an interval ends at {end:g} s and the next starts at {start:g} s")
    return [(start, end, text or "sil") for start, end, text in intervals]


def _aligned(root: Path, name: str, archive: zipfile.ZipFile) -> Utterance:
    member = f"{name}.TextGrid"
    try:
        content = archive.read(member).decode("utf-8")
    except KeyError as error:
        raise ValueError(f"{root / ALIGNMENT}: no {member}") from error
    intervals = phones(content, f"{ALIGNMENT}:{member}")
    waveform = samples(_need(root / "wavs" / f"{name}.wav", HOME))
    first, last = round(intervals[0][0] * SAMPLE_RATE), round(intervals[-1][1] * SAMPLE_RATE)
    if last > len(waveform) + SAMPLE_RATE // 20:
        raise ValueError(
            f"{ALIGNMENT}:{member}: ends at {intervals[-1][1]} s, the recording at {len(waveform) / SAMPLE_RATE:.2f} s"
        )
    starts = np.array([start for start, _, _ in intervals]) * SAMPLE_RATE - first
    analysed = utterance(name, tokens([text for _, _, text in intervals], ARPABET), starts, waveform[first:last])
    if analysed is None:
        raise ValueError(f"{root / 'wavs' / name}.wav: no pitch anywhere (silence, or not speech)")
    return analysed


def _utterances(root: Path, names: list[str]) -> Iterator[tuple[Split, Utterance]]:
    try:
        with zipfile.ZipFile(_need(root / ALIGNMENT, ALIGNMENT_HOME)) as archive:
            for number, name in enumerate(names, start=1):
                yield HELD_OUT.get(name.partition("-")[0], "train"), _aligned(root, name, archive)
                if number % 1000 == 0:
                    print(f"cab: LJSpeech: {number} of {len(names)} utterances", file=sys.stderr, flush=True)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{root / ALIGNMENT}: not a ZIP archive ({error})") from error


def _fingerprint(root: Path, names: list[str]) -> str:
    """Changes with the code's format, the alignment, and the recordings' names, sizes and times."""
    parts = [str(_FORMAT), *ARPABET]
    for path in (root / ALIGNMENT, *(root / "wavs" / f"{name}.wav" for name in names)):
        status = _need(path, ALIGNMENT_HOME if path.name == ALIGNMENT else HOME).stat()
        parts.append(f"{path.name}:{status.st_size}:{status.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def load(root: Path) -> Corpus:
    """The corpus; its features are made once (some minutes) and kept in the cache folder.

    Raises:
        DataUnavailable: a file is missing.
        ValueError: a file is damaged, or of another form.
    """
    LJSPEECH.into(root)
    names = identifiers(_need(root / "metadata.csv", HOME))
    cached = cache_folder() / "derived" / "LJSpeech" / f"{_fingerprint(root, names)[:32]}.npz"
    if not cached.is_file():
        corpus = Corpus.of(ARPABET, _utterances(root, names))
        write_whole(cached, corpus.to_bytes())
    return Corpus.read(cached)
