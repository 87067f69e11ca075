"""Text to speech with Transformer-TTS: data, backbone, loss, metrics and floors, joined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import Batch, Metric, Recipe, Scores, Slots, Split, TaskCard
from tasks.options import whole
from tasks.tts import features
from tasks.tts.task import (
    FLOORS,
    LENGTH_ERROR,
    LICENCE,
    MCD,
    MCD_PER_REFERENCE,
    MSD,
    PAPER_BATCH,
    PAPER_RECIPE,
    SOURCE_TEXT,
    Lengths,
    TextToSpeech,
)
from tasks.tts.transformer_tts import Spoken, TransformerTTS

_STOP_WEIGHT = 5.0  # of the one step that is the last, as CAB


@dataclass(frozen=True)
class Size(Lengths):
    """Lengths, the backbone, and how it is trained."""

    frames_per_step: int
    width: int
    heads: int
    hidden: int
    layers: int  # of the encoder, and of the decoder
    encoder_convolutions: int
    prenet_hidden: int
    postnet_hidden: int
    postnet_layers: int
    dropout: float
    side_dropout: float
    history_dropout: float
    recipe: Recipe


SIZES: Mapping[str, Size] = {
    "tiny": Size(
        phonemes=48,
        frames=160,
        usual_phonemes=24,
        usual_frames=120,
        corpus="phrases",
        batch=16,
        frames_per_step=4,
        width=64,
        heads=4,
        hidden=128,
        layers=2,
        encoder_convolutions=1,
        prenet_hidden=64,
        postnet_hidden=64,
        postnet_layers=2,
        dropout=0.0,
        side_dropout=0.0,
        history_dropout=0.5,
        recipe=Recipe(max_steps=1_200, learning_rate=5e-3, warmup_steps=120, weight_decay=0.0),
    ),
    "base": Size(
        phonemes=256,
        frames=880,
        usual_phonemes=100,
        usual_frames=559,
        corpus="verses",
        batch=32,
        frames_per_step=4,
        width=256,
        heads=4,
        hidden=1024,
        layers=4,
        encoder_convolutions=3,
        prenet_hidden=256,
        postnet_hidden=256,
        postnet_layers=5,
        dropout=0.1,
        side_dropout=0.5,
        history_dropout=0.0,
        recipe=Recipe(max_steps=20_000, learning_rate=5e-4, warmup_steps=1_000, gradient_clip=5.0, weight_decay=0.0),
    ),
    "paper": Size(
        phonemes=256,
        frames=880,
        usual_phonemes=100,
        usual_frames=559,
        corpus="verses",
        batch=PAPER_BATCH,
        frames_per_step=4,
        width=512,
        heads=4,
        hidden=2048,
        layers=6,
        encoder_convolutions=3,
        prenet_hidden=256,
        postnet_hidden=512,
        postnet_layers=5,
        dropout=0.1,
        side_dropout=0.5,
        history_dropout=0.0,
        recipe=PAPER_RECIPE,
    ),
}


class TransformerSpeech(TextToSpeech):
    """Speak a text step by step; options as for :class:`tasks.tts.task.TextToSpeech`, and

    Args:
        frames_per_step: mel frames that a step predicts; None means: as the size says.
    """

    card: TaskCard = TaskCard(
        name="tts_transformer",
        title="Text to speech (Transformer-TTS)",
        patterns=(Pattern.NONCAUSAL_SELF, Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS),
        primary_pattern=Pattern.CAUSAL_CROSS,
        metrics=(
            MCD,
            MSD,
            Metric(
                "mel_l1",
                "log magnitude",
                False,
                "mean absolute error of the mel frames before the post-net, each step given the true frames before it",
            ),
            MCD_PER_REFERENCE,
            LENGTH_ERROR,
        ),
        lengths={name: (-(-size.frames // size.frames_per_step), size.phonemes) for name, size in SIZES.items()},
        unit="utterance",
        floors=FLOORS | {"previous_frame": "the true frame before each step, again (mel error only)"},
        floor="mean_frame",
        source=SOURCE_TEXT,
        licence=LICENCE,
        citation="Li et al., Transformer-TTS, AAAI 2019, arXiv:1809.08895; Weiss et al. (MCD), arXiv:2011.03568",
    )

    def __init__(
        self,
        *,
        size: str = "tiny",
        pattern: Pattern | str | None = None,
        data: str = "registry",
        data_root: str | None = None,
        frames_per_step: int | None = None,
    ) -> None:
        super().__init__(size, pattern, data, data_root, SIZES)
        self.setting = SIZES[size]
        self.recipe = self.setting.recipe
        self.frames_per_step = whole(
            "frames_per_step",
            self.setting.frames_per_step if frames_per_step is None else frames_per_step,
            at_least=1,
            at_most=self.setting.frames,
            why="mel frames",
        )
        self.max_steps = -(-self.setting.frames // self.frames_per_step)

    @property
    def lengths(self) -> tuple[int, int | None]:
        if self.pattern is Pattern.NONCAUSAL_SELF:
            return self.setting.phonemes, None
        return self.max_steps, self.setting.phonemes if self.pattern.is_cross else None

    def build_model(self, slots: Slots) -> nn.Module:
        setting = self.setting
        return TransformerTTS(
            slots,
            symbols=len(self.symbols) + 1,
            max_phonemes=setting.phonemes,
            max_steps=self.max_steps,
            bands=features.BANDS,
            frames_per_step=self.frames_per_step,
            width=setting.width,
            heads=setting.heads,
            hidden=setting.hidden,
            encoder_layers=setting.layers,
            decoder_layers=setting.layers,
            encoder_convolutions=setting.encoder_convolutions,
            prenet_hidden=setting.prenet_hidden,
            postnet_hidden=setting.postnet_hidden,
            postnet_layers=setting.postnet_layers,
            dropout=setting.dropout,
            side_dropout=setting.side_dropout,
            history_dropout=setting.history_dropout,
        )

    def tokens(self, batch: Batch) -> int:
        """Steps, or phonemes where the encoder's attention is under test."""
        if self.pattern is Pattern.NONCAUSAL_SELF:
            return int((batch["phonemes"] != 0).sum())
        return int(self._steps(batch["frames"]).sum())

    def _steps(self, frames: Tensor) -> Tensor:
        return (frames + self.frames_per_step - 1) // self.frames_per_step

    def _grouped(self, mel: Tensor) -> Tensor:
        """Frames of a step side by side: [B, Lt, 80] to [B, S, G], filled up with zeros."""
        missing = -mel.shape[1] % self.frames_per_step
        filled = nn.functional.pad(mel, (0, 0, 0, missing))
        return filled.unflatten(1, (-1, self.frames_per_step)).flatten(2)

    def _ungrouped(self, grouped: Tensor) -> Tensor:
        return grouped.unflatten(2, (self.frames_per_step, features.BANDS)).flatten(1, 2)

    def _forced(self, model: nn.Module, phonemes: Tensor, mel: Tensor, frames: Tensor) -> tuple[Spoken, Tensor]:
        """The outputs with the true frames as inputs, and where a step is padding."""
        target = self._grouped(mel)
        previous = nn.functional.pad(target, (0, 0, 1, 0))[:, :-1]
        padding = torch.arange(target.shape[1], device=mel.device) >= self._steps(frames)[:, None]
        return model(phonemes, previous, padding), padding

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """L1 plus squared errors of the frames before and after the post-net, plus the stop token's cross-entropy.

        The last step's stop counts five times. Padding does not count.
        """
        device = next(model.parameters()).device
        given = {name: tensor.to(device) for name, tensor in batch.items()}
        mel, frames = given["mel"], given["frames"]
        spoken, padding = self._forced(model, given["phonemes"], mel, frames)
        time = torch.arange(mel.shape[1], device=device) < frames[:, None]
        wanted = mel[time]
        loss = torch.zeros((), device=device)
        for output in (spoken.causal, spoken.refined):
            said = self._ungrouped(output.float())[:, : mel.shape[1]][time]
            loss = loss + nn.functional.l1_loss(said, wanted) + nn.functional.mse_loss(said, wanted)
        last = torch.arange(padding.shape[1], device=device) == self._steps(frames)[:, None] - 1
        weight = torch.tensor(_STOP_WEIGHT, device=device)
        present = ~padding
        return loss + nn.functional.binary_cross_entropy_with_logits(
            spoken.stop.float()[present], last.float()[present], pos_weight=weight
        )

    def aligned(self, model: nn.Module, batch: Batch) -> Tensor:
        spoken, _ = self._forced(model, batch["phonemes"], batch["mel"], batch["frames"])
        return self._ungrouped(spoken.causal)[:, : batch["mel"].shape[1]]

    def speak(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        assert isinstance(model, TransformerTTS)
        grouped, steps = model.generate(batch["phonemes"])
        counts = (steps * self.frames_per_step).tolist()
        return [mel[:count] for mel, count in zip(self._ungrouped(grouped), counts, strict=True)]

    def floors(self, split: Split) -> Mapping[str, Scores]:
        rows, corpus = self.rows(split), self.corpus
        errors = []
        for row in rows:
            mel = corpus[row].mel
            steps = np.arange(len(mel)) // self.frames_per_step
            before = np.concatenate((corpus.statistics[0][None], mel))[steps * self.frames_per_step]
            errors.append(self._mel_error(row, before))
        previous = Scores(
            units=[corpus.keys[row] for row in rows],
            values={"mel_l1": np.array(errors)},
            weights={"mel_l1": corpus.frames[rows].astype(np.float64)},
        )
        return {**super().floors(split), "previous_frame": previous}
