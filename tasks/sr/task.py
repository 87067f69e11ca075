"""Super-resolution by conditional diffusion (SR3): data, backbone, loss, metrics, floors and samples, joined."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import Artifact, Batch, Metric, Recipe, Scores, Slots, Split, Task, TaskCard
from tasks.options import chosen, original_folder, scored_pattern, whole
from tasks.schedules import constant
from tasks.sources import Source
from tasks.sr import data as pairs
from tasks.sr import metrics, original
from tasks.sr.diffusion import STEPS, Denoiser, level_at, levels, noisy, sample, sampling_levels
from tasks.sr.model import UNet

# Own streams of random numbers: training batches, noise to be removed, the noise that sampling starts from and adds.
_TRAIN, _DENOISE, _START, _FRESH = 0x5A3E, 0x5DE0, 0x5574, 0x5F2E
_SHOWN = 4  # pictures of the sample
_SHOWN_SIDE = 96  # pixels of a picture there, at least


Sampler = Literal["ancestral", "from_input"]


@dataclass(frozen=True)
class Size:
    """Sides of the pictures, the backbone, how it is trained, and how it is evaluated.

    Attributes:
        low, high: sides of input and output.
        features, multipliers, blocks, heads, groups, dropout: of the U-Net.
        attention_sides: where its levels attend.
        batch, recipe: of training.
        schedule_steps: T of the linear schedule; SR3 trains with 2000, and fewer leave more of the picture at step T.
        loss_levels: noise levels at which each held-out picture's denoising loss is taken.
        sampling_steps: evaluations of the U-Net per sampled picture.
        sampler: ``ancestral`` starts from noise alone and adds noise at each step (SR3, algorithm 2); ``from_input``
            starts from the upsampled input with the noise of step T and adds none (Come-Closer-Diffuse-Faster: Chung et
            al., arXiv:2112.05146, with DDIM).
        scored: pictures of a held-out part of the original data set.
    """

    low: int
    high: int
    features: int
    multipliers: tuple[int, ...]
    attention_sides: tuple[int, ...]
    blocks: int
    heads: int
    groups: int
    dropout: float
    batch: int
    recipe: Recipe
    schedule_steps: int
    loss_levels: int
    sampling_steps: int
    sampler: Sampler
    scored: int


SIZES: Mapping[str, Size] = {
    "tiny": Size(
        low=8,
        high=16,
        features=32,
        multipliers=(1, 1),
        attention_sides=(16, 8),
        blocks=1,
        heads=2,
        groups=8,
        dropout=0.0,
        batch=16,
        recipe=Recipe(max_steps=1200, learning_rate=4e-3, warmup_steps=30),
        schedule_steps=500,
        loss_levels=8,
        sampling_steps=3,
        sampler="from_input",
        scored=100,
    ),
    "base": Size(
        low=16,
        high=64,
        features=64,
        multipliers=(1, 2, 4, 4),
        attention_sides=(64, 32, 16),
        blocks=2,
        heads=4,
        groups=32,
        dropout=0.1,
        batch=16,
        recipe=Recipe(max_steps=20_000, learning_rate=2e-4, warmup_steps=500),
        schedule_steps=STEPS,
        loss_levels=8,
        sampling_steps=50,
        sampler="ancestral",
        scored=100,
    ),
    "paper": Size(
        low=16,
        high=128,
        features=64,
        multipliers=(1, 2, 4, 8, 8),
        attention_sides=(128, 64, 32, 16),
        blocks=2,
        heads=1,
        groups=32,
        dropout=0.2,
        batch=4,
        recipe=Recipe(
            max_steps=1_000_000,
            learning_rate=1e-4,
            warmup_steps=0,
            weight_decay=0.0,
            betas=(0.9, 0.999),
            gradient_clip=None,
            schedule=constant,
        ),
        schedule_steps=STEPS,
        loss_levels=8,
        sampling_steps=STEPS,
        sampler="ancestral",
        scored=100,
    ),
}


class SuperResolution(Task):
    """Minimise ``mean |f(c, g x + sqrt(1 - g^2) e, g) - e|``: the noise e in a picture x, c its bicubic low resolution.

    Pictures are then sampled from noise and c alone, and compared with x.

    Args:
        size: of the pictures, the backbone and its recipe.
        pattern: under test; noncausal self attention over pixels is all that the backbone has.
        data: ``registry`` (photographs and faces that scikit-image ships) or ``original`` (FFHQ, CelebA-HQ).
        data_root: folder of the original data (see ``tasks/sr/original.py``); None: in the cache folder.
        sampling_steps: evaluations of the U-Net per sampled picture; None means: as the size says.
    """

    card: TaskCard = TaskCard(
        name="sr",
        title="Super-resolution by conditional diffusion (photographs and faces)",
        patterns=(Pattern.NONCAUSAL_SELF,),
        primary_pattern=Pattern.NONCAUSAL_SELF,
        metrics=(
            Metric("psnr", "dB", True, "peak signal-to-noise ratio of sampled pictures, over a picture's patches"),
            Metric("ssim", "1", True, "structural similarity of sampled pictures, mean over colours and positions"),
            Metric("denoising_loss", "1", False, "mean absolute error of the estimated noise, over all noise levels"),
        ),
        lengths={name: (max(size.attention_sides) ** 2, None) for name, size in SIZES.items()},
        unit="picture (its patches together)",
        floors={
            "nearest": "each pixel of the input as a square (as a denoiser: the noise that this picture leaves)",
            "bicubic": "the input upsampled bicubically, which is what the model is given (denoiser: likewise)",
            "zero": "predicting no noise",
        },
        floor="nearest",
        source="photographs and LFW faces from the package scikit-image 0.26.0",
        licence=pairs.SOURCE.licence,
        citation=(
            "Saharia et al., SR3, arXiv:2104.07636; scikit-image: van der Walt et al., PeerJ 2:e453 (2014); LFW: Huang"
            " et al., UMass Amherst TR 07-49 (2007); FFHQ: Karras et al., CVPR 2019; CelebA-HQ: Karras et al., ICLR"
            " 2018"
        ),
    )
    sources: ClassVar[tuple[Source, ...]] = (pairs.SOURCE,)

    def __init__(
        self,
        *,
        size: str = "tiny",
        pattern: Pattern | str | None = None,
        data: str = "registry",
        data_root: str | None = None,
        sampling_steps: int | None = None,
    ) -> None:
        self.setting = chosen("size of task sr", size, SIZES)
        self.size = size
        self.pattern = scored_pattern(self.card, pattern)
        self.recipe = self.setting.recipe
        self.original_root = original_folder(data, data_root, original.NAME)
        self.sampling_steps = whole(
            "sampling_steps",
            self.setting.sampling_steps if sampling_steps is None else sampling_steps,
            at_least=1,
            at_most=self.setting.schedule_steps,
            why="steps of the schedule",
        )
        if self.original_root is not None:
            self.card = dataclasses.replace(type(self).card, source=original.SOURCE_TEXT, licence=original.LICENCE)
        self._scored: dict[Split, list[tuple[str, pairs.Patch]]] = {}

    @cached_property
    def schedule(self) -> np.ndarray:
        """Noise levels of the steps, from 1 (the picture) down: [T + 1]."""
        return levels(self.setting.schedule_steps)

    def pictures(self, split: Split) -> pairs.Pictures:
        """The pictures of a split."""
        low, high = self.setting.low, self.setting.high
        if self.original_root is not None:
            return original.load(self.original_root, split, low, high, self.setting.scored)
        shipped = [picture for picture in pairs.load() if pairs.split_of(picture.key) == split]
        return pairs.ShippedPictures(shipped, low, high, split)

    @cached_property
    def _training(self) -> pairs.Pictures:
        return self.pictures("train")

    def scored(self, split: Split) -> list[tuple[str, pairs.Patch]]:
        """The patches to be scored, in order, each with the name of its picture."""
        if split not in self._scored:
            self._scored[split] = list(self.pictures(split).scored())
        return self._scored[split]

    def prepare(self) -> None:
        """Fetches the shipped pictures, or lists the original ones."""
        if self.original_root is None:
            pairs.load()
        else:
            for split in ("train", "validation", "test"):
                self.pictures(split)

    def build_model(self, slots: Slots) -> nn.Module:
        size = self.setting
        return UNet(
            slots,
            side=size.high,
            colours=3,
            features=size.features,
            multipliers=size.multipliers,
            attention_sides=size.attention_sides,
            blocks=size.blocks,
            heads=size.heads,
            groups=size.groups,
            dropout=size.dropout,
        )

    def _condition(self, low: UInt8[np.ndarray, "L L 3"]) -> UInt8[np.ndarray, "S S 3"]:
        return pairs.bicubic(low, self.setting.high)

    def _tensors(self, patches: list[pairs.Patch], level: np.ndarray, noise: np.ndarray) -> Batch:
        """``condition``, ``target`` (both in [-1, 1]) and ``noise`` [B, 3, S, S], ``level`` [B]."""
        return {
            "condition": metrics.from_bytes(np.stack([self._condition(patch.low) for patch in patches])),
            "target": metrics.from_bytes(np.stack([patch.high for patch in patches])),
            "level": torch.from_numpy(level.astype(np.float32)),
            "noise": torch.from_numpy(noise),
        }

    def _noise(self, rng: np.random.Generator) -> np.ndarray:
        return rng.standard_normal((3, self.setting.high, self.setting.high), dtype=np.float32)

    def _training_batch(self, seed: int, index: int) -> Batch:
        rng, rows = np.random.default_rng((_TRAIN, seed, index)), self.setting.batch
        patches = [self._training.draw(rng) for _ in range(rows)]
        level = level_at(rng.random(rows), self.schedule)
        return self._tensors(patches, level, np.stack([self._noise(rng) for _ in range(rows)]))

    def _scored_batch(self, split: Split, rows: range, stratum: int) -> Batch:
        """Patches ``rows`` of a held-out split, each with noise and a level of its own in a stratum of the schedule."""
        rngs = [np.random.default_rng((_DENOISE, row, stratum)) for row in rows]
        position = (stratum + np.array([rng.random() for rng in rngs])) / self.setting.loss_levels
        patches = [self.scored(split)[row][1] for row in rows]
        return self._tensors(patches, level_at(position, self.schedule), np.stack([self._noise(rng) for rng in rngs]))

    def batches(self, split: Split, seed: int, start: int = 0) -> Iterator[Batch]:
        if split != "train":
            parts = self._parts(split)[start:]
            yield from (self._scored_batch(split, rows, index % self.setting.loss_levels) for index, rows in parts)
            return
        while True:
            yield self._training_batch(seed, start)
            start += 1

    def _parts(self, split: Split) -> list[tuple[int, range]]:
        """The rows of a held-out split in batches, numbered."""
        edges = [*range(0, len(self.scored(split)), self.setting.batch), len(self.scored(split))]
        return [(index, range(*pair)) for index, pair in enumerate(pairwise(edges))]

    def blank_batch(self, rows: int = 1) -> Batch:
        shape = (rows, 3, self.setting.high, self.setting.high)
        return {
            "condition": torch.zeros(shape),
            "target": torch.zeros(shape),
            "level": torch.full((rows,), 0.5),
            "noise": torch.zeros(shape),
        }

    def tokens(self, batch: Batch) -> int:
        return len(batch["target"]) * self.lengths[0]

    @staticmethod
    def _errors(denoiser: Denoiser, batch: Batch) -> Tensor:
        """``mean |f - e|`` of each picture: [B]."""
        inputs = batch["condition"], noisy(batch["target"], batch["noise"], batch["level"]), batch["level"]
        return (denoiser(*inputs) - batch["noise"]).abs().flatten(1).mean(dim=1)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._errors(model, _at(batch, next(model.parameters()))).mean()

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> Scores:
        return self._scores(lambda patches: model, split, next(model.parameters()))

    def _sampled(
        self, denoiser: Denoiser, patches: list[pairs.Patch], first: int, like: Tensor
    ) -> UInt8[np.ndarray, "B S S 3"]:
        """Sampled pictures for patches ``first``, ``first + 1`` ... of a split, each from noise of its own."""
        condition = metrics.from_bytes(np.stack([self._condition(patch.low) for patch in patches])).to(like)
        rows = range(first, first + len(patches))

        def noise(stream: int, *index: int) -> Tensor:
            drawn = [self._noise(np.random.default_rng((stream, row, *index))) for row in rows]
            return torch.from_numpy(np.stack(drawn)).to(like)

        def fresh(step: int) -> Tensor:
            return noise(_FRESH, step)

        visited, start = sampling_levels(self.sampling_steps, self.schedule), noise(_START)
        if self.setting.sampler == "ancestral":
            return metrics.to_bytes(sample(denoiser, condition, start, visited, fresh))
        first_level = torch.full((len(rows),), float(visited[0]), dtype=start.dtype, device=start.device)
        return metrics.to_bytes(sample(denoiser, condition, noisy(condition, start, first_level), visited))

    def _scores(self, denoiser_of: Callable[[list[pairs.Patch]], Denoiser], split: Split, like: Tensor) -> Scores:
        """Scores per picture of a denoiser, which may know the patches' inputs; ``like`` says device and dtype."""
        loss, squared, similar = [], [], []
        for _, rows in self._parts(split):
            patches = [self.scored(split)[row][1] for row in rows]
            denoiser, target = denoiser_of(patches), np.stack([patch.high for patch in patches])
            strata = (self._scored_batch(split, rows, stratum) for stratum in range(self.setting.loss_levels))
            losses = [self._errors(denoiser, _at(batch, like)).double().cpu().numpy() for batch in strata]
            loss.append(np.mean(losses, axis=0))
            output = self._sampled(denoiser, patches, rows.start, like)
            squared.append(metrics.squared_error(output, target))
            similar.append(metrics.ssim(output, target))
        names = [name for name, _ in self.scored(split)]
        units = list(dict.fromkeys(names))

        def per_picture(parts: list[np.ndarray]) -> np.ndarray:
            values = np.concatenate(parts)
            return np.array([values[[name == unit for name in names]].mean() for unit in units])

        return Scores(
            units=units,
            values={
                "psnr": metrics.psnr(per_picture(squared)),
                "ssim": per_picture(similar),
                "denoising_loss": per_picture(loss),
            },
        )

    def floors(self, split: Split) -> Mapping[str, Scores]:
        like, side = torch.zeros(()), self.setting.high
        return {
            "nearest": self._scores(lambda patches: _leaving(patches, side, pairs.nearest), split, like),
            "bicubic": self._scores(lambda patches: _leaving(patches, side, pairs.bicubic), split, like),
            "zero": self._scores(lambda patches: _zero, split, like),
        }

    @torch.no_grad()
    def samples(self, model: nn.Module) -> list[Artifact]:
        """Test pictures as rows of input (nearest), bicubic, output, target; of those shipped, photographs alone."""
        pictures = self.pictures("test")
        faces = (
            {p.name for p in pictures.pictures if p.is_face} if isinstance(pictures, pairs.ShippedPictures) else set()
        )
        first: dict[str, int] = {}
        for row, (name, _) in enumerate(self.scored("test")):
            if name not in faces:
                first.setdefault(name, row)
        like, side, lines = next(model.parameters()), self.setting.high, []
        for row in list(first.values())[:_SHOWN]:
            patch = self.scored("test")[row][1]
            output = self._sampled(model, [patch], row, like)[0]
            shown = pairs.nearest(patch.low, side), pairs.bicubic(patch.low, side), output, patch.high
            lines.append(np.concatenate(shown, axis=1))
        return [Artifact("pictures.png", "image/png", _png(np.concatenate(lines), -(-_SHOWN_SIDE // side)))]


def _at(batch: Batch, like: Tensor) -> Batch:
    """The batch on the device and in the dtype of a tensor."""
    return {name: tensor.to(like) for name, tensor in batch.items()}


def _zero(condition: Tensor, picture: Tensor, level: Tensor) -> Tensor:
    return torch.zeros_like(picture)


def _leaving(patches: list[pairs.Patch], side: int, upsample: Callable[[np.ndarray, int], np.ndarray]) -> Denoiser:
    """The denoiser that takes upsampled inputs for the pictures: ``(y - g x) / sqrt(1 - g^2)``."""
    guess = metrics.from_bytes(np.stack([upsample(patch.low, side) for patch in patches]))

    def denoiser(condition: Tensor, picture: Tensor, level: Tensor) -> Tensor:
        g = level[:, None, None, None]
        return (picture - g * guess.to(picture)) / (1 - g**2).sqrt()

    return denoiser


def _png(pixels: UInt8[np.ndarray, "H W 3"], factor: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.repeat(factor, axis=0).repeat(factor, axis=1)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
