"""Aligned speech as arrays: phonemes with durations, pitch and energy, and log-mel frames. Knows nothing of models.

The registry's speech is synthetic: eSpeak NG's American English voice (a formant synthesiser), reading the World
English Bible, which is in the public domain. Phonemes and their places come from the synthesiser itself. Two corpora:
``phrases`` (parts of verses between signs, 12 to 36 characters) and ``verses`` (40 to 140 characters, about as long as
LJSpeech's utterances). Split by whole books, as ``tasks.bible`` does; a held-out text whose letters also occur in a
training book is left out, and so is a validation text that occurs in a test book.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from attention_zoo.errors import UnknownName
from tasks import bible
from tasks.contract import Batch, Split
from tasks.options import chosen
from tasks.sources import DataUnavailable, Source, cache_folder, derived, scratch_folder
from tasks.tts import espeak, features
from tasks.tts.symbols import ESPEAK

SOURCE = Source(
    package="espeakng-loader",
    version="0.2.4",
    sha256="08721baf27d13d461f6be6eed9a65277e70d68234ff484fd8b9897b222cdcb6d",
    size=10_078_484,
    licence="eSpeak NG is GPL-3.0-or-later: fetched as data, run in a process of its own, never redistributed",
    description="a speech synthesiser",
    tags="py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64",
)
_MEMBERS = (  # what American English needs of the 20 MB
    "libespeak-ng.so",
    "espeak-ng-data/en_dict",
    "espeak-ng-data/intonations",
    "espeak-ng-data/lang/gmw/en-US",
    "espeak-ng-data/phondata",
    "espeak-ng-data/phonindex",
    "espeak-ng-data/phontab",
)

PAD = 0  # the token that fills up; phoneme i of a corpus's symbols is token i + 1

_PRECEDENCE: tuple[Split, ...] = ("train", "test", "validation")  # of texts that several splits have
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
TRANSLATION = "world_english"
_PER_PROCESS = 100  # texts that one process speaks
_BREAK = re.compile(r"(?<=[.;:?!,])\s+")
_FORMAT = 2  # of the cached arrays


@dataclass(frozen=True)
class Selection:
    """What is taken from the text: characters of a piece, the longest in frames, and how many per split."""

    characters: tuple[int, int]
    frames: int
    counts: Mapping[Split, int]
    whole_verses: bool


SELECTIONS: Mapping[str, Selection] = {
    "phrases": Selection((12, 36), 160, {"train": 1600, "validation": 96, "test": 128}, whole_verses=False),
    "verses": Selection((40, 140), 880, {"train": 2000, "validation": 96, "test": 128}, whole_verses=True),
}


@dataclass(frozen=True)
class Utterance:
    """An utterance of L phonemes and T frames.

    Attributes:
        key: its name; equal for equal texts.
        phonemes: [L] tokens, from 1 on.
        durations: [L] frames of each phoneme; their sum is T.
        pitch, energy: [L] means over the phoneme's frames: ``log(1 + Hz)`` with gaps filled, ``log(1 + norm)``.
        mel: [T, 80] log-mel frames.
    """

    key: str
    phonemes: np.ndarray
    durations: np.ndarray
    pitch: np.ndarray
    energy: np.ndarray
    mel: np.ndarray


def utterance(key: str, phonemes: np.ndarray, starts: np.ndarray, samples: np.ndarray) -> Utterance | None:
    """Features of a waveform whose phoneme i starts at sample ``starts[i]``; None where nothing of it has a pitch.

    Args:
        key: of the utterance.
        phonemes: [L] tokens.
        starts: [L] samples, not decreasing; what comes before the first belongs to it.
        samples: int16 waveform, one channel, 22,050 Hz.
    """
    waveform = torch.from_numpy(samples.astype(np.float32) / 32768)
    frames = round(len(samples) / features.HOP)
    bounds = np.append(np.clip(np.rint(starts / features.HOP).astype(np.int64), 0, frames), frames)
    bounds[0] = 0
    durations = np.diff(bounds)
    kept = len(durations) if durations[-1] else int(np.flatnonzero(durations)[-1]) + 1
    phonemes, durations = phonemes[:kept], durations[:kept]
    hertz = features.pitch(waveform.numpy())[:frames]
    if not hertz.any():
        return None
    pitch = features.mean_per_phoneme(np.log1p(features.without_gaps(hertz)), durations)
    energy = features.mean_per_phoneme(features.log_energy(waveform).double().numpy()[:frames], durations)
    mel = features.log_mel(waveform).numpy()[:frames]
    return Utterance(key, phonemes.astype(np.int64), durations, pitch, energy, mel)


@dataclass(frozen=True)
class Corpus:
    """Utterances, flat: those of utterance i end at ``phoneme_ends[i]`` and at ``frame_ends[i]``.

    Attributes:
        symbols: names of the phonemes; token i + 1 is symbol i.
        keys: of the utterances, all different.
        split: per utterance, the number of its split in ``SPLITS``.
        phonemes, durations, pitch, energy: per phoneme.
        mel: [frames, 80] float16.
    """

    symbols: tuple[str, ...]
    keys: list[str]
    split: np.ndarray
    phoneme_ends: np.ndarray
    frame_ends: np.ndarray
    phonemes: np.ndarray
    durations: np.ndarray
    pitch: np.ndarray
    energy: np.ndarray
    mel: np.ndarray

    @classmethod
    def of(cls, symbols: Sequence[str], utterances: Iterable[tuple[Split, Utterance]]) -> Corpus:
        splits: list[int] = []
        kept: list[Utterance] = []
        mels: list[np.ndarray] = []
        for split, spoken in utterances:
            splits.append(SPLITS.index(split))
            mels.append(spoken.mel.astype(np.float16))
            kept.append(spoken)
        if not kept:
            raise ValueError("a corpus of no utterance")
        return cls(
            tuple(symbols),
            [spoken.key for spoken in kept],
            np.array(splits),
            np.cumsum([len(spoken.phonemes) for spoken in kept]),
            np.cumsum([len(mel) for mel in mels]),
            np.concatenate([spoken.phonemes for spoken in kept]),
            np.concatenate([spoken.durations for spoken in kept]),
            np.concatenate([spoken.pitch for spoken in kept]).astype(np.float32),
            np.concatenate([spoken.energy for spoken in kept]).astype(np.float32),
            np.concatenate(mels),
        )

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        names = ("split", "phoneme_ends", "frame_ends", "phonemes", "durations", "pitch", "energy", "mel")
        arrays = {name: getattr(self, name) for name in names}
        np.savez(buffer, symbols=np.array(self.symbols), keys=np.array(self.keys), **arrays)
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> Corpus:
        names = ("split", "phoneme_ends", "frame_ends", "phonemes", "durations", "pitch", "energy", "mel")
        with np.load(path, allow_pickle=False) as arrays:
            symbols, keys = tuple(arrays["symbols"].tolist()), arrays["keys"].tolist()
            return cls(symbols, keys, *(arrays[name] for name in names))

    @cached_property
    def rows(self) -> Mapping[Split, np.ndarray]:
        """Numbers of the utterances of each split."""
        return {name: np.flatnonzero(self.split == number) for number, name in enumerate(SPLITS)}

    @cached_property
    def frames(self) -> np.ndarray:
        """Frames of each utterance, [N]."""
        return np.diff(self.frame_ends, prepend=0)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Phonemes of each utterance, [N]."""
        return np.diff(self.phoneme_ends, prepend=0)

    def __getitem__(self, row: int) -> Utterance:
        phoneme = slice(self.phoneme_ends[row] - self.lengths[row], self.phoneme_ends[row])
        return Utterance(
            self.keys[row],
            self.phonemes[phoneme],
            self.durations[phoneme],
            self.pitch[phoneme],
            self.energy[phoneme],
            self.mel[self.frame_ends[row] - self.frames[row] : self.frame_ends[row]].astype(np.float32),
        )

    def training(self) -> Iterator[Utterance]:
        for row in self.rows["train"]:
            yield self[row]

    @cached_property
    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each mel band over all training frames, float32 [80] each."""
        count, total, squares = 0, np.zeros(features.BANDS), np.zeros(features.BANDS)
        for spoken in self.training():
            mel = spoken.mel.astype(np.float64)
            count, total, squares = count + len(mel), total + mel.sum(axis=0), squares + (mel**2).sum(axis=0)
        if not count:
            raise ValueError(f"no utterance in the training part of {len(self.keys)}")
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, 1e-4))
        return mean.astype(np.float32), deviation.astype(np.float32)

    @cached_property
    def mean_frames_per_phoneme(self) -> float:
        train = self.rows["train"]
        return float(self.frames[train].sum() / self.lengths[train].sum())

    @cached_property
    def phoneme_means(self) -> tuple[np.ndarray, np.ndarray]:
        """Per token, over the training part: mean frame [V + 1, 80] and mean duration [V + 1]; of all where unseen."""
        size = len(self.symbols) + 1
        total, frames, count = np.zeros((size, features.BANDS)), np.zeros(size), np.zeros(size)
        for spoken in self.training():
            np.add.at(total, np.repeat(spoken.phonemes, spoken.durations), spoken.mel)
            np.add.at(frames, spoken.phonemes, spoken.durations)
            np.add.at(count, spoken.phonemes, 1)
        means = np.where(frames[:, None] > 0, total / np.maximum(frames, 1)[:, None], self.statistics[0])
        return means, np.where(count > 0, frames / np.maximum(count, 1), self.mean_frames_per_phoneme)

    def batch(self, rows: np.ndarray) -> Batch:
        """Utterances padded to their longest, mel frames standardised by band.

        ``phonemes``, ``durations`` int64 [B, Ls]; ``pitch``, ``energy`` [B, Ls]; ``mel`` [B, Lt, 80]; ``frames`` [B].
        Padding is ``PAD`` and zeros.
        """
        chosen = [self[row] for row in rows]
        mean, deviation = self.statistics
        shape = (len(rows), int(self.lengths[rows].max()))
        phonemes, durations = np.full(shape, PAD, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        pitch, energy = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
        mel = np.zeros((len(rows), int(self.frames[rows].max()), features.BANDS), dtype=np.float32)
        for i, spoken in enumerate(chosen):
            count = len(spoken.phonemes)
            phonemes[i, :count], durations[i, :count] = spoken.phonemes, spoken.durations
            pitch[i, :count], energy[i, :count] = spoken.pitch, spoken.energy
            mel[i, : len(spoken.mel)] = (spoken.mel - mean) / deviation
        arrays = {"phonemes": phonemes, "durations": durations, "pitch": pitch, "energy": energy, "mel": mel}
        return {name: torch.from_numpy(array) for name, array in (arrays | {"frames": self.frames[rows]}).items()}


def cleaned(text: str) -> str:
    """Text to be spoken: the source's backquotes are apostrophes; quotation marks, brackets, hyphens are left out."""
    return " ".join(re.sub(r'["\[\]()]', "", text.replace("`", "'")).replace("-", " ").split())


def letters(text: str) -> str:
    """What two texts have in common that sound alike: letters and spaces, in lower case."""
    return " ".join(re.findall(r"[a-z]+", text.lower()))


def pieces(split: Split, selection: Selection) -> list[str]:
    """The texts of a split's books, cleaned, each once, in an order that their own digests give."""
    low, high = selection.characters
    found: dict[str, str] = {}
    for chapter in bible.chapters(TRANSLATION, split):
        for verse in chapter.text.decode().splitlines():
            for piece in [verse] if selection.whole_verses else _BREAK.split(verse):
                text = cleaned(piece)
                if low <= len(text) <= high and letters(text):
                    found.setdefault(letters(text), text)
    return sorted(found.values(), key=_digest)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def texts(kind: str) -> Mapping[Split, list[str]]:
    """Candidates per split; no text of one split sounds like a text of another's books.

    What several splits have belongs to the training part, and else to the test part.
    """
    selection = chosen("corpus", kind, SELECTIONS)
    found: dict[Split, list[str]] = {split: pieces(split, selection) for split in SPLITS}
    taken: set[str] = set()
    for split in _PRECEDENCE:
        found[split] = [text for text in found[split] if letters(text) not in taken]
        taken |= {letters(text) for text in found[split]}
    return found


def _spoken(library: Path, folder: Path, wanted: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Per text its samples, names of its phonemes, and their starts; spoken by one process of its own."""
    listed, output = folder / "texts.json", folder / "spoken.npz"
    listed.write_text(json.dumps(list(wanted)))
    command = [sys.executable, "-P", espeak.__file__, str(library), str(listed), str(output)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise DataUnavailable(f"the speech synthesiser of {SOURCE.filename} does not run here: {lines[-1]}")
    with np.load(output, allow_pickle=False) as arrays:
        samples = np.split(arrays["samples"], arrays["sample_ends"][:-1])
        names = np.split(arrays["names"], arrays["phoneme_ends"][:-1])
        starts = np.split(arrays["starts"], arrays["phoneme_ends"][:-1])
    yield from zip(samples, names, starts, strict=True)


def tokens(names: Iterable[str], symbols: Sequence[str]) -> np.ndarray:
    """Token of each phoneme; :class:`UnknownName` (one line) for one that is not among the symbols."""
    number = {symbol: token for token, symbol in enumerate(symbols, start=1)}
    try:
        return np.array([number[str(name)] for name in names], dtype=np.int64)
    except KeyError as error:
        raise UnknownName("phoneme", str(error.args[0]), symbols) from error


def synthesise(wheel: Path, kind: str) -> bytes:
    """The corpus as cached: the first texts of each split that are short enough, spoken and analysed."""
    selection = chosen("corpus", kind, SELECTIONS)
    kept: list[tuple[Split, Utterance]] = []
    with scratch_folder() as scratch:
        folder = Path(scratch)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [f"espeakng_loader/{member}" for member in _MEMBERS])
        for split, candidates in texts(kind).items():
            kept += [(split, spoken) for spoken in _take(folder, candidates, selection, selection.counts[split])]
            print(f"cab: speech {kind}: {len(kept)} utterances, {split} done", file=sys.stderr, flush=True)
    return Corpus.of(ESPEAK, kept).to_bytes()


def _take(folder: Path, candidates: Sequence[str], selection: Selection, count: int) -> list[Utterance]:
    kept: list[Utterance] = []
    for first in range(0, len(candidates), _PER_PROCESS):
        wanted = candidates[first : first + _PER_PROCESS]
        spoken = _spoken(folder / "espeakng_loader", folder, wanted)
        for text, (samples, names, starts) in zip(wanted, spoken, strict=True):
            if not len(names) or round(len(samples) / features.HOP) > selection.frames:
                continue
            analysed = utterance(_digest(text)[:16], tokens(names, ESPEAK), starts, samples)
            if analysed is not None:
                kept.append(analysed)
            if len(kept) == count:
                return kept
    raise ValueError(f"{len(kept)} of {count} utterances: the text has no more of {selection.frames} frames")


def load(kind: str) -> Corpus:
    """A corpus of the registry; from the cache after the first call on a machine.

    Raises:
        DataUnavailable: it is not cached, and this machine cannot load the synthesiser (Linux on x86-64 only).
    """
    name = f"speech_{kind}_{_FORMAT}.npz"
    folder = cache_folder() / "derived" / SOURCE.sha256[:16]
    if not (folder / name).is_file() and (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise DataUnavailable(
            f"{SOURCE.filename} speaks on Linux x86-64 only, and this is {sys.platform} {platform.machine()}: copy"
            f" {name} and {name}.sha256 from such a machine into {folder}, or use data=original"
        )
    return Corpus.read(derived(name, SOURCE, lambda wheel: synthesise(wheel, kind)))
