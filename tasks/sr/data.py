"""Pairs of a small and a large picture: degradation, crops, splits, and the pictures that scikit-image ships.

Knows nothing of models. Pictures are uint8 [side, side, 3] with values 0 .. 255; grey ones have three equal colours.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tasks.contract import Split
from tasks.sources import Source, derived

SOURCE = Source(
    package="scikit-image",
    version="0.26.0",
    sha256="74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    size=13_711_217,
    licence=(
        "photographs CC0, public domain or without known restrictions, each named in tasks/sr/README.md; the faces come"
        " from LFW, published for research: fetched for local use, never redistributed"
    ),
    description="photographs and faces",
    tags="cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64",
)
# Of skimage/data, the pictures that a camera took and whose terms its docstrings state. Left out: drawings, renderings
# and scanned text, moon and motorcycle (no terms stated), microaneurysms (102 pixels) and cell (a phase image).
PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
    "rocket.jpg",
)
FACES, FACE_COUNT = "lfw_subset.npy", 100  # rows of lfw_subset.npy; the hundred after them are no faces

KEPT_SIDE = 256  # pixels of a photograph's shorter side in the cache: twice what the largest size asks for
PATCHES_PER_PHOTOGRAPH = 8  # scored
FACE_SHARE = 0.5  # of the training patches, where faces are large enough

_CACHE_NAME = "pictures_1.npz"
_SCORED = 0x5CED  # own stream of random numbers for the crops that are scored


@dataclass(frozen=True)
class Patch:
    """A small square picture and the large one that it was made from."""

    low: UInt8[np.ndarray, "L L 3"]
    high: UInt8[np.ndarray, "S S 3"]


class Pictures(Protocol):
    """The pictures of one split."""

    def draw(self, rng: np.random.Generator) -> Patch:
        """A random training patch."""
        ...

    def scored(self) -> Iterator[tuple[str, Patch]]:
        """The fixed patches to be scored, each with the name of its picture; patches of a picture follow each other."""
        ...


@dataclass(frozen=True)
class Picture:
    """A photograph or face: its name, the SHA-256 of its content, the pixels [H, W, 3], and what it is."""

    name: str
    key: str
    pixels: np.ndarray
    is_face: bool


def split_of(key: str) -> Split:
    """Half of all pictures for training, a tenth for validation, the others for the test: by their own content alone.

    The test part is large because its pictures are what the interval of a score rests on.
    """
    residue = int(key[:16], 16) % 10
    return "train" if residue < 5 else "validation" if residue < 6 else "test"


def shrink(high: UInt8[np.ndarray, "S S 3"], side: int) -> UInt8[np.ndarray, "L L 3"]:
    """The low-resolution picture: bicubic with antialiasing, as SR3's data are prepared."""
    return np.asarray(Image.fromarray(high).resize((side, side), Image.Resampling.BICUBIC))


def bicubic(low: UInt8[np.ndarray, "L L 3"], side: int) -> UInt8[np.ndarray, "S S 3"]:
    """The upsampled picture that the model is conditioned on (SR3, section 2.4), and a floor."""
    return np.asarray(Image.fromarray(low).resize((side, side), Image.Resampling.BICUBIC))


def nearest(low: UInt8[np.ndarray, "L L 3"], side: int) -> UInt8[np.ndarray, "S S 3"]:
    """Each pixel as a square; ``side`` is a multiple of L."""
    factor = side // len(low)
    return low.repeat(factor, axis=0).repeat(factor, axis=1)


def random_square(image: Image.Image, side: int, rng: np.random.Generator) -> UInt8[np.ndarray, "S S 3"]:
    """A square of random place and size (log-uniform from ``side`` to the shorter side), brought to ``side`` pixels."""
    largest = min(image.size)
    edge = int(np.exp(rng.uniform(np.log(side), np.log(largest + 1))))
    edge = min(max(edge, side), largest)
    left, top = (int(rng.integers(extent - edge + 1)) for extent in image.size)
    box = (left, top, left + edge, top + edge)
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=box))


def as_patch(high: UInt8[np.ndarray, "S S 3"], low_side: int, *, mirrored: bool = False) -> Patch:
    """The pair of a large picture, mirrored left to right where asked."""
    high = np.ascontiguousarray(high[:, ::-1]) if mirrored else high
    return Patch(shrink(high, low_side), high)


class ShippedPictures:
    """Patches of the pictures of a split; a patch is never larger than its picture's pixels.

    Args:
        pictures: those of the split; the ones with a shorter side below ``high_side`` are left out.
        low_side, high_side: L and S.
        name: of the split, for the message where no picture is left.
    """

    def __init__(self, pictures: Sequence[Picture], low_side: int, high_side: int, name: str) -> None:
        self.low_side, self.high_side = low_side, high_side
        self.pictures = [picture for picture in pictures if min(picture.pixels.shape[:2]) >= high_side]
        if not self.pictures:
            raise ValueError(f"no picture of the {name} part has {high_side} pixels on its shorter side")
        self._images = [Image.fromarray(picture.pixels) for picture in self.pictures]
        faces = np.array([picture.is_face for picture in self.pictures])
        self._chances = np.where(faces, FACE_SHARE / max(1, faces.sum()), (1 - FACE_SHARE) / max(1, (~faces).sum()))
        self._chances /= self._chances.sum()

    def draw(self, rng: np.random.Generator) -> Patch:
        image = self._images[int(rng.choice(len(self._images), p=self._chances))]
        return as_patch(random_square(image, self.high_side, rng), self.low_side, mirrored=bool(rng.integers(2)))

    def scored(self) -> Iterator[tuple[str, Patch]]:
        for picture, image in zip(self.pictures, self._images, strict=True):
            for number in range(1 if picture.is_face else PATCHES_PER_PHOTOGRAPH):
                rng = np.random.default_rng((_SCORED, int(picture.key[:16], 16), number))
                yield picture.name, as_patch(random_square(image, self.high_side, rng), self.low_side)


def faces_of(array: np.ndarray, name: str) -> list[Picture]:
    """The first hundred rows of ``array`` [N, 25, 25] (0 .. 1) as grey pictures; a repeated one is left out.

    Raises:
        ValueError: the shape is another, or a value is not in [0, 1] (NaN included).
    """
    if array.ndim != 3 or len(array) < FACE_COUNT:
        raise ValueError(f"{name} has shape {list(array.shape)}, expected at least {FACE_COUNT} pictures")
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"{name} has values outside [0, 1]")
    found: dict[str, Picture] = {}
    for number, face in enumerate(np.round(255 * array[:FACE_COUNT]).astype(np.uint8)):
        key = hashlib.sha256(face.tobytes()).hexdigest()
        found.setdefault(key, Picture(f"face {number:03d}", key, face[:, :, None].repeat(3, axis=2), is_face=True))
    return list(found.values())


def _photograph(content: bytes, file: str) -> Picture:
    with Image.open(io.BytesIO(content)) as image:
        picture = image.convert("RGB")
    ratio = KEPT_SIDE / min(picture.size)
    if ratio < 1:
        width, height = (max(KEPT_SIDE, round(ratio * extent)) for extent in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return Picture(Path(file).stem, hashlib.sha256(content).hexdigest(), np.asarray(picture), is_face=False)


def _extract(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        pictures = [_photograph(archive.read(f"skimage/data/{file}"), file) for file in PHOTOGRAPHS]
        faces = np.load(io.BytesIO(archive.read(f"skimage/data/{FACES}")), allow_pickle=False)
    pictures += faces_of(faces, FACES)
    arrays: dict[str, Any] = {f"pixels {number:03d}": picture.pixels for number, picture in enumerate(pictures)}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        names=np.array([picture.name for picture in pictures]),
        keys=np.array([picture.key for picture in pictures]),
        is_face=np.array([picture.is_face for picture in pictures]),
        **arrays,
    )
    return buffer.getvalue()


def load() -> list[Picture]:
    """All shipped pictures, of every split; from the cache after the first call on a machine."""
    with np.load(derived(_CACHE_NAME, SOURCE, _extract), allow_pickle=False) as arrays:
        described = zip(arrays["names"].tolist(), arrays["keys"].tolist(), arrays["is_face"].tolist(), strict=True)
        return [
            Picture(name, key, arrays[f"pixels {number:03d}"], is_face)
            for number, (name, key, is_face) in enumerate(described)
        ]
