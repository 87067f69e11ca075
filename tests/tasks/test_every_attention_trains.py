"""Every setting of ``conf/attention`` in every slot of every task: one step learns, in float32 and under autocast, and
a causal slot does not see the future through the whole model.

The data are made up, so that nothing is fetched; lengths, widths and depths are those of size ``tiny``. The slot under
test is filled with the mechanism and all others with ``sdpa``, as ``cab run`` fills them.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from shipped_configs import attention_settings, nodes
from torch import nn

from attention_zoo.conformance.certify import options_exclude
from attention_zoo.contract import Attention, Pattern, Support
from cab.settings import Setting
from cab.slots import fill
from cab.task_settings import make_task
from cab.train import Learner, make_fabric
from tasks import bible, text
from tasks.contract import SlotFactory, Split, Task
from tasks.digits import data as digits
from tasks.lstf import registry as weather
from tasks.lstf.data import Series
from tasks.pcc import data as meshes
from tasks.sr import data as pictures
from tasks.summarization import data as articles
from tasks.tts import data as speech
from tasks.tts import features
from tasks.tts.symbols import ESPEAK
from tasks.tts.transformer_tts import TransformerTTS

NS, CS, NC, CC = Pattern
ROWS = 4  # of a batch: a gradient needs no more
ZERO = 1e-6  # of a layer's largest gradient: what roundings of float32 leave of a sum that is zero

# Per task, the patterns under test and the slots of its backbone then. Retrieval is left out: its backbone comes
# trained, and takes only what has nothing untrained (tests/tasks/test_retrieval.py).
SLOTS: dict[str, list[tuple[Pattern, Pattern]]] = {
    "digits": [(NS, NS)],
    "lm": [(CS, CS)],
    "lstf_weather": [(pattern, slot) for pattern in (NS, NC) for slot in (NS, CS, NC)],
    "mlm": [(NS, NS)],
    "pcc": [(pattern, slot) for pattern in (NS, NC) for slot in (NS, NC)],
    "recall": [(pattern, pattern) for pattern in Pattern],
    "sr": [(NS, NS)],
    "tts_fastspeech2": [(NS, NS)],
    "tts_transformer": [(pattern, slot) for pattern in (NS, CS, CC) for slot in (NS, CS, CC)],
    "summarization": [(pattern, slot) for pattern in (NS, CS, CC) for slot in (NS, CS, CC)],
}


SETTINGS = attention_settings()
TASKS = nodes("task")


def has_form(setting: Setting, slot: Pattern) -> bool:
    return slot in setting.card.supports and not options_exclude(setting.kind, setting.options, slot)


def with_small_blocks(setting: Setting) -> Setting:
    """With windows, chunks, clusters and buckets of at most 8 tokens, and 4 landmarks.

    At the lengths of these tasks there are several of each then. What serves other blocks than the own has no work, and
    so no gradient, where one block holds the whole sequence, and neither has what forms a summary of one token.
    """
    limits = {"window": 8, "chunk_size": 8, "cluster_size": 8, "bucket_size": 8, "block_size": 8, "num_landmarks": 4}
    smaller = {
        name: min(setting.options[name], most) for name, most in limits.items() if setting.options.get(name) is not None
    }
    return replace(setting, options={**setting.options, **smaller})


def once_per_slot(task: str) -> list[tuple[Pattern, Pattern]]:
    """The pattern under test decides what is scored, and nothing of the backbone (but recall's, which has one slot)."""
    return list({slot: (pattern, slot) for pattern, slot in SLOTS[task]}.values())


CASES = [
    pytest.param(name, task, pattern, slot, id=f"{name}-{task}-{slot.short}")
    for (name, setting), task in itertools.product(SETTINGS.items(), SLOTS)
    for pattern, slot in once_per_slot(task)
    if has_form(setting, slot)
]
BLOCKED = [case for case in CASES if with_small_blocks(SETTINGS[str(case.values[0])]) != SETTINGS[str(case.values[0])]]
WHOLE = [case for case in CASES if case not in BLOCKED]


def made_up_weather() -> Series:
    rng, hours, names = np.random.default_rng(0), np.arange(1500), weather.channel_names(weather.SITES)
    values = np.sin(2 * np.pi * hours[:, None] / 24 + np.arange(len(names))) + 0.1 * rng.normal(size=(1500, len(names)))
    times = np.datetime64("2001-01-01T00:00", "m") + hours * np.timedelta64(60, "m")
    return Series(times, values.astype(np.float32), names, 60)


def made_up_articles() -> list[articles.Article]:
    """Of unequal length, most of them shorter than the source, so that there is padding."""
    rng = np.random.default_rng(0)

    def article(index: int) -> articles.Article:
        words = [f"w{number}" for number in rng.integers(60, size=int(rng.integers(20, 120)))]
        return articles.Article(
            hashlib.sha256(str(index).encode()).hexdigest(),
            " ".join(words),
            " ".join(words[: int(rng.integers(2, 30))]),
        )

    return [article(index) for index in range(200)]


def made_up_meshes() -> list[tuple[str, np.ndarray]]:
    """Boxes of two triangles a side."""

    def box(size: np.ndarray) -> np.ndarray:
        corners = np.array(list(itertools.product((-0.5, 0.5), repeat=3))) * size
        sides = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)]
        faces = [corners[list(face)] for a, b, c, d in sides for face in ((a, b, c), (a, c, d))]
        return np.stack(faces).astype(np.float32)

    rng = np.random.default_rng(0)
    return [(f"box {index}", box(rng.uniform(0.2, 1, size=3))) for index in range(30)]


def made_up_pictures() -> list[pictures.Picture]:
    rng = np.random.default_rng(0)
    return [
        pictures.Picture(
            f"picture {index}",
            hashlib.sha256(str(index).encode()).hexdigest(),
            rng.integers(0, 256, size=(40, 48, 3), dtype=np.uint8),
            False,
        )
        for index in range(30)
    ]


def made_up_digits() -> digits.Digits:
    rng, classes = np.random.default_rng(0), np.repeat(np.arange(digits.CLASSES), 10)
    return digits.Digits.of(rng.integers(0, 256, size=(len(classes), 28, 28), dtype=np.uint8), classes)


def made_up_speech() -> speech.Corpus:
    """Utterances whose frames follow from their phonemes, some noise apart; of unequal length."""
    frames_of = np.random.default_rng(0).normal(-5, 2, size=(len(ESPEAK) + 1, features.BANDS))

    def utterance(index: int) -> speech.Utterance:
        rng = np.random.default_rng(index + 1)
        phonemes = rng.integers(1, 40, size=int(rng.integers(8, 16)))
        durations = 2 + phonemes % 5
        noise = 0.1 * rng.normal(size=(durations.sum(), features.BANDS))
        mel = np.repeat(frames_of[phonemes], durations, axis=0) + noise
        return speech.Utterance(f"{index:03}", phonemes, durations, 4.5 + 0.01 * phonemes, 3 + 0.1 * phonemes, mel)

    splits: list[Split] = ["train"] * 48 + ["validation"] * 5 + ["test"] * 7
    return speech.Corpus.of(ESPEAK, [(split, utterance(index)) for index, split in enumerate(splits)])


@pytest.fixture(scope="module", autouse=True)
def _made_up_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    stream = np.random.default_rng(0).integers(97, 123, size=5000, dtype=np.uint8)
    chapter = bible.Chapter(1, 1, stream.tobytes())
    series, corpus, spoken = made_up_weather(), made_up_articles(), made_up_speech()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(bible, "chapters", lambda translation, split: (chapter,))
        patch.setattr(weather, "load", lambda: series)
        patch.setattr(articles, "load", lambda: corpus)
        patch.setattr(meshes, "load", made_up_meshes)
        patch.setattr(pictures, "load", made_up_pictures)
        patch.setattr(digits, "load", made_up_digits)
        patch.setattr(speech, "load", lambda kind: spoken)
        text._tokens.cache_clear()
        yield
    text._tokens.cache_clear()


_tasks: dict[tuple[str, Pattern], tuple[Task, dict[str, torch.Tensor]]] = {}


def task_and_batch(name: str, pattern: Pattern) -> tuple[Task, dict[str, torch.Tensor]]:
    if (name, pattern) not in _tasks:
        options = {**TASKS[name], "size": "tiny", "pattern": pattern}
        task = make_task(name, options.pop("_target_"), options)
        batch = {key: tensor[:ROWS] for key, tensor in next(task.batches("train", 1)).items()}
        _tasks[name, pattern] = task, batch
    return _tasks[name, pattern]


def no_gradient_by_nature(setting: Setting, slot: Pattern, parameter: str) -> bool:
    """What a softmax takes away again.

    A bias of the keys adds q_i . b to every logit of row i. So it does over the keys that a hash or a choice has left,
    and over those of each landmark of LARA's published temperature, w_c . k_j. LongShort across, with one summary, is a
    softmax over one key, whatever the query and that key.
    """
    if setting.card.name == "longshort" and slot.is_cross and setting.options["num_landmarks"] == 1:
        return parameter.startswith(("query_projection", "key_projection"))
    weighted_by_keys = setting.card.softmax_logits or setting.card.discrete
    return parameter == "key_projection.bias" and (weighted_by_keys or setting.options.get("temperature") == "paper")


def row_is_not_read(parameter: str, task_name: str, *, last: bool) -> bool:
    """Longformer's second projections serve the rows of its leading tokens, and a task that reads the outputs of other
    positions alone never sees those of the last layer."""
    return last and parameter.startswith("global_") and task_name in ("mlm", "recall")


def one_step(
    setting: Setting, task_name: str, pattern: Pattern, slot: Pattern, dtype: torch.dtype
) -> Iterator[tuple[int, str, nn.Parameter, bool, float]]:
    """Trains one step; of the parameters under test the layer (0: the last), the name, the parameter, whether it moved
    and its largest gradient in units of the layer's largest."""
    task, batch = task_and_batch(task_name, pattern)
    model = task.build_model(fill(setting, SETTINGS["sdpa"], slot, seed=1)).train()
    learner = Learner(task, model, task.recipe, make_fabric(torch.device("cpu"), dtype))
    layers = [part for part in model.modules() if isinstance(part, setting.kind) and part.pattern is slot]
    assert layers
    before = [{key: p.detach().clone() for key, p in layer.named_parameters()} for layer in layers]
    loss = learner.update([batch])
    assert torch.isfinite(loss)
    for number, (layer, old) in enumerate(zip(reversed(layers), reversed(before), strict=True)):
        gradients = {key: p.grad for key, p in layer.named_parameters() if p.grad is not None}
        largest = max(float(gradient.abs().max()) for gradient in gradients.values())
        for key, parameter in layer.named_parameters():
            assert parameter.dtype is torch.float32
            share = float(gradients[key].abs().max()) / largest if key in gradients else 0.0
            yield number, key, parameter, not torch.equal(parameter, old[key]), share


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@DTYPES
@pytest.mark.parametrize(("name", "task_name", "pattern", "slot"), [*WHOLE, *BLOCKED])
def test_one_step_trains_every_parameter(
    name: str, task_name: str, pattern: Pattern, slot: Pattern, dtype: torch.dtype
) -> None:
    setting = with_small_blocks(SETTINGS[name])
    for layer, key, parameter, moved, share in one_step(setting, task_name, pattern, slot, dtype):
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        if not (row_is_not_read(key, task_name, last=layer == 0) or no_gradient_by_nature(setting, slot, key)):
            assert share > ZERO, f"{key} has a gradient of zeros"
            assert moved, f"{key} did not move"


@DTYPES
@pytest.mark.parametrize(("name", "task_name", "pattern", "slot"), BLOCKED)
def test_one_step_with_the_setting_s_own_blocks_is_finite(
    name: str, task_name: str, pattern: Pattern, slot: Pattern, dtype: torch.dtype
) -> None:
    steps = list(one_step(SETTINGS[name], task_name, pattern, slot, dtype))
    assert all(p.grad is None or torch.isfinite(p.grad).all() for _, _, p, _, _ in steps)
    assert any(moved for *_, moved, _ in steps)


Outputs = Callable[[torch.Tensor], torch.Tensor]


def next_words(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Outputs]:
    return batch["inputs"], model


def summary(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Outputs]:
    return batch["decoder_inputs"], lambda words: model(batch["source"], words)


def frames_and_stops(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Outputs]:
    """Before the post-net, which by design sees all frames; each step is given those of the steps before it."""
    assert isinstance(model, TransformerTTS)
    steps = batch["mel"].double()[:, : batch["mel"].shape[1] // 4 * 4].unflatten(1, (-1, 4)).flatten(2)

    def outputs(previous: torch.Tensor) -> torch.Tensor:
        spoken = model(batch["phonemes"], previous)
        return torch.cat((spoken.causal, spoken.stop[:, :, None]), dim=2)

    return steps, outputs


# Per task with a causal slot: the inputs by target position, and the outputs that may depend on earlier ones alone.
FUTURE: dict[str, Callable[[nn.Module, dict[str, torch.Tensor]], tuple[torch.Tensor, Outputs]]] = {
    "lm": next_words,
    "summarization": summary,
    "tts_transformer": frames_and_stops,
}
CAUSAL = [
    pytest.param(name, task, slot, id=f"{name}-{task}-{slot.short}")
    for (name, setting), task in itertools.product(SETTINGS.items(), FUTURE)
    for slot in (CS, CC)
    if slot in {slot for _, slot in SLOTS[task]} and has_form(setting, slot)
    if setting.card.supports[slot] is not Support.VALUE_CAUSAL
]


@pytest.mark.parametrize(("name", "task_name", "slot"), CAUSAL)
def test_no_output_depends_on_later_targets(name: str, task_name: str, slot: Pattern) -> None:
    setting = with_small_blocks(SETTINGS[name])
    task, batch = task_and_batch(task_name, slot)
    model = task.build_model(fill(setting, SETTINGS["sdpa"], slot, seed=1)).double().eval()
    tokens, outputs = FUTURE[task_name](model, batch)
    with torch.no_grad():
        before = outputs(tokens)
        for position in (0, tokens.shape[1] // 3, tokens.shape[1] - 2):
            later = tokens.clone()
            later[:, position + 1 :] = later[:, position + 1 :].flip(0, 1)
            after = outputs(later)
            # 1e-9: a whole model in float64; equal bits would hold for a layer, and are asked of it by its certificate.
            torch.testing.assert_close(after[:, : position + 1], before[:, : position + 1], rtol=0, atol=1e-9)
            assert (after[:, position + 1 :] - before[:, position + 1 :]).abs().max() > 1e-6  # it does see what it may


class _Recorder:
    """Builds ``sdpa`` and notes for which pattern."""

    def __init__(self, pattern: Pattern, asked: set[Pattern]) -> None:
        self.pattern, self.asked = pattern, asked

    def __call__(self, embed_dim: int, num_heads: int, **lengths: Any) -> Attention:
        self.asked.add(self.pattern)
        return SETTINGS["sdpa"].build(embed_dim, num_heads, self.pattern, **lengths)


@pytest.mark.parametrize("name", SLOTS)
def test_no_slot_is_left_out(name: str) -> None:
    found = []
    for pattern in type(task_and_batch(name, SLOTS[name][0][0])[0]).card.patterns:
        asked: set[Pattern] = set()
        slots: dict[Pattern, SlotFactory] = {slot: _Recorder(slot, asked) for slot in Pattern}
        task_and_batch(name, pattern)[0].build_model(slots)
        found += [(pattern, slot) for slot in Pattern if slot in asked]
    assert found == SLOTS[name]
