"""The shipped meshes: fetched once (37 MB), then from the cache."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.pcc import data
from tasks.pcc.task import PointCloudCompletion


@pytest.mark.slow
def test_shipped_meshes_are_what_the_card_says():
    meshes = data.load()
    assert len(meshes) == 131
    assert sum(len(triangles) >= 500 for _, triangles in meshes) == 30
    task = PointCloudCompletion()
    assert len(task.collection.shapes) == 103
    by_split = task.collection.by_split
    assert {split: len(shapes) for split, shapes in by_split.items()} == {"train": 68, "validation": 11, "test": 24}
    # No mesh of a held-out part looks like one of the training part, whatever its pose, size and name.
    train, test = (
        np.stack([data.signature(mesh) for shape in by_split[split] for mesh in shape.meshes])
        for split in ("train", "test")
    )
    assert np.abs(train[:, None] - test).max(axis=-1).min() >= data.ALIKE
    floors = {name: scores.values["cd_l1"].mean() for name, scores in task.floors("test").items()}
    assert floors["mirrored"] < floors["partial"] < floors["mean_shape"]
