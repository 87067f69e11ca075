"""Meshes to pairs of clouds: reading, sampling, the camera, groups of equal geometry, splits."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tasks.pcc import data, view
from tasks.pcc.data import Shapes, normalise, parse_stl, sample_surface


def box(*size: float) -> np.ndarray:
    """The twelve triangles of a box about the origin."""
    triangles = []
    for axis in range(3):
        u, v = [other for other in range(3) if other != axis]
        for side in (-0.5, 0.5):
            corners = np.zeros((4, 3))
            corners[:, axis] = side
            corners[:, u], corners[:, v] = (-0.5, 0.5, 0.5, -0.5), (-0.5, -0.5, 0.5, 0.5)
            triangles += [corners[[0, 1, 2]], corners[[0, 2, 3]]]
    return (np.stack(triangles) * np.array(size)).astype(np.float32)


def sphere(rings: int = 60) -> np.ndarray:
    """Triangles of a ball of radius 0.5."""
    polar, around = np.meshgrid(np.linspace(0, np.pi, rings), np.linspace(0, 2 * np.pi, 2 * rings), indexing="ij")
    points = 0.5 * np.stack((np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)), axis=-1)
    a, b, c, d = points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:]
    both = np.concatenate([np.stack(corner, axis=2).reshape(-1, 3, 3) for corner in ((a, b, c), (a, c, d))])
    return both[data.areas(both) > 1e-12].astype(np.float32)


def stl(triangles: np.ndarray, count: int | None = None) -> bytes:
    records = b"".join(struct.pack("<12fH", 0, 0, 0, *triangle.ravel(), 0) for triangle in triangles)
    return b"\0" * 80 + struct.pack("<I", len(triangles) if count is None else count) + records


def meshes() -> list[tuple[str, np.ndarray]]:
    """Boxes of edges 1 >= a >= b, no two alike."""
    edges = (0.1, 0.3, 0.5, 0.7, 0.9)
    return [(f"box {a} {b}", box(1, a, b)) for a in edges for b in edges if b <= a]


def test_stl_is_read_and_degenerate_triangles_are_left_out():
    triangles = box(1, 2, 3)
    flat = np.concatenate((triangles, np.repeat(triangles[:1, :1], 3, axis=1)))
    assert np.array_equal(parse_stl(stl(flat), "a"), triangles)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cup: 0 bytes are too few"),
        (stl(box(1, 1, 1))[:-1], "cup: 683 bytes, but 12 triangles take 684"),
        (stl(box(1, 1, 1), count=13), "cup: 684 bytes, but 13 triangles take 734"),
        (b"solid cup\n" + b" facet normal 0 0 1\n" * 9, "cup: .*text STL file"),
        (stl(np.zeros((0, 3, 3))), "cup: the mesh has no faces"),
        (stl(np.zeros((4, 3, 3))), "cup: all 4 faces are degenerate"),
        (stl(np.where(np.arange(12)[:, None, None] == 7, np.nan, box(1, 1, 1))), "cup: .*triangle 7 is not finite"),
    ],
)
def test_a_bad_mesh_is_one_line(content, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_stl(content, "cup")
    assert "\n" not in str(error.value)


def test_normalised_mesh_fills_the_sphere_about_its_box():
    triangles = normalise(box(1, 2, 3) + 5)
    assert np.linalg.norm(triangles, axis=-1).max() == pytest.approx(0.5)
    assert triangles.max((0, 1)) + triangles.min((0, 1)) == pytest.approx(np.zeros(3), abs=1e-6)


def test_surface_is_sampled_by_area():
    points = sample_surface(box(1, 2, 4), 20_000, np.random.default_rng(0))
    on_face = np.isclose(np.abs(points), [0.5, 1, 2], atol=1e-6)
    assert on_face.any(axis=1).all()
    # Of the area 28, the faces across x, y, z have 16, 8, 4. Standard deviation of a share below 0.004.
    assert on_face.mean(axis=0) == pytest.approx([16 / 28, 8 / 28, 4 / 28], abs=0.015)


def test_resampling_repeats_only_where_it_must():
    points = np.arange(30).reshape(10, 3)
    fewer = data.resample(points, 6, np.random.default_rng(0))
    assert len(np.unique(fewer, axis=0)) == 6
    more = data.resample(points, 25, np.random.default_rng(0))
    assert len(more) == 25
    assert len(np.unique(more, axis=0)) == 10


def test_camera_sees_the_near_cap_of_a_ball_and_nothing_else():
    direction = np.array([2.0, -1.0, 2.0]) / 3
    points = view.visible_points(sphere(), direction, roll=0.7).astype(np.float64)
    assert np.linalg.norm(points, axis=1) == pytest.approx(np.full(len(points), 0.5), abs=2e-3)  # facets of the ball
    # The tangent from distance 1.5 touches the ball where p . direction = r^2 / 1.5.
    assert (points @ direction).min() == pytest.approx(0.25 / 1.5, abs=0.02)
    assert len(points) == pytest.approx(np.pi / 4 * view.PIXELS**2, rel=0.02)


def test_camera_sees_three_faces_of_a_box_and_points_lie_on_them():
    triangles = normalise(box(1, 2, 3))
    half = triangles.max((0, 1))
    points = view.visible_points(triangles, np.array([0.6, 0.64, -0.48]), roll=0.0)
    distance = np.abs(points - half * [1, 1, -1])
    assert distance.min(axis=1).max() < 1e-6
    assert (np.bincount(distance.argmin(axis=1), minlength=3) > 100).all()


def test_depth_is_exact_on_a_slanted_plane_and_the_nearer_triangle_wins():
    # The plane depth = 1.5 + x / 2, and a smaller one before it.
    plane = np.array([[[-9, -9, -3], [9, -9, 6], [0, 18, 1.5]]])
    plane = plane * 0.1 + np.array([0, 0, 1.35])
    image = view.depth_image(plane, 32)
    row, column = np.nonzero(np.isfinite(image))
    assert len(row) > 500
    at = ((column + 0.5) / 16 - 1) * view._HALF_WIDTH * image[row, column]
    assert image[row, column] == pytest.approx(1.5 + at / 2)
    nearer = np.array([[[-0.2, -0.2, 1.0], [0.2, -0.2, 1.0], [0.0, 0.2, 1.0]]])
    both = view.depth_image(np.concatenate((plane, nearer)), 32)
    assert both[16, 16] == pytest.approx(1.0)
    assert np.array_equal(both, view.depth_image(np.concatenate((nearer, plane)), 32))


def test_copies_that_are_turned_mirrored_and_scaled_are_one_shape():
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0].astype(np.float32)
    named = [("a", box(1, 2, 3)), ("b", box(1, 1, 3)), ("c", 7 * box(1, 2, 3) @ turn + 2), ("d", box(2, 3, 1))]
    shapes = Shapes.of(named, pixels=32, views=1).shapes
    assert [(shape.name, len(shape.meshes)) for shape in shapes] == [("a", 3), ("b", 1)]


def test_groups_are_joined_by_chains():
    steps = np.array([[0.0], [5.0], [0.03], [0.015], [5.01]])
    assert data.group_alike(steps).tolist() == [0, 1, 0, 0, 1]


def test_every_shape_is_in_one_split_whatever_the_others_are():
    all_shapes = Shapes.of(meshes(), pixels=32, views=2)
    assert len(all_shapes.shapes) == len(meshes())
    split = {shape.name: shape.split for shape in all_shapes.shapes}
    assert {"train", "validation", "test"} == set(split.values())
    half = Shapes.of(meshes()[::2], pixels=32, views=2)
    assert all(shape.split == split[shape.name] for shape in half.shapes)
    index = all_shapes.units("test").index(half.units("test")[0])
    first, second = all_shapes.held_out_view("test", index, 50, 60), half.held_out_view("test", 0, 50, 60)
    assert np.array_equal(first.partial, second.partial)
    assert np.array_equal(first.complete, second.complete)


def test_views_differ_and_lie_in_the_sphere():
    shapes = Shapes.of(meshes(), pixels=32, views=2)
    one, other = (shapes.held_out_view("test", index, 50, 60) for index in range(2))
    assert one.unit == other.unit
    assert not np.array_equal(one.partial, other.partial)
    trained = shapes.training_view(50, 60, np.random.default_rng(3))
    assert trained.partial.shape == (50, 3)
    assert trained.complete.shape == (60, 3)
    assert trained.unit in {shape.name for shape in shapes.of_split("train")}
    for cloud in (one.partial, one.complete, trained.partial, trained.complete):
        assert cloud.dtype == np.float32
        assert np.linalg.norm(cloud, axis=1).max() <= 0.5 + 1e-5


def test_augmentation_is_a_stretch_of_axes():
    rng = np.random.default_rng(0)
    for _ in range(20):
        extent = np.ptp(data.augmented(box(1, 1, 1), rng), axis=(0, 1))
        assert extent.max() / extent.min() <= data.STRETCH**2 + 1e-5
        assert np.linalg.norm(extent) == pytest.approx(1.0, rel=1e-5)  # a box still, along the axes


def test_empty_split_is_one_line():
    shapes = Shapes.of(meshes()[:1], pixels=32, views=1)
    empty = next(split for split in ("train", "test") if split != shapes.shapes[0].split)
    with pytest.raises(ValueError, match=f"no shape in the {empty} part of 1"):
        shapes.of_split(empty)
