"""Point cloud completion: data, backbone, loss, metrics and floors, joined."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import Artifact, Batch, Metric, Recipe, Scores, Slots, Split, Task, TaskCard
from tasks.options import chosen, original_folder, scored_pattern, whole
from tasks.pcc import data, metrics, original
from tasks.pcc.data import View
from tasks.pcc.figure import draw
from tasks.pcc.model import Layout, PoinTr
from tasks.schedules import Staircase
from tasks.sources import Source

_TRAIN, _FLOORS = 0x9CC5, 0x9CC6  # own streams of random numbers
_PCN_POINTS = 16_384  # of a complete cloud of PCN
_PCN_PASS = 28_974 // 48  # batches in a pass over its training models
_DRAWN = 3  # shapes in the sample


class Collection(Protocol):
    """Where the clouds come from; a view is a function of what is asked for and of ``rng``."""

    def units(self, split: Split) -> list[str]:
        """Per held-out view, the resampling unit that it belongs to."""

    def training_view(self, inputs: int, outputs: int, rng: np.random.Generator) -> View: ...

    def held_out_view(self, split: Split, index: int, inputs: int, outputs: int) -> View: ...

    def mean_shape(self, count: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Size:
    """Points of the partial cloud, the backbone, the data's detail, and how it is trained."""

    input_points: int
    layout: Layout
    pixels: int
    views: int
    batch: int
    recipe: Recipe


SIZES: Mapping[str, Size] = {
    "tiny": Size(
        input_points=256,
        layout=Layout(
            width=96,
            heads=4,
            hidden=192,
            encoder_blocks=2,
            decoder_blocks=2,
            middle=128,
            proxies=64,
            edge_channels=(8, 16, 32, 32, 64),
            edge_neighbours=8,
            block_neighbours=4,
            position_hidden=64,
            global_width=192,
            queries=96,
            fold=3,
            fold_hidden=64,
        ),
        pixels=64,
        views=4,
        batch=16,
        recipe=Recipe(max_steps=400, learning_rate=2e-3, warmup_steps=20),
    ),
    "base": Size(
        input_points=1024,
        layout=Layout(
            width=192,
            heads=6,
            hidden=384,
            encoder_blocks=4,
            decoder_blocks=4,
            middle=256,
            global_width=512,
            queries=192,
            fold=5,
            fold_hidden=128,
        ),
        pixels=128,
        views=8,
        batch=24,
        recipe=Recipe(max_steps=12_000, learning_rate=1e-3, warmup_steps=500, weight_decay=5e-4),
    ),
    # As the authors train on PCN (cfgs/PCN_models/PoinTr.yaml and tools/runner.py), but for their schedule of the batch
    # normalisation's momentum: 300 passes over 28,974 models, the rate times 0.9 every 21 passes, clipped at norm 10.
    "paper": Size(
        input_points=2048,
        layout=Layout(),
        pixels=128,
        views=8,
        batch=48,
        recipe=Recipe(
            max_steps=300 * _PCN_PASS,
            learning_rate=5e-4,
            warmup_steps=0,
            weight_decay=5e-4,
            betas=(0.9, 0.999),
            gradient_clip=10.0,
            schedule=Staircase(every=21 * _PCN_PASS, factor=0.9, floor=0.02),
        ),
    ),
}


class PointCloudCompletion(Task):
    """Complete the cloud of a shape that is seen from one side.

    Args:
        size: of the backbone and its recipe.
        pattern: under test: NC (queries to proxies, what CAB scores) or NS (encoder and decoder).
        proxies, queries: lengths of the encoder and of the decoder; None means: as the size says.
        fold: side of the grid folded for each query, so that there are ``queries * fold^2`` new points.
        data: ``registry`` (the shipped meshes) or ``original`` (PCN).
        data_root: folder of the original data; None means ``original/PCN`` in the cache.
    """

    card: TaskCard = TaskCard(
        name="pcc",
        title="Point cloud completion (meshes seen from one side)",
        patterns=(Pattern.NONCAUSAL_SELF, Pattern.NONCAUSAL_CROSS),
        primary_pattern=Pattern.NONCAUSAL_CROSS,
        metrics=(
            Metric(
                "cd_l1", "1e-3 of the diameter", False, "mean distance to the other cloud's nearest point, both ways"
            ),
            Metric("cd_l2", "1e-3 of its square", False, "sum over both ways of the mean squared distance"),
            Metric("f_score", "fraction", True, "harmonic mean of the shares of points nearer than 0.01, both ways"),
        ),
        lengths={name: (size.layout.queries, size.layout.proxies) for name, size in SIZES.items()},
        unit="shape, over its views (and meshes of the same geometry)",
        floors={
            "partial": "the partial cloud, repeated to as many points as the completion has",
            "mirrored": "the partial cloud and its reflection in the centre, repeated likewise",
            "mean_shape": "points of all training shapes together, whatever is seen",
        },
        floor="partial",
        source="131 meshes of household objects and robot parts (103 shapes), from the package metaworld 3.1.1",
        licence=data.SOURCE.licence,
        citation="backbone: Yu et al., PoinTr, ICCV 2021, arXiv:2108.08839; meshes: Yu et al., Meta-World, CoRL 2019",
    )
    sources: ClassVar[tuple[Source, ...]] = (data.SOURCE,)

    def __init__(
        self,
        *,
        size: str = "tiny",
        pattern: Pattern | str | None = None,
        proxies: int | None = None,
        queries: int | None = None,
        fold: int | None = None,
        data: str = "registry",
        data_root: str | None = None,
    ) -> None:
        self.setting = chosen("size of task pcc", size, SIZES)
        self.size = size
        self.pattern = scored_pattern(self.card, pattern)
        self.recipe = self.setting.recipe
        self.input_points = self.setting.input_points
        self.original_root = original_folder(data, data_root, original.NAME)
        if self.original_root is not None:
            self.card = dataclasses.replace(self.card, source=original.SOURCE, licence=original.LICENCE)
        self.layout = self._layout(proxies, queries, fold)
        self.output_points = self.layout.queries * self.layout.fold**2 + self.input_points

    def _layout(self, proxies: int | None, queries: int | None, fold: int | None) -> Layout:
        own = self.setting.layout
        proxies = whole(
            "proxies",
            own.proxies if proxies is None else proxies,
            at_least=2,
            at_most=self.input_points,
            why="the points of the input",
        )
        fold = whole("fold", own.fold if fold is None else fold, at_least=1)
        queries = whole(
            "queries",
            own.queries if queries is None else queries,
            at_least=2,
            at_most=(_PCN_POINTS - self.input_points) // fold**2,
            why=f"with fold={fold} and the input, a cloud of at most {_PCN_POINTS} points",
        )
        return dataclasses.replace(own, proxies=proxies, middle=max(own.middle, proxies), queries=queries, fold=fold)

    @property
    def lengths(self) -> tuple[int, int | None]:
        """Queries and proxies; in the self pattern the longer of the two sequences."""
        if self.pattern.is_cross:
            return self.layout.queries, self.layout.proxies
        return max(self.layout.queries, self.layout.proxies), None

    @cached_property
    def collection(self) -> Collection:
        if self.original_root is not None:
            return original.PCN(self.original_root)
        return data.Shapes.of(data.load(), pixels=self.setting.pixels, views=self.setting.views)

    def prepare(self) -> None:
        if self.original_root is None:
            data.load()
        else:
            for split in original.FOLDERS:
                self.collection.units(split)

    def build_model(self, slots: Slots) -> nn.Module:
        return PoinTr(slots, input_points=self.input_points, layout=self.layout)

    @staticmethod
    def _tensors(views: list[View]) -> Batch:
        return {
            "partial": torch.from_numpy(np.stack([view.partial for view in views])),
            "complete": torch.from_numpy(np.stack([view.complete for view in views])),
        }

    def batches(self, split: Split, seed: int, start: int = 0) -> Iterator[Batch]:
        """``partial`` [B, N, 3] and ``complete`` [B, P, 3], float32; every training view has draws of its own."""
        collection, size = self.collection, self.setting.batch
        if split != "train":
            count = len(collection.units(split))
            for first in range(start * size, count, size):
                yield self._held_out(split, range(first, min(first + size, count)))
            return
        while True:
            generators = [np.random.default_rng((_TRAIN, seed, start, row)) for row in range(size)]
            yield self._tensors(
                [collection.training_view(self.input_points, self.output_points, rng) for rng in generators]
            )
            start += 1

    def _held_out(self, split: Split, indices: range) -> Batch:
        points = self.input_points, self.output_points
        return self._tensors([self.collection.held_out_view(split, index, *points) for index in indices])

    def blank_batch(self, rows: int = 1) -> Batch:
        return {
            "partial": torch.zeros(rows, self.input_points, 3),
            "complete": torch.zeros(rows, self.output_points, 3),
        }

    def tokens(self, batch: Batch) -> int:
        return len(batch["partial"]) * self.lengths[0]

    @staticmethod
    def _completed(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Coarse and fine completion, and the truth."""
        parameter = next(model.parameters())
        coarse, fine = model(batch["partial"].to(parameter))
        return coarse, fine, batch["complete"].to(parameter)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """CD-l1 of the coarse and of the fine completion, added (PoinTr, section 3.5)."""
        coarse, fine, truth = self._completed(model, batch)
        of_coarse = metrics.chamfer_l1(*metrics.distances(coarse, truth))
        return (of_coarse + metrics.chamfer_l1(*metrics.distances(fine, truth))).mean()

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> Scores:
        parts = []
        for batch in self.batches(split, 0):
            _, fine, truth = self._completed(model, batch)
            parts.append(metrics.scores(fine, truth))
        return self._scores(split, parts)

    def floors(self, split: Split) -> Mapping[str, Scores]:
        mean_shape = torch.from_numpy(self.collection.mean_shape(self.output_points))
        parts: dict[str, list[dict[str, Tensor]]] = {name: [] for name in self.card.floors}
        for number, batch in enumerate(self.batches(split, 0)):
            partial, truth = batch["partial"], batch["complete"]
            rng = np.random.default_rng((_FLOORS, number))
            predictions = {
                "partial": self._repeated(partial, rng),
                "mirrored": self._repeated(torch.cat((partial, -partial), dim=1), rng),
                "mean_shape": mean_shape.expand(len(partial), -1, -1),
            }
            for name, prediction in predictions.items():
                parts[name].append(metrics.scores(prediction, truth))
        return {name: self._scores(split, found) for name, found in parts.items()}

    def _repeated(self, clouds: Tensor, rng: np.random.Generator) -> Tensor:
        resampled = [data.resample(cloud.numpy(), self.output_points, rng) for cloud in clouds]
        return torch.from_numpy(np.stack(resampled))

    def _scores(self, split: Split, parts: list[dict[str, Tensor]]) -> Scores:
        """The mean over the views of each unit."""
        views = self.collection.units(split)
        units = list(dict.fromkeys(views))
        place = np.array([units.index(unit) for unit in views])
        values = {}
        for name in parts[0]:
            per_view = torch.cat([part[name] for part in parts]).cpu().numpy()
            values[name] = np.bincount(place, per_view) / np.bincount(place)
        return Scores(units=units, values=values)

    @torch.no_grad()
    def samples(self, model: nn.Module) -> list[Artifact]:
        """Partial, completed and true cloud of the first view of a few validation shapes, as a picture."""
        views = self.collection.units("validation")
        units = list(dict.fromkeys(views))
        chosen_views = [views.index(unit) for unit in units[:: max(1, len(units) // _DRAWN)][:_DRAWN]]
        rows = []
        for index in chosen_views:
            batch = self._held_out("validation", range(index, index + 1))
            _, fine, truth = self._completed(model, batch)
            clouds = [cloud[0].float().cpu().numpy() for cloud in (batch["partial"], fine, truth)]
            rows.append((views[index], clouds))
        return [Artifact("completion.png", "image/png", draw(rows))]
