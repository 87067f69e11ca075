"""What a core has no place for is refused in one line, and never dropped."""

import copy

import pytest
import torch
from pretrained_families import LENGTH, TEXT, make, run, seeded, text
from torch import nn
from transformers import (
    BloomConfig,
    BloomModel,
    DebertaConfig,
    DebertaModel,
    Gemma2Config,
    Gemma2Model,
    MistralConfig,
    MistralModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5Model,
    XLNetConfig,
    XLNetModel,
)

from attention_zoo._standin import Choice
from attention_zoo.contract import Unsupported
from attention_zoo.integrations._hf_attention import AttentionFunction
from attention_zoo.integrations._hf_masks import VISIBLE, key_padding
from attention_zoo.integrations.transformers import attach, check

CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()


def refusal(model, inputs) -> str:
    with pytest.raises(Unsupported) as found, torch.no_grad():
        model(**inputs)
    assert "\n" not in str(found.value)
    return str(found.value)


@pytest.mark.parametrize("window", [LENGTH - 1, 3])
def test_a_sliding_window_that_is_shorter_than_the_input(window):
    config = MistralConfig(**TEXT, sliding_window=window)
    assert "sliding window" in refusal(seeded(MistralModel, config, "cab_softmax"), text("right"))


def test_packed_sequences():
    places = torch.cat([torch.arange(5), torch.arange(LENGTH - 5)])[None].expand(3, -1)
    inputs = {"input_ids": text("right")["input_ids"], "position_ids": places, "use_cache": False}
    assert "packed sequences" in refusal(make("llama", "cab_smyrf"), inputs)


def test_a_position_bias():
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=0)
    inputs = text("right") | {"decoder_input_ids": text("right")["input_ids"]}
    assert "position bias" in refusal(seeded(T5Model, config, "cab_softmax"), inputs)


def test_capped_logits():
    config = Gemma2Config(**TEXT, num_key_value_heads=2, head_dim=8)
    assert "softcap" in refusal(seeded(Gemma2Model, config, "cab_smyrf"), text("right"))


def test_attention_weights_that_are_asked_for():
    inputs = text("right") | {"output_attentions": True}
    assert "no attention weights" in refusal(make("bert", "cab_smyrf"), inputs)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (CAUSAL.triu(-3), "more than key padding"),
        (CAUSAL & (torch.arange(LENGTH)[:, None] != torch.arange(LENGTH)), "more than key padding"),
        (torch.randn(LENGTH, LENGTH), "adds numbers"),
        (CAUSAL.long(), "neither boolean nor added"),
        (torch.stack([CAUSAL, torch.ones_like(CAUSAL)] * 2), "differs between heads"),
    ],
    ids=["window", "without self", "bias", "integers", "heads"],
)
def test_masks_of_other_forms(mask, said):
    mask = mask if mask.ndim == 3 else mask[None]
    inputs = {"input_ids": text("right")["input_ids"], "attention_mask": mask.expand(3, *mask.shape)}
    assert said in refusal(make("llama", "cab_softmax"), inputs)


def test_a_mask_of_three_dimensions():
    mask = torch.ones(3, LENGTH, LENGTH)
    inputs = {"input_ids": text("right")["input_ids"], "attention_mask": mask}
    assert "neither [B, Lk] nor" in refusal(make("bert", "cab_softmax"), inputs)


def function(name: str = "softmax") -> AttentionFunction:
    return AttentionFunction(Choice.of(name, {}))


class Attention(nn.Module):
    """What an attention function is called by; it may or may not say that it is causal."""

    def __init__(self, **said: object) -> None:
        super().__init__()
        for name, value in said.items():
            setattr(self, name, value)

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        raise NotImplementedError


class TwoSequences(Attention):
    def forward(self, hidden_states, key_value_states=None):
        raise NotImplementedError


class Anything(Attention):
    def forward(self, *args, **kwargs):
        raise NotImplementedError


def heads(length: int = LENGTH, count: int = 2) -> torch.Tensor:
    return torch.randn(3, count, length, 8)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"s_aux": torch.zeros(2)}, "attention sinks"),
        ({"cu_seq_lens_q": torch.tensor([0, 5, 12])}, "packs sequences"),
        ({"sliding_window": 4}, "sliding window of 4"),
        ({"relative_key": torch.zeros(2)}, "tensor 'relative_key'"),
        ({"head_mask": torch.ones(2)}, "masks heads"),
    ],
)
def test_arguments_that_change_what_is_computed(more, said):
    with pytest.raises(Unsupported, match=said):
        function()(Attention(is_causal=True), heads(), heads(), heads(), None, **more)
    harmless = dict.fromkeys(more) | {"position_ids": torch.arange(LENGTH), "use_cache": True, "softcap": None}
    function()(Attention(is_causal=True), heads(), heads(), heads(), None, **harmless)


@pytest.mark.parametrize(
    ("module", "keys", "mask", "said"),
    [
        (Attention(), LENGTH, None, "does not say whether it is causal"),
        (Attention(is_causal=True), 20, None, "how 12 causal queries lie to 20 keys"),
        (Attention(is_causal=True), 20, torch.ones(3, 20).bool(), "how 12 causal queries lie to 20 keys"),
        (Attention(is_causal=False), 20, torch.ones(3, 12).bool(), "over 12 keys, and there are 20"),
        (Attention(is_causal=False), LENGTH, torch.ones(2, 12).bool(), "batch of 2"),
        (Attention(is_causal=False), LENGTH, torch.ones(3, 12), "neither"),
        (Attention(is_causal=False), LENGTH, torch.ones(3, 1, 1, 12, dtype=torch.int8), "not one that was made here"),
        (Attention(is_causal=False), LENGTH, torch.ones(3, 1, 5, 12).bool(), "5 rows for 12 queries"),
        (
            Attention(is_causal=True),
            5,
            CAUSAL[None, None, :, :5].tril(-7).expand(3, -1, -1, -1),
            "first would see none",
        ),
        (TwoSequences(is_causal=False), LENGTH, None, "nothing tells which"),
        (Anything(is_causal=False), LENGTH, None, "nothing tells which"),
    ],
)
def test_calls_that_can_be_read_in_two_ways(module, keys, mask, said):
    with pytest.raises(Unsupported, match=said):
        function()(module, heads(), heads(keys), heads(keys), mask)


def test_a_mask_that_was_made_here_may_be_moved_and_not_computed_with():
    mask = key_padding(2, 5, 5, attention_mask=torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]))
    for moved in (mask[:, :, :, :3], mask.expand(2, 4, 1, 5), mask.clone().contiguous(), mask.to("cpu")):
        assert moved.dtype is torch.int8
    assert "causal=True" in repr(mask)
    scores = torch.zeros(2, 1, 5, 5)
    for misuse in (
        lambda: scores + mask,
        lambda: scores.masked_fill(mask == 0, -1.0),
        lambda: mask.to(torch.float32),
        lambda: mask.bool(),
    ):
        with pytest.raises(Unsupported, match="computes an attention itself"):
            misuse()
    assert int((mask.plain() == VISIBLE).sum()) == 7


def test_a_model_that_computes_its_attention_itself_with_our_mask():
    config = BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=4)
    model = seeded(BloomModel, config, "cab_softmax")
    assert "computes an attention itself" in refusal(model, text("right"))


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (DebertaModel, DebertaConfig(**TEXT)),
        (XLNetModel, XLNetConfig(vocab_size=64, d_model=32, n_layer=1, n_head=4, d_inner=48)),
    ],
)
def test_a_model_that_goes_past_the_interface_in_silence_is_found_out(kind, config):
    model = seeded(kind, copy.deepcopy(config), "cab_identity")
    dense = seeded(kind, copy.deepcopy(config), "eager")
    inputs = text("right")
    with torch.no_grad():  # transformers takes the name, and nothing comes of it
        assert torch.equal(model(**inputs)[0], dense(**inputs)[0])
    with pytest.raises(Unsupported, match=f"no attention of {kind.__name__} came here"):
        check(model, **text("right"))
    with pytest.raises(Unsupported, match="without transformers' AttentionInterface"):
        attach(dense, "smyrf")


def test_a_model_part_of_whose_attention_goes_past_the_interface_is_found_out():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    config = SiglipVisionConfig(**sizes, image_size=16, patch_size=4)
    image = {"pixel_values": torch.randn(1, 3, 16, 16)}
    model = attach(seeded(SiglipVisionModel, copy.deepcopy(config), "eager"), "smyrf")
    with pytest.raises(Unsupported, match=r"MultiheadAttention.* computed their attention themselves"):
        model(**image)
    attach(seeded(SiglipVisionModel, copy.deepcopy(config), "eager"), "smyrf", partly=True)(**image)


def test_an_attached_name_that_was_taken_back_is_noticed():
    model = attach(make("bert", "eager"), "smyrf")
    model.set_attn_implementation("eager")
    with pytest.raises(Unsupported, match="no attention of BertModel came here"):
        run(model, text("right"))
