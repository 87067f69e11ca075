"""The layout of PCN, in a small copy of it made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tasks.pcc.original import PCN, parse_pcd, read_cloud
from tasks.pcc.task import PointCloudCompletion
from tasks.sources import DataUnavailable

HEADER = """# .PCD v0.7 - Point Cloud Data file format
VERSION 0.7
FIELDS x y z
SIZE 4 4 4
TYPE F F F
COUNT 1 1 1
WIDTH {count}
HEIGHT 1
VIEWPOINT 0 0 0 1 0 0 0
POINTS {count}
DATA {kind}
"""
MODELS = {"train": ["1a", "1b", "1c"], "val": ["2a"], "test": ["3a", "3b"]}


def pcd(points: np.ndarray, kind: str = "binary") -> bytes:
    header = HEADER.format(count=len(points), kind=kind).encode()
    if kind == "binary":
        return header + points.astype("<f4").tobytes()
    return header + "\n".join(" ".join(f"{value:.6g}" for value in point) for point in points).encode()


def cloud(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, size=(count, 3)).astype(np.float32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six models; complete clouds of 2,000 points, two views of 300 in training and one else."""
    for folder, models in MODELS.items():
        for model in models:
            complete = tmp_path / folder / "complete" / "0269"
            partial = tmp_path / folder / "partial" / "0269" / model
            complete.mkdir(parents=True, exist_ok=True)
            partial.mkdir(parents=True)
            (complete / f"{model}.pcd").write_bytes(pcd(cloud(2000, 100 + ord(model[1]))))
            for view in range(2 if folder == "train" else 1):
                (partial / f"{view:02d}.pcd").write_bytes(pcd(cloud(300, ord(model[1]) + view), "ascii"))
    index = [{"taxonomy_id": "0269", "taxonomy_name": "airplane", **MODELS}]
    (tmp_path / "PCN.json").write_text(json.dumps(index))
    return tmp_path


@pytest.mark.parametrize("kind", ["binary", "ascii"])
def test_pcd_is_read(kind):
    points = cloud(20, 0)
    # Six digits are written in the text form.
    np.testing.assert_allclose(parse_pcd(pcd(points, kind), "a"), points, rtol=0 if kind == "binary" else 1e-5)


def test_pcd_with_more_fields_in_another_order():
    rows = np.zeros(5, dtype=[("rgb", "<u4"), ("z", "<f8"), ("n", "<f4", 2), ("x", "<f4"), ("y", "<f4")])
    points = cloud(5, 0)
    rows["x"], rows["y"], rows["z"], rows["n"] = *points.T, 9.0
    header = "FIELDS rgb z _ x y\nSIZE 4 8 4 4 4\nTYPE U F F F F\nCOUNT 1 1 2 1 1\nPOINTS 5\nDATA binary\n"
    assert np.array_equal(parse_pcd(header.encode() + rows.tobytes(), "a"), points)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a cloud", "wing.pcd: not a PCD file"),
        (pcd(cloud(9, 0))[:-1], "wing.pcd: 107 bytes of points, but 9 points take 108"),
        (pcd(cloud(9, 0), "ascii").rpartition(b" ")[0], "wing.pcd: 26 values, but 9 points take 27"),
        (pcd(cloud(9, 0), "ascii") + b"x", "wing.pcd: a value is not a number"),
        (pcd(cloud(9, 0)).replace(b"x y z", b"x y w"), "wing.pcd: the PCD file has no field z"),
        (pcd(cloud(9, 0)).replace(b"SIZE 4 4 4\n", b""), "wing.pcd: the PCD header has no line SIZE"),
        (pcd(cloud(9, 0)).replace(b"SIZE 4 4 4", b"SIZE 4 4"), "wing.pcd: FIELDS, SIZE, TYPE and COUNT"),
        (pcd(cloud(9, 0)).replace(b"SIZE 4", b"SIZE 3"), "wing.pcd: the PCD header is not understood"),
        (
            pcd(cloud(9, 0)).replace(b"DATA binary", b"DATA binary_compressed"),
            "wing.pcd: DATA binary_compressed is not",
        ),
        (pcd(np.full((3, 3), np.nan)), "wing.pcd: point 0 is not finite"),
        (pcd(np.zeros((0, 3))), "wing.pcd: the PCD file has POINTS 0"),
    ],
)
def test_bad_pcd_is_one_line(content, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_pcd(content, "wing.pcd")
    assert "\n" not in str(error.value)


def test_arrays_are_read_too_and_bad_ones_named(tmp_path):
    points = cloud(4, 0)
    np.save(tmp_path / "a.npy", points)
    assert np.array_equal(read_cloud(tmp_path / "a.npy"), points)
    np.save(tmp_path / "b.npy", points[:, :2])
    (tmp_path / "c.npy").write_bytes(b"no array")
    for name in ("b.npy", "c.npy"):
        with pytest.raises(ValueError, match=name):
            read_cloud(tmp_path / name)


@pytest.mark.parametrize("indexed", [True, False])
def test_models_are_those_of_the_index_or_of_the_folders(root, indexed):
    if not indexed:
        (root / "PCN.json").unlink()
    pcn = PCN(root)
    assert pcn.units("train") == ["0269/1a", "0269/1b", "0269/1c"]
    assert pcn.units("validation") == ["0269/2a"]
    assert pcn.units("test") == ["0269/3a", "0269/3b"]


def test_held_out_view_is_in_the_file_s_frame(root):
    view = PCN(root).held_out_view("test", 1, 300, 2000)
    assert view.unit == "0269/3b"
    partial = read_cloud(root / "test/partial/0269/3b/00.pcd")
    assert {tuple(point) for point in view.partial.tolist()} == {tuple(point) for point in partial.tolist()}
    assert np.array_equal(view.complete, read_cloud(root / "test/complete/0269/3b.pcd"))


def test_training_views_are_mirrored_pairs(root):
    pcn = PCN(root)
    seen = set()
    for seed in range(30):
        view = pcn.training_view(300, 2000, np.random.default_rng(seed))
        complete = read_cloud(root / f"train/complete/{view.unit}.pcd")
        mirror = np.sign(view.complete[0] * complete[0])
        assert np.array_equal(view.complete, complete * mirror)
        files = (root / f"train/partial/{view.unit}").iterdir()
        unmirrored = {tuple(point) for point in (view.partial * mirror).tolist()}
        assert any(unmirrored == {tuple(point) for point in read_cloud(file).tolist()} for file in files)
        seen.add(tuple(mirror.tolist()))
    assert seen == {(x, 1.0, z) for x in (1.0, -1.0) for z in (1.0, -1.0)}


def test_task_runs_on_the_layout(root):
    task = PointCloudCompletion(data="original", data_root=str(root))
    task.prepare()
    assert "ShapeNet" in task.card.source
    assert "metaworld" in PointCloudCompletion.card.source
    batch = next(task.batches("train", 1))
    assert batch["partial"].shape == (16, 256, 3)
    floors = task.floors("test")
    assert floors["partial"].units == ["0269/3a", "0269/3b"]


def test_absent_data_say_where_they_are_published(tmp_path):
    task = PointCloudCompletion(data="original", data_root=str(tmp_path))
    with pytest.raises(DataUnavailable, match=r"no .*PCN.json.*yuxumin/PoinTr") as error:
        task.prepare()
    assert "\n" not in str(error.value)


def test_missing_file_is_named(root):
    (root / "test/complete/0269/3a.pcd").unlink()
    with pytest.raises(DataUnavailable, match=r"missing: .*test/complete/0269/3a.pcd"):
        PCN(root).held_out_view("test", 0, 300, 2000)
    (root / "test/partial/0269/3b/00.pcd").unlink()
    with pytest.raises(DataUnavailable, match=r"missing: .*test/partial/0269/3b/00.pcd"):
        PCN(root).held_out_view("test", 1, 300, 2000)


def test_too_few_points_is_one_line(root):
    with pytest.raises(ValueError, match="0269/3a: its complete cloud has 2000 points, and 16384 are wanted"):
        PCN(root).held_out_view("test", 0, 300, 16_384)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "PCN.json: not JSON"),
        ("{}", "PCN.json: expected a list"),
        ('[{"taxonomy_id": "1", "train": [], "test": []}]', "PCN.json: a class has no 'val'"),
        (
            '[{"taxonomy_id": "1", "train": ["a"], "val": [], "test": ["a"]}]',
            "1/a is in the train part and in the test",
        ),
        ('[{"taxonomy_id": "1", "train": [], "val": [], "test": ["a"]}]', "no model in the train part"),
    ],
)
def test_bad_index_is_one_line(root, content, message):
    (root / "PCN.json").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        PCN(root).units("train")
    assert "\n" not in str(error.value)
