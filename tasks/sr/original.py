"""FFHQ (training) and CelebA-HQ (held out) as folders of pictures. Knows nothing of models.

Per data set, one of two layouts below the data folder, the first where both are there:

    ffhq_16_128/hr_128/NAME.png, ffhq_16_128/lr_16/NAME.png      as the public SR3's ``prepare_data.py`` makes them; its
    celebahq_16_128/hr_128/..., celebahq_16_128/lr_16/...        sr_16_128 is not read: it is the bicubic of lr_16
    ffhq/**/*.png (or .jpg, .jpeg)                               pictures of any size from S x S pixels on: the middle
    celebahq/**/*.png (or .jpg, .jpeg)                           square, brought to S pixels here

The numbers in the first are those of the size. The LMDB form of the preparation is not read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from tasks.contract import Split
from tasks.sources import DataUnavailable
from tasks.sr.data import Patch, as_patch

SUFFIXES = (".png", ".jpg", ".jpeg")
PUBLISHED = {
    "ffhq": "https://github.com/NVlabs/ffhq-dataset",
    "celebahq": "https://github.com/tkarras/progressive_growing_of_gans",
}
NAME = "ffhq-celebahq"  # of their folder in the cache
TITLES = {"ffhq": "FFHQ", "celebahq": "CelebA-HQ"}
SOURCE_TEXT = "FFHQ (training), CelebA-HQ (validation and test), read from a folder"
LICENCE = "FFHQ: CC BY-NC-SA 4.0 and each picture's own; CelebA-HQ: non-commercial research only"
_WHOLE_COLOURS = ("RGB", "L", "P", "1")  # modes that become RGB without a loss


def read_picture(path: Path) -> Image.Image:
    """A picture as RGB; grey ones get three equal colours, and an alpha channel goes if it hides nothing.

    Raises:
        ValueError: the file is no picture or is cut short, has transparent pixels, or has other than 8-bit RGB or grey
            values (CMYK, 16 bits).
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                if np.asarray(image.convert("RGBA"))[:, :, 3].min() < 255:
                    raise ValueError(f"{path} has transparent pixels: expected an opaque RGB or grey picture")
            elif image.mode not in _WHOLE_COLOURS:
                raise ValueError(f"{path} has mode {image.mode}: expected 8-bit RGB or grey")
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "no picture that can be read" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(f"{path} cannot be read: {reason}") from error


def middle_square(image: Image.Image, side: int, path: Path) -> UInt8[np.ndarray, "S S 3"]:
    """The largest square around the middle, brought to ``side`` pixels; ``ValueError`` where it has fewer."""
    edge = min(image.size)
    if edge < side:
        raise ValueError(f"{path} has {image.size[0]} x {image.size[1]} pixels, fewer than {side} x {side}")
    left, top = ((extent - edge) // 2 for extent in image.size)
    box = (left, top, left + edge, top + edge)
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=box))


def exact_square(image: Image.Image, side: int, path: Path) -> UInt8[np.ndarray, "S S 3"]:
    """The pixels of a picture that must have ``side`` x ``side`` of them."""
    if image.size != (side, side):
        raise ValueError(f"{path} has {image.size[0]} x {image.size[1]} pixels, expected {side} x {side}")
    return np.asarray(image)


@dataclass(frozen=True)
class Folder:
    """Pictures of one data set, read when asked for.

    Attributes:
        root: what names are relative to.
        names: of the large pictures, sorted.
        low_root: where the small ones lie, under the same names; None where they are made here.
        low_side, high_side: L and S.
    """

    root: Path
    names: Sequence[str]
    low_root: Path | None
    low_side: int
    high_side: int

    def patch(self, name: str) -> Patch:
        path = self.root / name
        image = read_picture(path)
        if self.low_root is None:
            return as_patch(middle_square(image, self.high_side, path), self.low_side)
        high = exact_square(image, self.high_side, path)
        low_path = self.low_root / name
        return Patch(exact_square(read_picture(low_path), self.low_side, low_path), high)

    def draw(self, rng: np.random.Generator) -> Patch:
        """A picture, mirrored left to right with probability 1/2."""
        patch = self.patch(self.names[int(rng.integers(len(self.names)))])
        if not rng.integers(2):
            return patch
        return Patch(*(np.ascontiguousarray(part[:, ::-1]) for part in (patch.low, patch.high)))

    def scored(self) -> Iterator[tuple[str, Patch]]:
        for name in self.names:
            yield name, self.patch(name)


def _names(folder: Path) -> list[str]:
    """Names of the pictures below a folder, sorted; other files (a licence, a listing) are passed over."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def open_folder(root: Path, data_set: str, low_side: int, high_side: int) -> Folder:
    """The pictures of ``ffhq`` or ``celebahq`` below ``root``; lists the files and opens none.

    Raises:
        DataUnavailable: neither layout is there, or no picture lies in it.
        ValueError: a large picture has no small one, or a small one no large one.
    """
    prepared, plain = root / f"{data_set}_{low_side}_{high_side}", root / data_set
    high_root = prepared / f"hr_{high_side}"
    low_root = prepared / f"lr_{low_side}" if high_root.is_dir() else None
    if low_root is None:
        high_root = plain
    names = _names(high_root)
    if not names:
        raise DataUnavailable(
            f"no PNG or JPEG picture in {prepared / f'hr_{high_side}'} or {plain}: {TITLES[data_set]} is published at"
            f" {PUBLISHED[data_set]}; put its pictures into the latter, or name another folder than {root} by data_root"
        )
    if low_root is not None:
        unpaired = sorted(set(names) ^ set(_names(low_root)))
        if unpaired:
            lacking = low_root if unpaired[0] in set(names) else high_root
            raise ValueError(
                f"{lacking} lacks {unpaired[0]}, the pair of a picture beside it ({len(unpaired)} lacking)"
            )
    return Folder(high_root, names, low_root, low_side, high_side)


def load(root: Path, split: Split, low_side: int, high_side: int, scored: int) -> Folder:
    """FFHQ for training; of CelebA-HQ the first ``scored`` pictures, by name, of the split.

    A picture of CelebA-HQ is of the test or the validation part by the last bit of the SHA-256 of its name.
    """
    if split == "train":
        return open_folder(root, "ffhq", low_side, high_side)
    folder = open_folder(root, "celebahq", low_side, high_side)
    odd = 1 if split == "test" else 0
    names = [name for name in folder.names if hashlib.sha256(name.encode()).digest()[-1] % 2 == odd][:scored]
    if not names:
        raise ValueError(f"{folder.root} has no picture for the {split} part among its {len(folder.names)}")
    return Folder(folder.root, names, folder.low_root, low_side, high_side)
