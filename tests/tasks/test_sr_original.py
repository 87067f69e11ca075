"""FFHQ and CelebA-HQ in their two layouts, on small pictures of our own, whole and damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.sources import DataUnavailable
from tasks.sr import data, original
from tasks.sr.task import SuperResolution


def pixels(seed: int, side: int) -> np.ndarray:
    low = np.random.default_rng(seed).integers(256, size=(4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(low).resize((side, side), Image.Resampling.BICUBIC))


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Both data sets as the preparation script of the public SR3 leaves them, for 8 -> 16."""
    for data_set, count in (("ffhq", 5), ("celebahq", 8)):
        for number in range(count):
            high, folder = pixels(number, 16), tmp_path / f"{data_set}_8_16"
            write(folder / "hr_16" / f"{number:05d}.png", high)
            write(folder / "lr_8" / f"{number:05d}.png", data.shrink(high, 8))
            write(folder / "sr_8_16" / f"{number:05d}.png", data.bicubic(data.shrink(high, 8), 16))
    return tmp_path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """FFHQ in folders of a thousand, CelebA-HQ in one."""
    for number in range(4):
        write(tmp_path / "ffhq" / "00000" / f"{number:05d}.png", pixels(number, 32))
    for number in range(8):
        write(tmp_path / "celebahq" / f"{number:05d}.jpg", pixels(number, 24))
    (tmp_path / "ffhq" / "LICENSE.txt").write_text("terms")
    return tmp_path


def task(root: Path) -> SuperResolution:
    return SuperResolution(data="original", data_root=str(root))


@pytest.mark.parametrize("layout", ["prepared", "plain"])
def test_both_layouts_give_training_and_held_out_pictures(layout, request):
    found = task(request.getfixturevalue(layout))
    found.prepare()
    assert found.card.source == original.SOURCE_TEXT
    assert found.card.licence != type(found).card.licence
    batch = next(found.batches("train", seed=0))
    assert batch["target"].shape == batch["condition"].shape == (16, 3, 16, 16)
    names = {split: [name for name, _ in found.scored(split)] for split in ("validation", "test")}
    assert not set(names["validation"]) & set(names["test"])
    assert sum(map(len, names.values())) == 8
    assert found.floors("test")["nearest"].units == names["test"]


def test_a_prepared_pair_is_read_as_it_is_and_equals_the_script_s_sr(prepared):
    folder = original.open_folder(prepared, "ffhq", 8, 16)
    patch = folder.patch("00003.png")
    assert np.array_equal(patch.high, pixels(3, 16))
    with Image.open(prepared / "ffhq_8_16" / "sr_8_16" / "00003.png") as upsampled:
        assert np.array_equal(data.bicubic(patch.low, 16), np.asarray(upsampled))


def test_a_plain_picture_is_prepared_as_by_the_script(plain):
    """Which brings the shorter side to S pixels, and cuts the middle out then."""
    wide = np.concatenate([pixels(seed, 32) for seed in (7, 8)], axis=1)
    write(plain / "ffhq" / "wide.png", wide)
    folder = original.open_folder(plain, "ffhq", 8, 16)
    assert "00000/00002.png" in folder.names
    assert len(folder.names) == 5  # the licence is no picture
    patch = folder.patch("wide.png")
    expected = Image.fromarray(wide).resize((32, 16), Image.Resampling.BICUBIC).crop((8, 0, 24, 16))
    assert np.array_equal(patch.high, np.asarray(expected))
    assert np.array_equal(patch.low, data.shrink(patch.high, 8))


def test_few_scored_pictures_where_the_size_asks_for_few(plain):
    assert len(original.load(plain, "test", 8, 16, scored=2).names) <= 2


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_opaque_pictures_of_other_modes_become_rgb(tmp_path, mode):
    path = tmp_path / "picture.png"
    Image.fromarray(pixels(0, 16)).convert(mode).save(path)
    picture = original.read_picture(path)
    assert picture.mode == "RGB"
    if mode == "L":
        channels = np.asarray(picture)
        assert (channels[..., :1] == channels).all()


def damaged(path: Path, how: str) -> None:
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif how == "text":
        path.write_text("not found")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "transparent":
        Image.fromarray(pixels(0, 16)).convert("RGBA").resize((20, 20)).rotate(45).save(path)
    elif how == "16 bits":
        Image.fromarray(np.full((16, 16), 40_000, dtype=np.uint16)).save(path)
    elif how == "small":
        Image.fromarray(pixels(0, 15)).save(path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", "cannot be read"),
        ("text", "no picture that can be read"),
        ("empty", "no picture that can be read"),
        ("transparent", "transparent pixels"),
        ("16 bits", "has mode I;16"),
        ("small", r"has 15 x 15 pixels, (fewer than|expected) 16 x 16"),
    ],
)
@pytest.mark.parametrize("layout", ["prepared", "plain"])
def test_a_damaged_picture_is_one_line_that_names_it(layout, how, message, request):
    root = request.getfixturevalue(layout)
    folder = original.open_folder(root, "ffhq", 8, 16)
    name = folder.names[1]
    damaged(folder.root / name, how)
    with pytest.raises(ValueError, match=message) as error:
        folder.patch(name)
    assert str(folder.root / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_small_picture_of_another_size_is_one_line(prepared):
    path = write(prepared / "ffhq_8_16" / "lr_8" / "00001.png", pixels(1, 9))
    with pytest.raises(ValueError, match="has 9 x 9 pixels, expected 8 x 8") as error:
        original.open_folder(prepared, "ffhq", 8, 16).patch("00001.png")
    assert str(path) in str(error.value)


@pytest.mark.parametrize(("kept", "lost"), [("hr_16", "lr_8"), ("lr_8", "hr_16")])
def test_a_picture_without_its_pair_is_one_line(prepared, kept, lost):
    (prepared / "celebahq_8_16" / lost / "00004.png").unlink()
    with pytest.raises(ValueError, match=f"{lost} lacks 00004.png") as error:
        task(prepared).prepare()
    assert "\n" not in str(error.value)


def test_absent_data_say_where_they_are_published_and_where_to_put_them(tmp_path, monkeypatch):
    monkeypatch.setenv("CAB_CACHE", str(tmp_path))
    found = SuperResolution(data="original")
    assert found.original_root == tmp_path / "original" / "ffhq-celebahq"
    with pytest.raises(DataUnavailable, match="FFHQ is published at https://github") as error:
        found.prepare()
    assert str(found.original_root / "ffhq") in str(error.value)
    assert "\n" not in str(error.value)


def test_only_training_pictures_are_there(prepared):
    for path in (prepared / "celebahq_8_16" / "hr_16").iterdir():
        path.unlink()
    with pytest.raises(DataUnavailable, match="CelebA-HQ"):
        task(prepared).prepare()
