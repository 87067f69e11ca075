"""Text to speech with FastSpeech 2: data, backbone, loss, metrics and floors, joined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import Batch, Metric, Recipe, Slots, TaskCard
from tasks.tts import features
from tasks.tts.fastspeech2 import FastSpeech2, Spoken
from tasks.tts.task import (
    ENERGY_RANGE,
    FLOORS,
    LENGTH_ERROR,
    LICENCE,
    MCD,
    MCD_PER_REFERENCE,
    MSD,
    PAPER_BATCH,
    PAPER_RECIPE,
    PITCH_RANGE,
    SOURCE_TEXT,
    Lengths,
    TextToSpeech,
)

_FRAMES_PER_PHONEME = 5.6  # LJSpeech: 559 frames to 100 phonemes


@dataclass(frozen=True)
class Size(Lengths):
    """Lengths, the backbone, and how it is trained."""

    width: int
    heads: int
    hidden: int
    kernel: int
    layers: int  # of the encoder, and of the decoder
    predictor_hidden: int
    predictor_dropout: float
    bins: int
    dropout: float
    recipe: Recipe


BASE = Size(
    phonemes=256,
    frames=880,
    usual_phonemes=100,
    usual_frames=559,
    corpus="verses",
    batch=32,
    width=256,
    heads=2,
    hidden=1024,
    kernel=9,
    layers=4,
    predictor_hidden=256,
    predictor_dropout=0.5,
    bins=256,
    dropout=0.1,
    recipe=Recipe(max_steps=15_000, learning_rate=5e-4, warmup_steps=1_000, gradient_clip=5.0, weight_decay=0.0),
)

SIZES: Mapping[str, Size] = {
    "tiny": Size(
        phonemes=48,
        frames=160,
        usual_phonemes=24,
        usual_frames=120,
        corpus="phrases",
        batch=16,
        width=64,
        heads=4,
        hidden=128,
        kernel=9,
        layers=2,
        predictor_hidden=64,
        predictor_dropout=0.1,
        bins=64,
        dropout=0.0,
        recipe=Recipe(max_steps=600, learning_rate=3e-3, warmup_steps=60, weight_decay=0.0),
    ),
    "base": BASE,
    # The same network; CAB's training.
    "paper": replace(BASE, batch=PAPER_BATCH, recipe=PAPER_RECIPE),
}


class FastSpeech2Speech(TextToSpeech):
    """Speak a text in one pass; options as for :class:`tasks.tts.task.TextToSpeech`."""

    card: TaskCard = TaskCard(
        name="tts_fastspeech2",
        title="Text to speech (FastSpeech 2)",
        patterns=(Pattern.NONCAUSAL_SELF,),
        primary_pattern=Pattern.NONCAUSAL_SELF,
        metrics=(
            MCD,
            MSD,
            Metric(
                "mel_l1",
                "log magnitude",
                False,
                "mean absolute error of the mel frames with the true durations, pitch and energy being predicted",
            ),
            MCD_PER_REFERENCE,
            LENGTH_ERROR,
        ),
        lengths={name: (size.frames, None) for name, size in SIZES.items()},
        unit="utterance",
        floors=FLOORS,
        floor="mean_frame",
        source=SOURCE_TEXT,
        licence=LICENCE,
        citation="Ren et al., FastSpeech 2, ICLR 2021, arXiv:2006.04558; Weiss et al. (MCD), arXiv:2011.03568",
    )

    def __init__(
        self,
        *,
        size: str = "tiny",
        pattern: Pattern | str | None = None,
        data: str = "registry",
        data_root: str | None = None,
    ) -> None:
        super().__init__(size, pattern, data, data_root, SIZES)
        self.setting = SIZES[size]
        self.recipe = self.setting.recipe

    def build_model(self, slots: Slots) -> nn.Module:
        setting = self.setting
        return FastSpeech2(
            slots,
            symbols=len(self.symbols) + 1,
            max_phonemes=setting.phonemes,
            max_frames=setting.frames,
            bands=features.BANDS,
            width=setting.width,
            heads=setting.heads,
            hidden=setting.hidden,
            kernel=setting.kernel,
            encoder_layers=setting.layers,
            decoder_layers=setting.layers,
            predictor_hidden=setting.predictor_hidden,
            predictor_dropout=setting.predictor_dropout,
            bins=setting.bins,
            pitch_range=PITCH_RANGE,
            energy_range=ENERGY_RANGE,
            frames_per_phoneme=_FRAMES_PER_PHONEME,
            dropout=setting.dropout,
        )

    def tokens(self, batch: Batch) -> int:
        return int(batch["frames"].sum())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """L1 of the frames plus squared errors of log(1 + duration), pitch and energy (the paper's section 2.3).

        Durations, pitch and energy that the decoder sees are the true ones. Padding does not count.
        """
        device = next(model.parameters()).device
        given = {name: tensor.to(device) for name, tensor in batch.items()}
        phonemes, mel = given["phonemes"], given["mel"]
        spoken: Spoken = model(phonemes, given["durations"], given["pitch"], given["energy"], mel.shape[1])
        present = phonemes != 0
        time = torch.arange(mel.shape[1], device=device) < given["frames"][:, None]
        loss = nn.functional.l1_loss(spoken.mel.float()[time], mel[time])
        for predicted, wanted in (
            (spoken.log_durations, given["durations"].float().log1p()),
            (spoken.pitch, given["pitch"]),
            (spoken.energy, given["energy"]),
        ):
            loss = loss + nn.functional.mse_loss(predicted.float()[present], wanted[present])
        return loss

    def aligned(self, model: nn.Module, batch: Batch) -> Tensor:
        spoken: Spoken = model(batch["phonemes"], batch["durations"], length=batch["mel"].shape[1])
        return spoken.mel

    def speak(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        spoken: Spoken = model(batch["phonemes"])
        return [mel[:count] for mel, count in zip(spoken.mel, spoken.frames.tolist(), strict=True)]
