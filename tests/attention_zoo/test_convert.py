"""What was dense computes the same with an exact core in its place, and something else with another."""

import copy

import pytest
import torch
from torch import nn

from attention_zoo import build
from attention_zoo.contract import Pattern, Unsupported
from attention_zoo.convert import MultiheadStandIn, convert
from attention_zoo.errors import UnknownName

# Both sides are the same float32 sums in another order, of a few dozen terms of unit scale.
ROUNDING = {"rtol": 0, "atol": 5e-6}
EXACT = ["softmax", "sdpa"]


def multihead(**how) -> nn.MultiheadAttention:
    layer = nn.MultiheadAttention(16, 4, **how).eval()
    with torch.no_grad():
        for parameter in layer.parameters():  # biases begin at zero, which would hide them
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return layer


def triangle(length: int) -> torch.Tensor:
    return torch.ones(length, length, dtype=torch.bool).triu(1)


@pytest.mark.parametrize("to", EXACT)
@pytest.mark.parametrize("pattern", Pattern)
def test_layers_of_the_zoo_keep_their_function(to, pattern):
    layer = build("sdpa", 16, 4, pattern, max_length=9)
    x, y, mask = torch.randn(3, 9, 16), torch.randn(3, 7, 16), torch.rand(3, 9) < 0.3
    given = (x, y, y) if pattern.is_cross else (x,)
    mask = mask[:, :7] if pattern.is_cross else mask
    expected = layer(*given, key_padding_mask=mask)
    weights = copy.deepcopy(layer.state_dict())
    swapped = convert(layer, to)
    assert swapped is not layer
    assert swapped.query_projection is layer.query_projection
    torch.testing.assert_close(swapped(*given, key_padding_mask=mask), expected, **ROUNDING)
    swapped.load_state_dict(weights)


@pytest.mark.parametrize("to", EXACT)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masks", ["none", "padding", "added padding", "causal", "added causal", "both", "per head"])
def test_multihead_attention_keeps_its_function(to, batch_first, bias, masks):
    layer = multihead(batch_first=batch_first, bias=bias)
    x = torch.randn(3, 9, 16)
    padding = torch.arange(9) >= torch.tensor([[9], [6], [3]])
    infinite = torch.zeros(9, 9).masked_fill(triangle(9), -torch.inf)
    how = {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "added padding": {"key_padding_mask": torch.zeros(3, 9).masked_fill(padding, -torch.inf)},
        "causal": {"attn_mask": triangle(9)},
        "added causal": {"attn_mask": infinite, "is_causal": True},
        "both": {"attn_mask": triangle(9), "key_padding_mask": padding},
        "per head": {"attn_mask": (padding[:, None] | triangle(9)).repeat_interleave(4, 0)},
    }[masks]
    x = x if batch_first else x.transpose(0, 1)
    with torch.no_grad():
        expected = layer(x, x, x, need_weights=False, **how)[0]
        out, weights = convert(layer, to)(x, x, x, **how)
    assert weights is None
    torch.testing.assert_close(out, expected, **ROUNDING)


@pytest.mark.parametrize("to", EXACT)
def test_multihead_attention_across_sequences_of_other_widths(to):
    layer = multihead(batch_first=True, kdim=10, vdim=6)
    query, key, value = torch.randn(3, 5, 16), torch.randn(3, 9, 10), torch.randn(3, 9, 6)
    padding = torch.arange(9) >= torch.tensor([[9], [6], [3]])
    expected = layer(query, key, value, key_padding_mask=padding)[0]
    other = convert(layer, to)
    torch.testing.assert_close(other(query, key, value, key_padding_mask=padding)[0], expected, **ROUNDING)
    other.load_state_dict(layer.state_dict())  # the names are the same
    alone = other(query[0], key[0], value[0])[0]
    torch.testing.assert_close(alone, expected[0], **ROUNDING)


def test_two_sequences_of_one_length_are_not_taken_for_one():
    """The source's padding must not fall on the target's tokens; a hash that sorts both sides would be moved by it."""
    layer = convert(multihead(batch_first=True), "smyrf", cluster_size=2)
    target, source = torch.randn(1, 8, 16), torch.randn(1, 8, 16)
    out = layer(target, source, source)[0]
    changed = target.clone()
    changed[:, 5:] += 1
    assert torch.equal(layer(changed, source, source)[0][:, :5], out[:, :5]), "a later target was seen"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("length", [4, 8])
def test_the_fast_path_of_an_encoder_does_not_go_past_the_replacement(length):
    torch.manual_seed(3)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2).eval()
    x, padding = torch.randn(3, length, 16), torch.arange(length) >= torch.tensor([[length], [3], [2]])
    with torch.inference_mode():
        expected = encoder(x, src_key_padding_mask=padding)
        same = convert(copy.deepcopy(encoder), "softmax")(x, src_key_padding_mask=padding)
        other = convert(copy.deepcopy(encoder), "identity")(x, src_key_padding_mask=padding)
        lone = convert(copy.deepcopy(encoder.layers[0]), "identity")(x)
    torch.testing.assert_close(same[~padding], expected[~padding], **ROUNDING)
    assert (other[~padding] - expected[~padding]).abs().max() > 1e-2
    assert (lone - encoder.layers[0](x)).abs().max() > 1e-2


def test_an_encoder_and_decoder_keep_their_function_in_training_too():
    model = nn.Transformer(16, 4, 1, 1, 32, dropout=0.0, batch_first=True)
    source, target, mask = (
        torch.randn(2, 7, 16),
        torch.randn(2, 5, 16),
        torch.zeros(5, 5).masked_fill(triangle(5), -torch.inf),
    )
    found = []
    for each in (model, convert(copy.deepcopy(model), "sdpa")):
        out = each.train()(source, target, tgt_mask=mask)
        out.square().sum().backward()
        found.append([out, *(p.grad for p in each.parameters())])
    assert len(found[0]) == len(found[1]) > 20
    # Gradients of a few hundred outputs, each of a few units.
    for ours, theirs in zip(*reversed(found), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_training_drops_weights_and_evaluation_does_not():
    layer = convert(multihead(batch_first=True, dropout=0.5), "softmax")
    x = torch.randn(1, 6, 16)
    assert torch.equal(layer(x, x, x)[0], layer(x, x, x)[0])
    layer.train()
    assert not torch.equal(layer(x, x, x)[0], layer(x, x, x)[0])


def test_one_cluster_is_dense_attention_and_more_are_not():
    layer = multihead(batch_first=True)
    x = torch.randn(2, 12, 16)
    expected = layer(x, x, x)[0]
    one = convert(copy.deepcopy(layer), "smyrf", cluster_size=64)
    torch.testing.assert_close(one(x, x, x)[0], expected, **ROUNDING)
    assert (convert(layer, "smyrf", cluster_size=2)(x, x, x)[0] - expected).abs().max() > 1e-2


def test_what_was_put_in_can_be_replaced_again():
    x = torch.randn(2, 12, 16)
    direct = convert(nn.Sequential(multihead(batch_first=True)), "smyrf", cluster_size=2)
    twice = convert(convert(copy.deepcopy(direct), "softmax"), "smyrf", cluster_size=2)
    assert torch.equal(twice[0](x, x, x)[0], direct[0](x, x, x)[0])


def test_a_state_dict_survives_conversion_and_hashes_do_not_change():
    model = nn.Sequential(multihead(batch_first=True), nn.ModuleList([multihead(batch_first=True)]))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(1, 600, 16)
    one, two = (convert(copy.deepcopy(model), "smyrf", cluster_size=8) for _ in range(2))
    assert one.state_dict().keys() == weights.keys()
    torch.manual_seed(5)
    two.load_state_dict(weights)
    two[0](x[:, :20], x[:, :20], x[:, :20])  # then it grows
    assert torch.equal(one[0](x, x, x)[0], two[0](x, x, x)[0])
    assert one[1][0].cores.seed != one[0].cores.seed


def test_a_shared_attention_stays_shared():
    shared = multihead()
    model = nn.ModuleDict({"a": shared, "b": shared})
    convert(model, "linear")
    assert isinstance(model["a"], MultiheadStandIn)
    assert model["a"] is model["b"]


@pytest.mark.parametrize("how", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_keys_of_no_sequence_are_refused_and_nothing_is_replaced(how):
    model = nn.Sequential(multihead(), multihead(**how))
    with pytest.raises(Unsupported, match=next(iter(how))):
        convert(model, "smyrf")
    assert type(model[0]) is nn.MultiheadAttention


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (triangle(6) | triangle(6).T.roll(2, 0), "more than key padding"),
        (torch.randn(6, 6), "adds numbers to the logits"),
        (triangle(6).expand(4, 6, 6) & (torch.arange(4) > 1)[:, None, None], "differs between heads"),
        (torch.ones(6, 6, dtype=torch.long), "neither boolean nor added"),
    ],
)
def test_masks_that_a_core_cannot_take_are_refused(mask, said):
    x = torch.randn(1, 6, 16)
    with pytest.raises(Unsupported, match=said):
        convert(multihead(batch_first=True), "softmax")(x, x, x, attn_mask=mask)


def test_a_causal_mask_between_two_sequences_is_refused():
    x = torch.randn(1, 6, 16)
    with pytest.raises(Unsupported, match="between two sequences"):
        convert(multihead(batch_first=True), "softmax")(x, x.clone(), x, attn_mask=triangle(6))


def test_a_hint_without_a_mask_is_refused_as_it_was():
    x = torch.randn(1, 6, 16)
    with pytest.raises(ValueError, match="is_causal"):
        convert(multihead(batch_first=True), "softmax")(x, x, x, is_causal=True)


def test_a_mechanism_without_a_causal_form_is_refused_where_it_is_needed():
    with pytest.raises(Unsupported, match="sees the future"):
        convert(build("softmax", 16, 4, "causal_self", max_length=8), "reformer")
    layer, x = convert(multihead(batch_first=True), "reformer"), torch.randn(1, 6, 16)
    with pytest.raises(Unsupported, match="sees the future"):
        layer(x, x, x, attn_mask=triangle(6))


@pytest.mark.parametrize("model", [nn.Linear(4, 4), build("performer", 16, 4, "causal_self", max_length=8)])
def test_nothing_to_replace_is_an_error(model):
    with pytest.raises(ValueError, match="nothing to replace"):
        convert(model, "smyrf")


def test_what_the_user_got_wrong_is_one_line():
    with pytest.raises(UnknownName, match="did you mean 'smyrf'"):
        convert(multihead(), "smirf")
    with pytest.raises(UnknownName, match="did you mean 'rounds'"):
        convert(multihead(), "smyrf", round=3)
    with pytest.raises(ValueError, match="rounds=0"):
        convert(multihead(), "smyrf", rounds=0)
    with pytest.raises(ValueError, match="causal_cross, noncausal_cross"):
        convert(multihead(), "smyrf", cross="causal_self")

    class Own(nn.MultiheadAttention):
        def forward(self, *x):
            return x

    with pytest.raises(Unsupported, match="Own"):
        convert(nn.Sequential(Own(16, 4)), "smyrf")
