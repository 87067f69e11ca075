"""The PCN data set (Yuan et al., 3DV 2018; ShapeNet, eight classes) in the layout of its release for PoinTr and GRNet.

    PCN.json                                             per class {"taxonomy_id": .., "train": [model, ..], ..}
    {train,val,test}/complete/<class>/<model>.pcd        16,384 points
    {train,val,test}/partial/<class>/<model>/NN.pcd      eight views in training, one else

Without the index the folders are listed. A cloud may also be an array ``.npy`` of [N, 3]. Clouds are in the scale of
ShapeNet, with a bounding box of diagonal 1, and are taken as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tasks.contract import Split
from tasks.pcc.data import View, resample
from tasks.sources import DataUnavailable

SOURCE = (
    "PCN: 28,974 + 100 + 1,200 ShapeNet models of 8 classes as clouds of 16,384 points with views from depth images"
)
LICENCE = "ShapeNet's terms: non-commercial research"
NAME = "PCN"  # of its folder in the cache
PUBLISHED = "github.com/yuxumin/PoinTr/blob/master/DATASET.md"
FOLDERS: Mapping[Split, str] = {"train": "train", "validation": "val", "test": "test"}
SUFFIXES = (".pcd", ".npy")

_TYPES = {("F", 4): "<f4", ("F", 8): "<f8", ("U", 1): "u1", ("U", 2): "<u2", ("U", 4): "<u4"}
_TYPES |= {("I", 1): "i1", ("I", 2): "<i2", ("I", 4): "<i4"}
_MIXTURE_STREAM, _VIEW_STREAM = 0x9CC3, 0x9CC4  # own streams of random numbers
_MIXED = 200  # training clouds in the mean shape


def parse_pcd(content: bytes, name: str) -> np.ndarray:
    """The fields x, y and z of a PCD file (version 0.7, ``ascii`` or ``binary``): [N, 3] float32.

    Raises:
        ValueError: a header line or a coordinate is missing, the data are compressed, cut, not numbers or not finite.
    """
    header, body = _pcd_header(content, name)
    layout, count = _pcd_layout(header, name)
    if count < 1:
        raise ValueError(f"{name}: the PCD file has POINTS {count}")
    kind = header["DATA"].lower()
    if kind == "binary":
        if len(body) < count * layout.itemsize:
            raise ValueError(f"{name}: {len(body)} bytes of points, but {count} points take {count * layout.itemsize}")
        rows = np.frombuffer(body, dtype=layout, count=count)
        points = np.stack([rows[axis].reshape(count, -1)[:, 0] for axis in "xyz"], axis=1)
    elif kind == "ascii":
        points = _ascii_points(body, layout, count, name)
    else:
        raise ValueError(f"{name}: DATA {kind} is not read; ascii and binary are")
    return _checked(points, name)


def _pcd_header(content: bytes, name: str) -> tuple[dict[str, str], bytes]:
    header: dict[str, str] = {}
    rest = content
    while "DATA" not in header:
        line, newline, rest = rest.partition(b"\n")
        if not newline:
            raise ValueError(f"{name}: not a PCD file (its header has no line DATA)")
        text = line.decode("ascii", errors="replace").strip()
        if text and not text.startswith("#"):
            key, _, value = text.partition(" ")
            header[key.upper()] = value.strip()
    return header, rest


def _pcd_layout(header: Mapping[str, str], name: str) -> tuple[np.dtype[Any], int]:
    """A point as a structured type, and the number of points."""
    for key in ("FIELDS", "SIZE", "TYPE", "POINTS"):
        if key not in header:
            raise ValueError(f"{name}: the PCD header has no line {key}")
    fields = header["FIELDS"].lower().split()
    sizes, kinds = header["SIZE"].split(), header["TYPE"].upper().split()
    counts = header.get("COUNT", " ".join("1" for _ in fields)).split()
    if not len(fields) == len(sizes) == len(kinds) == len(counts):
        raise ValueError(f"{name}: FIELDS, SIZE, TYPE and COUNT of the PCD header have different lengths")
    missing = [axis for axis in "xyz" if axis not in fields]
    if missing:
        raise ValueError(f"{name}: the PCD file has no field {missing[0]} (it has {', '.join(fields)})")
    try:
        # Unused fields may repeat a name ("_" is padding), which a structured type does not allow.
        names = [field if field in "xyz" else f"field {index}" for index, field in enumerate(fields)]
        types = [_TYPES[kind, int(size)] for kind, size in zip(kinds, sizes, strict=True)]
        columns = [(*pair, (int(n),)) for *pair, n in zip(names, types, counts, strict=True)]
        return np.dtype(columns), int(header["POINTS"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{name}: the PCD header is not understood ({error})") from error


def _ascii_points(body: bytes, layout: np.dtype[Any], count: int, name: str) -> np.ndarray:
    """Columns x, y and z of the text after the header."""
    widths = {field: int(np.prod(layout[field].shape)) for field in layout.names or ()}
    starts = dict(zip(widths, np.cumsum([0, *widths.values()]).tolist(), strict=False))
    try:
        values = np.array(body.split(), dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{name}: a value is not a number ({error})") from error
    if len(values) != count * sum(widths.values()):
        raise ValueError(f"{name}: {len(values)} values, but {count} points take {count * sum(widths.values())}")
    return values.reshape(count, -1)[:, [starts[axis] for axis in "xyz"]]


def _checked(points: np.ndarray, name: str) -> np.ndarray:
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise ValueError(f"{name}: an array of shape {points.shape}, expected [points, 3]")
    if not np.isfinite(points).all():
        raise ValueError(f"{name}: point {int(np.argmin(np.isfinite(points).all(1)))} is not finite")
    return points.astype(np.float32)


def read_cloud(path: Path) -> np.ndarray:
    """The points of a ``.pcd`` or ``.npy`` file, [N, 3] float32; a ``ValueError`` names the file and what is wrong."""
    if path.suffix == ".pcd":
        return parse_pcd(path.read_bytes(), str(path))
    try:
        array = np.load(path, allow_pickle=False)
        return _checked(np.asarray(array, dtype=np.float64), str(path))
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


@dataclass(frozen=True)
class PCN:
    """The models of the data set by split, and the pairs of clouds in their files."""

    root: Path

    def __post_init__(self) -> None:
        if not (self.root / "PCN.json").is_file() and not (self.root / "train" / "complete").is_dir():
            raise DataUnavailable(
                f"the PCN data set is not there: no {self.root / 'PCN.json'}; it is published at {PUBLISHED}; put its"
                f" folders train, val and test and PCN.json into {self.root} (another folder: task.data_root=FOLDER)"
            )

    @cached_property
    def _index(self) -> list[Any] | None:
        path = self.root / "PCN.json"
        if not path.is_file():
            return None
        try:
            index = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: not JSON ({error})") from error
        if not isinstance(index, list) or not all(isinstance(entry, dict) for entry in index):
            raise ValueError(f"{path}: expected a list of classes")
        for entry in index:
            for key in ("taxonomy_id", *FOLDERS.values()):
                if key not in entry:
                    raise ValueError(f"{path}: a class has no {key!r}")
        return index

    @cached_property
    def _models(self) -> dict[Split, list[str]]:
        return {split: self._list(split) for split in FOLDERS}

    def _list(self, split: Split) -> list[str]:
        folder = FOLDERS[split]
        if self._index is not None:
            return [f"{entry['taxonomy_id']}/{model}" for entry in self._index for model in entry[folder]]
        top = self.root / folder / "complete"
        files = (path for path in top.glob("*/*") if path.suffix in SUFFIXES)
        return sorted({f"{path.parent.name}/{path.stem}" for path in files})

    def units(self, split: Split) -> list[str]:
        """The models of a split as ``class/model``.

        Raises:
            ValueError: there is none, or one of them is in another split too.
        """
        if not self._models[split]:
            raise ValueError(f"{self.root}: no model in the {split} part")
        for other in FOLDERS:
            shared = set(self._models[split]) & set(self._models[other]) if other != split else set()
            if shared:
                raise ValueError(f"{self.root}: {min(shared)} is in the {split} part and in the {other} part")
        return self._models[split]

    def _complete(self, split: Split, model: str) -> np.ndarray:
        return read_cloud(self._file(self.root / FOLDERS[split] / "complete" / model))

    @staticmethod
    def _file(stem: Path) -> Path:
        for suffix in SUFFIXES:
            path = stem.with_name(stem.name + suffix)
            if path.is_file():
                return path
        raise DataUnavailable(
            f"a file of the PCN data set is missing: {stem}{SUFFIXES[0]} (or {SUFFIXES[1]}); published at {PUBLISHED}"
        )

    def _partial(self, split: Split, model: str, rng: np.random.Generator | None) -> np.ndarray:
        """A view of the model: a random one with ``rng``, else the first."""
        folder = self.root / FOLDERS[split] / "partial" / model
        stems = sorted({path.stem for path in folder.glob("*") if path.suffix in SUFFIXES}) or ["00"]
        return read_cloud(self._file(folder / stems[0 if rng is None else int(rng.integers(len(stems)))]))

    def _view(
        self, model: str, partial: np.ndarray, complete: np.ndarray, inputs: int, outputs: int, seed: int
    ) -> View:
        rng = np.random.default_rng((_VIEW_STREAM, seed))
        return View(model, resample(partial, inputs, rng), _reduced(complete, outputs, model, rng))

    def training_view(self, inputs: int, outputs: int, rng: np.random.Generator) -> View:
        """A random model and view, mirrored at the planes x = 0 and z = 0 with probability 1/2 each, as PoinTr does."""
        models = self.units("train")
        model = models[int(rng.integers(len(models)))]
        mirror = np.array([rng.choice((-1, 1)), 1, rng.choice((-1, 1))], dtype=np.float32)
        partial, complete = self._partial("train", model, rng) * mirror, self._complete("train", model) * mirror
        return self._view(model, partial, complete, inputs, outputs, int(rng.integers(2**32)))

    def held_out_view(self, split: Split, index: int, inputs: int, outputs: int) -> View:
        """The first view of a model."""
        model = self.units(split)[index]
        return self._view(
            model, self._partial(split, model, None), self._complete(split, model), inputs, outputs, index
        )

    def mean_shape(self, count: int) -> np.ndarray:
        """Points drawn from training models together, [count, 3]."""
        rng = np.random.default_rng(_MIXTURE_STREAM)
        models = self.units("train")
        chosen = rng.permutation(len(models))[:_MIXED]
        each = -(-count // len(chosen))
        clouds = [resample(self._complete("train", models[index]), each, rng) for index in chosen]
        return resample(np.concatenate(clouds), count, rng)


def _reduced(complete: np.ndarray, count: int, model: str, rng: np.random.Generator) -> np.ndarray:
    """``count`` of the complete cloud's points, and as they are where that is all of them."""
    if len(complete) < count:
        raise ValueError(f"{model}: its complete cloud has {len(complete)} points, and {count} are wanted")
    return complete if len(complete) == count else resample(complete, count, rng)
