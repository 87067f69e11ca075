"""The shipped pictures: fetched once (14 MB), then from the cache."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tasks.sr import data
from tasks.sr.task import SuperResolution


@pytest.mark.slow
def test_shipped_pictures_are_what_the_card_says():
    pictures = data.load()
    assert len({picture.key for picture in pictures}) == len(pictures) == 113
    counts = Counter((data.split_of(picture.key), picture.is_face) for picture in pictures)
    assert counts == {
        ("train", True): 55,
        ("train", False): 8,
        ("validation", True): 11,
        ("test", True): 34,
        ("test", False): 5,
    }
    assert min(min(p.pixels.shape[:2]) for p in pictures if not p.is_face) == data.KEPT_SIDE
    # No face is another one again: the closest two differ by a tenth of the range of grey levels.
    faces = np.stack([p.pixels[..., 0] for p in pictures if p.is_face]).astype(float) / 255
    distance = ((faces[:, None] - faces) ** 2).mean(axis=(2, 3)) + np.eye(len(faces))
    assert distance.min() > 0.01
    task = SuperResolution()
    floors = {name: scores.values["psnr"].mean() for name, scores in task.floors("test").items()}
    assert len(task.floors("test")["zero"].units) == 39
    assert floors["zero"] < floors["nearest"] < floors["bicubic"]
