"""Next-token prediction on real text: data, decoder, loss, metrics and floors, joined."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks import bible
from tasks.contract import Artifact, Batch, Metric, Recipe, Scores, Slots, Split, TaskCard
from tasks.decoding import Limits, Sampler, continue_prompts
from tasks.lm import data
from tasks.lm.model import Decoder, blank_tokens
from tasks.options import whole
from tasks.schedules import inverse_square_root
from tasks.text import Text
from tasks.text_task import TextTask

SAMPLE_TOKENS = 200


@dataclass(frozen=True)
class Size:
    """Length in tokens, the backbone, how it is trained, and how much of each held-out document is scored.

    ``vocabulary`` None: tokens are bytes; otherwise at most so many subwords, and so many rows of the embedding.
    """

    length: int
    vocabulary: int | None
    width: int
    heads: int
    hidden: int
    layers: int
    tied: bool
    batch: int
    windows_per_document: int
    recipe: Recipe


SIZES: Mapping[str, Size] = {
    "tiny": Size(
        length=64,
        vocabulary=None,
        width=64,
        heads=4,
        hidden=128,
        layers=2,
        tied=False,
        batch=16,
        windows_per_document=8,
        recipe=Recipe(max_steps=450, learning_rate=5e-3, warmup_steps=20),
    ),
    "base": Size(
        length=1024,
        vocabulary=8192,
        width=512,
        heads=8,
        hidden=2048,
        layers=8,
        tied=True,
        batch=16,
        windows_per_document=64,
        recipe=Recipe(max_steps=10_000, learning_rate=6e-4, warmup_steps=500, weight_decay=0.1, betas=(0.9, 0.95)),
    ),
    # CAB's: GPT-2 with 12 layers, 131,072 tokens an update, on 8 A100.
    "paper": Size(
        length=8192,
        vocabulary=50_257,
        width=768,
        heads=12,
        hidden=3072,
        layers=12,
        tied=True,
        batch=1,
        windows_per_document=10_000,
        recipe=Recipe(
            max_steps=125_000,
            learning_rate=5e-4,
            warmup_steps=10_000,
            betas=(0.9, 0.999),
            gradient_clip=None,
            schedule=inverse_square_root,
            accumulate=16,
        ),
    ),
}


class LanguageModelling(TextTask[Size]):
    """Minimise ``-log p(x_{t+1} | x_1 .. x_t)`` over the tokens of a text.

    Options as for :class:`tasks.text_task.TextTask`, and

    Args:
        evaluation_lengths: contexts at which the perplexity is measured beside ``length``, shorter and longer (CAB,
            section 5.6). Positions beyond ``length`` keep their initial values, as no training reaches them.
    """

    card: TaskCard = TaskCard(
        name="lm",
        title="Language modelling",
        patterns=(Pattern.CAUSAL_SELF,),
        primary_pattern=Pattern.CAUSAL_SELF,
        metrics=(
            Metric("perplexity", "per token", False, "exp of the mean negative log-likelihood", "exp_mean"),
            Metric("bits_per_byte", "bits", False, "negative log-likelihood over the bytes of the tokens, base 2"),
        ),
        lengths={name: (size.length, None) for name, size in SIZES.items()},
        unit="chapter of a held-out book",
        floors={
            "uniform": "every token alike",
            "unigram": "the frequencies of the training tokens",
            "bigram": "the frequencies after the last token, which a model that mixes nothing can learn",
        },
        floor="unigram",
        source=bible.Bible.source,
        licence=bible.SOURCE.licence,
        citation="form: Radford et al., Language Models are Unsupervised Multitask Learners, 2019; CAB, ICML 2023",
    )

    def __init__(
        self,
        *,
        size: str = "tiny",
        pattern: Pattern | str | None = None,
        length: int | None = None,
        evaluation_lengths: Sequence[int] | None = None,
        data: str = "registry",
        data_root: str | None = None,
        translation: str = "world_english",
    ) -> None:
        super().__init__(
            SIZES,
            size=size,
            pattern=pattern,
            length=length,
            data=data,
            data_root=data_root,
            translation=translation,
        )
        self.evaluation_lengths = tuple(
            dict.fromkeys(whole("evaluation_lengths", n, at_least=2) for n in evaluation_lengths or ())
        )
        self.also_measure([self._metric_at(n) for n in self.evaluation_lengths])

    @staticmethod
    def _metric_at(length: int) -> Metric:
        description = f"exp of the mean negative log-likelihood with a context of {length} tokens"
        return Metric(f"perplexity_at_{length}", "per token", False, description, "exp_mean")

    def build_model(self, slots: Slots) -> nn.Module:
        size = self.setting
        return Decoder(
            slots,
            vocabulary=self.text.size,
            width=size.width,
            heads=size.heads,
            hidden=size.hidden,
            layers=size.layers,
            max_length=max((self.length, *self.evaluation_lengths)),
            wave=self.length,
            tied=size.tied,
        )

    def batches(self, split: Split, seed: int, start: int = 0) -> Iterator[Batch]:
        """``inputs`` and ``targets`` int64 ``[B, L]``; held-out batches add ``unit`` ``[B]``."""
        if split != "train":
            yield from self._held_out_batches(self._windows(split, self.length), self.length, start)
            return
        tokens = self.text.tokens("train")
        while True:
            window = torch.from_numpy(data.training_windows(tokens, self.length, self.setting.batch, seed, start))
            yield {"inputs": window[:, :-1], "targets": window[:, 1:]}
            start += 1

    def _held_out_batches(self, windows: data.Windows, length: int, start: int = 0) -> Iterator[Batch]:
        """As many tokens in each as four training batches have."""
        rows = max(1, self.setting.batch * 4 * self.length // length)
        for first in range(start * rows, len(windows.inputs), rows):
            part = slice(first, first + rows)
            yield {
                "inputs": torch.from_numpy(windows.inputs[part]),
                "targets": torch.from_numpy(windows.targets[part]),
                "unit": torch.from_numpy(windows.unit_of[part]),
            }

    def _windows(self, split: Split, length: int) -> data.Windows:
        """Windows of a context, over about as much of each document at every context."""
        most = max(1, self.setting.windows_per_document * self.length // length)
        return _held_out(self.text, split, length, most)

    def blank_batch(self, rows: int = 1) -> Batch:
        window = blank_tokens(rows, self.length + 1, self.text.size)
        return {"inputs": window[:, :-1], "targets": window[:, 1:]}

    def tokens(self, batch: Batch) -> int:
        return int((batch["targets"] != data.IGNORE).sum())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch["inputs"]).flatten(0, 1), batch["targets"].flatten())

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> Scores:
        found = self._score(split, self.length, self._losses(model, split, self.length))
        for length in self.evaluation_lengths:
            more = self._score(split, length, self._losses(model, split, length))
            if more.units != found.units:
                raise ValueError(f"evaluation_lengths: {length} leaves out documents that {self.length} has")
            name = self._metric_at(length).name
            found = Scores(
                found.units,
                {**found.values, name: more.values["perplexity"]},
                {**found.weights, name: more.weights["perplexity"]},
            )
        return found

    def _losses(self, model: nn.Module, split: Split, length: int) -> np.ndarray:
        """Loss in nats of every token of the windows, [N, L]; zero where nothing is scored."""
        device = next(model.parameters()).device
        losses = [
            nn.functional.cross_entropy(
                model(batch["inputs"].to(device)).float().transpose(1, 2),
                batch["targets"].to(device),
                ignore_index=data.IGNORE,
                reduction="none",
            )
            for batch in self._held_out_batches(self._windows(split, length), length)
        ]
        return torch.cat(losses).cpu().double().numpy()

    def floors(self, split: Split) -> Mapping[str, Scores]:
        windows = self._windows(split, self.length)
        targets = np.maximum(windows.targets, 0)  # what is ignored gets any loss
        losses = {
            "uniform": np.full(targets.shape, math.log(self.text.size)),
            "unigram": -np.log(self.text.unigram[targets]),
            "bigram": -np.log(data.bigram(self.text, windows.inputs, targets)),
        }
        return {name: self._score(split, self.length, loss) for name, loss in losses.items()}

    def _score(self, split: Split, length: int, losses: np.ndarray) -> Scores:
        """Per document the mean loss per token and per byte, from losses in nats ``[N, L]``."""
        windows = self._windows(split, length)
        scored = windows.targets != data.IGNORE
        bytes_of = np.where(scored, self.text.byte_lengths[np.maximum(windows.targets, 0)], 0)
        count = len(windows.units)

        def per_document(values: np.ndarray) -> np.ndarray:
            return np.bincount(windows.unit_of, weights=values.sum(1), minlength=count)

        nats, tokens, size = per_document(losses * scored), per_document(scored), per_document(bytes_of)
        return Scores(
            units=windows.units,
            values={"perplexity": nats / tokens, "bits_per_byte": nats / math.log(2) / np.maximum(size, 1)},
            weights={"perplexity": tokens, "bits_per_byte": size},
        )

    @torch.no_grad()
    def samples(self, model: nn.Module) -> list[Artifact]:
        """A continuation of the first validation window, drawn at temperature 0.8; as far as the context reaches."""
        assert isinstance(model, Decoder)
        device = next(model.parameters()).device
        given = max(1, self.length // 2)
        prompt = torch.from_numpy(self._windows("validation", self.length).inputs[:1, :given]).to(device)
        choose = Sampler(torch.Generator().manual_seed(0), temperature=0.8)
        limits = Limits(most=min(SAMPLE_TOKENS, self.length - given))
        new = continue_prompts(model, prompt, limits, choose=choose)
        content = self.text.decode(prompt[0].cpu().numpy()) + b" >>> " + self.text.decode(new[0].cpu().numpy())
        return [Artifact("continuation.txt", "text/plain", content)]


@cache
def _held_out(text: Text, split: Split, length: int, per_document: int) -> data.Windows:
    return data.held_out_windows(text, split, length, per_document)
