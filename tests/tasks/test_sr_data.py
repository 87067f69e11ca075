"""Pairs of pictures: degradation, crops, splits, faces."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from tasks.sr import data


def picture(name: str, side: int = 40, *, is_face: bool = False) -> data.Picture:
    pixels = np.random.default_rng(len(name)).integers(256, size=(side, side + 3, 3), dtype=np.uint8)
    return data.Picture(name, hashlib.sha256(name.encode()).hexdigest(), pixels, is_face)


def test_nearest_repeats_pixels_and_bicubic_keeps_a_flat_picture():
    low = np.random.default_rng(0).integers(256, size=(4, 4, 3), dtype=np.uint8)
    high = data.nearest(low, 12)
    assert high.shape == (12, 12, 3)
    assert np.array_equal(high[1::3, 1::3], low)
    assert np.array_equal(high[::3, ::3], high[2::3, 2::3])
    flat = np.full((12, 12, 3), 77, dtype=np.uint8)
    assert (data.shrink(flat, 4) == 77).all()
    assert (data.bicubic(data.shrink(flat, 4), 12) == 77).all()


def test_shrinking_averages_what_it_leaves_out():
    """A checkerboard of single pixels has no detail at half the side: antialiasing makes it grey."""
    board = (255 * (np.indices((16, 16)).sum(axis=0) % 2)).astype(np.uint8)[:, :, None].repeat(3, axis=2)
    inner = data.shrink(board, 8)[2:-2, 2:-2]
    assert np.abs(inner.astype(int) - 127).max() <= 1


def test_squares_lie_inside_and_are_never_enlarged():
    marked = np.zeros((30, 50, 3), dtype=np.uint8)
    marked[..., 0], marked[..., 1] = np.arange(30)[:, None], np.arange(50)
    rng = np.random.default_rng(0)
    image = Image.fromarray(marked)
    squares = [data.random_square(image, 10, rng) for _ in range(300)]
    steps = [int(square[9, 5, 0]) - int(square[0, 5, 0]) for square in squares]
    assert min(steps) == 9  # single pixels
    assert max(steps) >= 25  # nearly the whole height
    assert max(int(square[..., 1].max()) for square in squares) >= 48
    assert {square.shape for square in squares} == {(10, 10, 3)}


def test_a_square_of_the_own_size_is_the_pixels():
    pixels = np.random.default_rng(0).integers(256, size=(16, 16, 3), dtype=np.uint8)
    assert np.array_equal(data.random_square(Image.fromarray(pixels), 16, np.random.default_rng(1)), pixels)


def test_mirrored_pairs_are_mirrored_together():
    high = np.random.default_rng(0).integers(256, size=(16, 16, 3), dtype=np.uint8)
    plain, mirrored = data.as_patch(high, 8), data.as_patch(high, 8, mirrored=True)
    assert np.array_equal(mirrored.high, high[:, ::-1])
    assert np.abs(mirrored.low[:, ::-1].astype(int) - plain.low).max() <= 1  # rounding of the filter


def test_split_follows_the_content_alone():
    keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(2000)]
    found = [data.split_of(key) for key in keys]
    shares = [found.count(split) / len(found) for split in ("train", "validation", "test")]
    assert shares == pytest.approx([0.5, 0.1, 0.4], abs=0.04)  # binomial: 3.6 deviations at most
    assert [data.split_of(key) for key in keys[::-1]] == found[::-1]


def test_scored_patches_do_not_depend_on_the_other_pictures():
    both = data.ShippedPictures([picture("one"), picture("three")], 8, 16, "test")
    alone = data.ShippedPictures([picture("three")], 8, 16, "test")
    first = [patch.high for name, patch in both.scored() if name == "three"]
    second = [patch.high for _, patch in alone.scored()]
    assert len(first) == data.PATCHES_PER_PHOTOGRAPH
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({patch.tobytes() for patch in first}) > 1


def test_small_pictures_are_left_out_and_none_left_is_one_line():
    pictures = [picture("face", 25, is_face=True), picture("photograph", 64)]
    assert len(data.ShippedPictures(pictures, 4, 16, "train").pictures) == 2
    assert [p.name for p in data.ShippedPictures(pictures, 8, 32, "train").pictures] == ["photograph"]
    with pytest.raises(ValueError, match="no picture of the test part has 128 pixels") as error:
        data.ShippedPictures(pictures, 16, 128, "test")
    assert "\n" not in str(error.value)


def test_faces_are_half_of_what_is_drawn():
    flat = [np.full((32, 32, 3), value, dtype=np.uint8) for value in (0, 100, 200)]
    pictures = [data.Picture(str(n), "0" * 64, pixels, n == 0) for n, pixels in enumerate(flat)]
    source, rng = data.ShippedPictures(pictures, 8, 16, "train"), np.random.default_rng(0)
    values = [int(source.draw(rng).high[0, 0, 0]) for _ in range(600)]
    assert values.count(0) / 600 == pytest.approx(0.5, abs=0.08)  # 4 deviations


def test_faces_leave_out_repeats_and_what_is_no_face():
    array = np.random.default_rng(0).random((200, 25, 25))
    array[7] = array[3]
    faces = data.faces_of(array, "lfw_subset.npy")
    assert len(faces) == 99
    assert faces[0].pixels.shape == (25, 25, 3)
    assert np.array_equal(faces[5].pixels[..., 0], np.round(255 * array[5]).astype(np.uint8))
    assert {face.name for face in faces} == {f"face {n:03d}" for n in range(100) if n != 7}


@pytest.mark.parametrize("value", [np.nan, -0.1, 1.1])
def test_faces_with_impossible_values_are_one_line(value):
    array = np.zeros((100, 25, 25))
    array[50, 3, 3] = value
    with pytest.raises(ValueError, match=r"lfw_subset.npy has values outside \[0, 1\]"):
        data.faces_of(array, "lfw_subset.npy")


def test_too_few_faces_are_one_line():
    with pytest.raises(ValueError, match="has shape"):
        data.faces_of(np.zeros((99, 25, 25)), "lfw_subset.npy")
