"""The super-resolution task on made-up pictures: batches, the backbone, scores, floors and the sample."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from recording_slots import slots
from torch import nn

from attention_zoo.contract import Pattern
from tasks.contract import Slots
from tasks.sr import data, metrics
from tasks.sr.task import SIZES, SuperResolution


def made_up_pictures() -> list[data.Picture]:
    """Twelve smooth pictures, eight of them face-sized; the keys put four of each third into a split."""
    rng, found = np.random.default_rng(0), []
    for number in range(12):
        coarse = rng.integers(256, size=(5, 5, 3), dtype=np.uint8)
        side = 25 if number < 8 else 40
        pixels = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
        residue = (0, 5, 6)[number % 3]
        found.append(data.Picture(f"picture {number}", f"{16 * 10**6 * number + residue:016x}", pixels, number < 8))
    return found


@pytest.fixture
def task(monkeypatch):
    pictures = made_up_pictures()
    monkeypatch.setattr(data, "load", lambda: pictures)
    return SuperResolution(pattern=Pattern.NONCAUSAL_SELF)


def model_of(task: SuperResolution, given: Slots | None = None) -> nn.Module:
    torch.manual_seed(0)
    return task.build_model(given or slots("sdpa"))


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# -- the backbone's parameters ----------------------------------------------------------------------------------------


def convolution(inputs: int, outputs: int, side: int = 3) -> int:
    return inputs * outputs * side**2 + outputs


def published_parameters(attention_sides: Sequence[int], *, projection_biases: bool) -> int:
    """Layer by layer, from the configuration of the public SR3 (16 -> 128) that CAB ran.

    Features 64, multipliers 1, 2, 4, 8, 8, two residual blocks, side 128; pixels of 6 colours in, 3 out; attention in
    the middle always. Its query, key and value maps have no bias.
    """
    first, multipliers, blocks, side = 64, (1, 2, 4, 8, 8), 2, 128

    def norm(features: int) -> int:
        return 2 * features

    def attention(features: int) -> int:
        projections = 3 * features**2 + (3 * features if projection_biases else 0)
        return norm(features) + projections + convolution(features, features, 1)

    def block(inputs: int, outputs: int) -> int:
        level = first * outputs + outputs
        skip = convolution(inputs, outputs, 1) if inputs != outputs else 0
        body = norm(inputs) + convolution(inputs, outputs) + norm(outputs) + convolution(outputs, outputs)
        return level + body + skip

    total = (first * 4 * first + 4 * first) + (4 * first * first + first)  # embedding of the noise level
    total += convolution(6, first)
    width, passed = first, [first]
    for number, multiplier in enumerate(multipliers):
        if number:
            total += convolution(width, width)
            passed.append(width)
            side //= 2
        for _ in range(blocks):
            total += block(width, first * multiplier)
            width = first * multiplier
            total += attention(width) if side in attention_sides else 0
            passed.append(width)
    total += 2 * block(width, width) + attention(width)
    for number, multiplier in enumerate(reversed(multipliers)):
        if number:
            total += convolution(width, width)
            side *= 2
        for _ in range(blocks + 1):
            total += block(width + passed.pop(), first * multiplier)
            width = first * multiplier
            total += attention(width) if side in attention_sides else 0
    return total + norm(width) + convolution(width, 3)


def test_parameters_at_paper_size_are_the_published_network_s():
    # The public implementation (Janspiry/Image-Super-Resolution-via-Iterative-Refinement, ef9b943, the commit that CAB
    # names), built from its own config with attention at 16 alone: 97,807,491; with CAB's
    # 16, 32, 64 and 128: 99,534,531. Both were also counted by building its U-Net on the meta device.
    assert published_parameters((16,), projection_biases=False) == 97_807_491
    assert published_parameters((16, 32, 64, 128), projection_biases=False) == 99_534_531
    with torch.device("meta"):
        model = SuperResolution(size="paper").build_model(slots("sdpa"))
    ours = sum(parameter.numel() for parameter in model.parameters())
    # Attention layers of the zoo have biases on queries, keys and values: 3 x 5,312 in 21 layers, 0.016 % more.
    assert ours == published_parameters((16, 32, 64, 128), projection_biases=True) == 99_534_531 + 3 * 5312


def test_paper_size_takes_a_step_without_data_on_the_meta_device():
    task = SuperResolution(size="paper")
    with torch.device("meta"):
        model = task.build_model(slots("sdpa"))
        loss = task.loss(model, task.blank_batch(1))
    loss.backward()
    assert loss.shape == ()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_slots_are_asked_for_every_side(task):
    made = slots("sdpa")
    model_of(task, made)
    size = SIZES["tiny"]
    asked = [(width, length) for width, _, length, _ in made[Pattern.NONCAUSAL_SELF].asked]
    assert {length for _, length in asked} == {side**2 for side in size.attention_sides}
    assert len(asked) == 7  # one block down and two up at each of two levels, and the middle
    assert max(length for _, length in asked) == task.lengths[0] == task.card.lengths["tiny"][0]
    assert not any(slot.asked for pattern, slot in made.items() if pattern is not Pattern.NONCAUSAL_SELF)


def test_lengths_at_paper_size_are_cab_s():
    assert SuperResolution(size="paper").lengths == (16_384, None)


# -- batches and loss -------------------------------------------------------------------------------------------------


def test_batches_are_a_function_of_seed_and_index(task):
    batches = list(itertools.islice(task.batches("train", seed=1), 4))
    assert equal(next(task.batches("train", seed=1, start=3)), batches[3])
    assert not equal(batches[0], batches[1])
    assert not equal(batches[0], next(task.batches("train", seed=2)))
    held_out = list(task.batches("test", seed=1))
    assert equal(next(task.batches("test", seed=9, start=len(held_out) - 1)), held_out[-1])
    assert sum(len(batch["target"]) for batch in held_out) == len(task.scored("test"))


def test_splits_share_no_picture(task):
    names = {split: {picture.name for picture in task.pictures(split).pictures} for split in ("train", "test")}
    names["validation"] = {name for name, _ in task.scored("validation")}
    assert all(len(found) == 4 for found in names.values())
    assert len(set.union(*names.values())) == 12


def test_a_batch_is_what_it_says(task):
    batch = next(task.batches("train", seed=0))
    rows, side = SIZES["tiny"].batch, SIZES["tiny"].high
    assert batch["target"].shape == (rows, 3, side, side)
    assert all(tensor.dtype is torch.float32 for tensor in batch.values())
    assert batch["target"].abs().max() <= 1
    high = metrics.to_bytes(batch["target"])
    upsampled = np.stack([data.bicubic(data.shrink(picture, SIZES["tiny"].low), side) for picture in high])
    assert np.array_equal(metrics.to_bytes(batch["condition"]), upsampled)
    assert ((batch["level"] > task.schedule[-1]) & (batch["level"] < 1)).all()
    assert len(batch["level"].unique()) == rows
    assert task.tokens(batch) == rows * side**2
    blank = task.blank_batch(2)
    assert {name: (tensor[:2].shape, tensor.dtype) for name, tensor in batch.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in blank.items()
    }


def test_training_step_is_finite_and_reaches_every_parameter(task):
    model = model_of(task)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = task.batches("train", seed=0)
    for _ in range(2):  # blocks start as their skips, so that the first step reaches their last layers alone
        optimizer.zero_grad()
        task.loss(model, next(batches)).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # A bias of the keys shifts all logits of a row alike, and a softmax takes that away again.
        assert parameter.grad.any() or name.endswith("key_projection.bias"), name


def test_autocast_keeps_the_loss(task):
    model, batch = model_of(task), next(task.batches("train", seed=0))
    with torch.autocast("cpu", torch.bfloat16):
        low = task.loss(model, batch)
    assert low.item() == pytest.approx(task.loss(model, batch).item(), rel=0.02)  # bfloat16 has 8 bits


def test_the_noise_level_and_the_condition_change_the_estimate(task):
    model = model_of(task).eval()
    torch.nn.init.normal_(model.exit.weight)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.05)
    batch = next(task.batches("test", seed=0))
    before = model(batch["condition"], batch["noise"], batch["level"])
    assert not torch.allclose(before, model(batch["condition"], batch["noise"], batch["level"] * 0.5))
    assert not torch.allclose(before, model(-batch["condition"], batch["noise"], batch["level"]))


def test_a_pixel_reaches_the_farthest_one_through_attention(task):
    """Without attention, side 16 is farther than these convolutions see at full resolution; with it all is one step."""
    model = model_of(task).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1)
    batch = {name: tensor[:1] for name, tensor in next(task.batches("test", seed=0)).items()}
    moved = batch["noise"].clone()
    moved[:, :, 0, 0] += 5
    outputs = (model(batch["condition"], noise, batch["level"]) for noise in (batch["noise"], moved))
    first, second = outputs
    assert (first[:, :, -1, -1] != second[:, :, -1, -1]).all()


# -- scores -----------------------------------------------------------------------------------------------------------


class Knowing(nn.Module):
    """Knows the pictures of a split, in order of evaluation, and so the noise in what it is given."""

    def __init__(self, task: SuperResolution, split: str) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        patches = [patch for _, patch in task.scored(split)]
        self.conditions = metrics.from_bytes(np.stack([data.bicubic(patch.low, 16) for patch in patches]))
        self.targets = metrics.from_bytes(np.stack([patch.high for patch in patches]))

    def forward(self, condition, noisy, level):
        distance = (condition[:, None] - self.conditions).abs().flatten(2).sum(dim=2)
        g = level[:, None, None, None]
        return (noisy - g * self.targets[distance.argmin(dim=1)]) / (1 - g**2).sqrt()


def test_an_oracle_scores_perfectly(task):
    scores = task.evaluate(Knowing(task, "test"), "test")
    assert scores.values["psnr"] == pytest.approx(np.full(4, metrics.psnr(np.zeros(1))[0]))
    assert scores.values["ssim"] == pytest.approx(np.ones(4))
    assert scores.values["denoising_loss"].max() < 1e-3  # float32, divided by sqrt(1 - g^2) near g = 1


def test_floors_are_the_direct_computation(task):
    floors, scored = task.floors("test"), task.scored("test")
    assert set(floors) == set(task.card.floors)
    assert task.card.floor in floors
    units = list(dict.fromkeys(name for name, _ in scored))
    for name, upsample in (("nearest", data.nearest), ("bicubic", data.bicubic)):
        assert floors[name].units == units
        for unit, value, similarity in zip(
            units, floors[name].values["psnr"], floors[name].values["ssim"], strict=True
        ):
            patches = [patch for found, patch in scored if found == unit]
            outputs = np.stack([upsample(patch.low, 16) for patch in patches])
            targets = np.stack([patch.high for patch in patches])
            error = (outputs.astype(float) - targets) ** 2
            # Sampling divides and multiplies by the noise levels in float32: a value may round to the next grey level.
            assert value == pytest.approx(10 * np.log10(255**2 / error.mean()), abs=0.05)
            assert similarity == pytest.approx(metrics.ssim(outputs, targets).mean(), abs=0.005)
    # E|e| of standard normal noise is sqrt(2 / pi), here over 8 levels of 768 values per patch.
    assert floors["zero"].values["denoising_loss"] == pytest.approx(np.full(4, np.sqrt(2 / np.pi)), abs=0.03)


def test_evaluation_repeats_and_reads_no_global_random_state(task):
    model = model_of(task).eval()
    first = task.evaluate(model, "validation")
    torch.manual_seed(5)
    np.random.seed(5)
    second = task.evaluate(model, "validation")
    for name in first.values:
        assert np.array_equal(first.values[name], second.values[name])


def test_ancestral_sampling_repeats_and_differs_from_the_deterministic(task):
    model = model_of(task).eval()
    patches = [patch for _, patch in task.scored("test")][:2]
    like = next(model.parameters())
    with torch.no_grad():
        plain = task._sampled(model, patches, 0, like)
        task.setting = replace(task.setting, sampler="ancestral")
        first, second = (task._sampled(model, patches, 0, like) for _ in range(2))
        later = task._sampled(model, patches[1:], 1, like)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, plain)
    assert np.abs(later[0].astype(int) - first[1]).max() <= 1  # a picture's noise is its own, whatever its batch


def test_few_steps_learn_to_denoise(task):
    model = model_of(task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in itertools.islice(task.batches("train", seed=0), 40):
        optimizer.zero_grad()
        task.loss(model, {name: tensor[:4] for name, tensor in batch.items()}).backward()
        optimizer.step()
    metric = next(metric for metric in task.card.metrics if metric.name == "denoising_loss")
    assert metric.value(task.evaluate(model.eval(), "test")) < 0.7 * metric.value(task.floors("test")["zero"])


def test_the_sample_shows_photographs_alone_in_four_columns(task):
    (artifact,) = task.samples(Knowing(task, "test"))
    with Image.open(io.BytesIO(artifact.content)) as image:
        shown = np.asarray(image)
    photographs = [p.name for p in task.pictures("test").pictures if not p.is_face]
    side = shown.shape[1] // 4
    assert shown.shape == (len(photographs) * side, 4 * side, 3)
    assert side >= 96
    patch = next(patch for name, patch in task.scored("test") if name == photographs[0])
    assert np.array_equal(shown[: side : side // 16, 3 * side :: side // 16][:16], patch.high)
    assert np.array_equal(shown[:side, 2 * side : 3 * side], shown[:side, 3 * side :])  # an oracle's output
    assert np.array_equal(shown[: side : side // 8, : side : side // 8], patch.low)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "tinny"}, "did you mean 'tiny'"),
        ({"pattern": "causal_self"}, "pattern of task sr 'causal_self'.*noncausal_self"),
        ({"data": "orignal"}, "did you mean 'original'"),
        ({"data_root": "/somewhere"}, "data_root=/somewhere is read with data=original only"),
        ({"sampling_steps": 0}, "sampling_steps=0"),
        ({"sampling_steps": 5000}, "sampling_steps=5000.*from 1 to"),
    ],
)
def test_wrong_option_is_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        SuperResolution(**options)
    assert "\n" not in str(error.value)
