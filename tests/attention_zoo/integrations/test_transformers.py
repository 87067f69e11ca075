"""A pretrained model with a core of the zoo in it: the same with exact ones, right or refused with every other."""

import copy
import io
import subprocess
import sys

import pytest
import torch
from pretrained_families import CAUSAL, FAMILIES, LENGTH, NONCAUSAL, SIDED, make, run, text
from transformers import AutoModel

from attention_zoo import eligibility
from attention_zoo.contract import Pattern, Unsupported
from attention_zoo.eligibility import standing
from attention_zoo.errors import UnknownName
from attention_zoo.fidelity import of_layers, record
from attention_zoo.integrations.transformers import attach, check, register
from attention_zoo.registry import mechanism

EXACT = ["softmax", "sdpa"]
# Two layers in float32, whose attentions add up to a dozen values in another order; states are of unit scale.
ROUNDING = {"rtol": 0, "atol": 1e-5}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(("family", "side"), SIDED)
def test_exact_attention_is_the_models_own(family, side, name):
    inputs = FAMILIES[family].inputs(side)
    with torch.no_grad():
        expected, found = run(make(family, "eager"), inputs), run(make(family, f"cab_{name}"), inputs)
        flat = run(make(family, "cab_uniform"), inputs)
    torch.testing.assert_close(found, expected, **ROUNDING)
    assert (flat - expected).abs().max() > 1e-2, "these weights do not need an attention"


@pytest.mark.parametrize(("family", "side"), SIDED)
def test_smyrf_with_one_cluster_is_dense_attention(family, side):
    register(smyrf={"cluster_size": 64, "rounds": 3})
    inputs = FAMILIES[family].inputs(side)
    with torch.no_grad():
        expected, found = run(make(family, "eager"), inputs), run(make(family, "cab_smyrf"), inputs)
        torch.testing.assert_close(found, expected, **ROUNDING)
        register(smyrf={"cluster_size": 2, "rounds": 1})
        assert (run(make(family, "cab_smyrf"), inputs) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("name", eligibility.eligible())
@pytest.mark.parametrize("family", ["bert", "gpt2", "bart"])
def test_a_padded_sample_gives_what_it_gives_alone(family, name):
    """Padding is on the right: with an absolute position, a shifted sample is another one."""
    needed = {"bert": (0,), "gpt2": (1,), "bart": (0, 1, 3)}[family]
    found = standing(name)
    if not found.card.trimmed_equality or any(list(Pattern)[number] in found.refused for number in needed):
        pytest.skip("the card promises no such thing, or has no such pattern")
    # Small blocks, so that there is more than one; those with other names for them have their defaults.
    small = {"cluster_size": 4, "block_size": 2, "window": 2, "num_landmarks": 4, "bucket_size": 4, "num_random": 1}
    register(**{name: {o: v for o, v in small.items() if o in mechanism(name).option_parameters()}})
    model, inputs = make(family, f"cab_{name}"), FAMILIES[family].inputs("right")
    target = inputs.get("decoder_attention_mask", inputs["attention_mask"]).sum(1)
    with torch.no_grad():
        whole = model(**inputs, use_cache=False)[0]
        for number, length in enumerate(inputs["attention_mask"].sum(1)):
            alone = {
                key: value[number : number + 1, : target[number] if "decoder" in key else length]
                for key, value in inputs.items()
            }
            out = model(**alone, use_cache=False)[0]
            torch.testing.assert_close(out[0], whole[number, : target[number]], **ROUNDING)


@pytest.mark.parametrize("name", [n for n in eligibility.eligible() if Pattern.CAUSAL_SELF in standing(n).patterns])
@pytest.mark.parametrize("family", [*CAUSAL, "bart", "bert cross"])
def test_a_causal_model_does_not_see_the_future(family, name):
    if family in ("bart", "bert cross") and Pattern.CAUSAL_CROSS in standing(name).refused:
        pytest.skip("no causal cross form")
    model, inputs = make(family, f"cab_{name}"), FAMILIES[family].inputs("right")
    key = "decoder_input_ids" if family == "bart" else "input_ids"
    changed = dict(inputs)
    changed[key] = inputs[key].clone()
    changed[key][:, 8:] = (changed[key][:, 8:] + 5) % 50 + 3
    with torch.no_grad():
        before, after = (model(**x, use_cache=False)[0] for x in (inputs, changed))
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.equal(before[:, 8:], after[:, 8:])


@pytest.mark.parametrize("name", ["reformer", "probsparse"])
def test_a_selection_that_sees_the_future_is_refused_in_a_causal_model(name):
    with pytest.raises(Unsupported, match="sees the future"):
        make("gpt2", f"cab_{name}")(**text("right"))


@pytest.mark.parametrize("family", [*NONCAUSAL, *CAUSAL, "bart"])
@pytest.mark.parametrize("name", ["smyrf", "performer"])
def test_gradients_reach_every_weight_that_they_reach_before(family, name):
    inputs = FAMILIES[family].inputs("right")
    grads = []
    for attention in ("eager", f"cab_{name}"):
        model = make(family, attention).train()
        run(model, inputs).square().sum().backward()
        grads.append({n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0})
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    # A bias of the keys cancels in a softmax: what is left there is rounding, on either side.
    assert {n for n in grads[0] - grads[1] if "key" not in n and "k_proj" not in n} == set()


def test_the_gradients_of_exact_attention_are_the_models_own():
    inputs, grads = text("left"), []
    for attention in ("eager", "cab_sdpa"):
        model = make("llama", attention)
        run(model, inputs).square().mean().backward()
        grads.append([p.grad for p in model.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)  # sums over 23 tokens of products of the above


def test_dropout_falls_on_attention_while_training_and_only_then():
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.5}
    model, inputs = make("bert", "cab_softmax", **rates), text("right")
    with torch.no_grad():
        first = run(model, inputs)
        dropped = run(model.train(), inputs)
        assert (dropped - first).abs().max() > 1e-2
        assert torch.equal(run(model.eval(), inputs), first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["bert", "llama", "bart"])
def test_half_precision_stays_half_and_near(family, dtype):
    inputs = FAMILIES[family].inputs("left")
    with torch.no_grad():
        expected = run(make(family, "eager").to(dtype), inputs)
        for name in ("sdpa", "smyrf"):
            register(smyrf={"cluster_size": 64})
            found = run(make(family, f"cab_{name}").to(dtype), inputs)
            assert found.dtype is dtype
            # Two layers, each rounding states of a few units at 2^-8 (bfloat16) a handful of times.
            torch.testing.assert_close(found, expected, rtol=0, atol=64 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(("name", "options"), [("smyrf", {"cluster_size": 4}), ("cosformer", {})])
def test_what_a_core_draws_and_computes_with_follows_from_the_input_and_not_from_those_before(name, options):
    register(**{name: options})
    model = make("vit", f"cab_{name}")
    twin = copy.deepcopy(model)
    small = {"pixel_values": torch.randn(1, 3, 16, 16)}
    # 128 x 128 pixels in patches of 4: 1025 tokens, past the 512 of the first core.
    large = {"pixel_values": torch.randn(1, 3, 128, 128), "interpolate_pos_encoding": True}
    with torch.no_grad():
        before = model(**small)[0]
        first = model(**large)[0]
        assert torch.equal(model(**small)[0], before)
        torch.manual_seed(9)
        assert torch.equal(twin(**large)[0], first), "another process would have drawn other hashes"
        # In double precision the hashes are the same ones, not rounded ones of single precision.
        torch.testing.assert_close(
            twin.double()(pixel_values=small["pixel_values"].double())[0].float(), before, **ROUNDING
        )
    assert not [name for name in model.state_dict() if "hash" in name]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert decoder"])
def test_exact_attention_generates_what_the_model_generates(family, name):
    inputs, found = text("left"), []
    for attention in ("eager", f"cab_{name}"):
        model = make(family, attention)
        how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        found += [model.generate(**inputs, **how, use_cache=use_cache) for use_cache in (True, False)]
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize("name", EXACT)
def test_several_queries_behind_a_cache_see_what_they_should(name):
    inputs, cut = {"input_ids": text("right")["input_ids"]}, 7
    with torch.no_grad():
        whole = make("llama", "eager")(**inputs)[0]
        model = make("llama", f"cab_{name}")
        begun = model(input_ids=inputs["input_ids"][:, :cut], use_cache=True)
        rest = model(input_ids=inputs["input_ids"][:, cut:], past_key_values=begun.past_key_values)[0]
    torch.testing.assert_close(rest, whole[:, cut:], **ROUNDING)


def test_generation_with_an_inexact_mechanism_needs_no_cache_and_is_the_greedy_search_of_the_whole():
    model, inputs = make("gpt2", "cab_smyrf"), {"input_ids": text("right")["input_ids"]}
    with pytest.raises(Unsupported, match="use_cache=False"):
        model.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0)
    out = model.generate(**inputs, max_new_tokens=3, do_sample=False, use_cache=False, pad_token_id=0)
    told = inputs["input_ids"]
    for _ in range(3):
        with torch.no_grad():
            told = torch.cat([told, model(told, use_cache=False)[0][:, -1:].argmax(-1)], 1)
    assert torch.equal(out, told)


def test_a_cache_of_fixed_length_is_refused():
    with pytest.raises(Unsupported, match="cache of fixed length"):
        make("llama", "cab_softmax").generate(**text("left"), max_new_tokens=3, cache_implementation="static")


def test_from_pretrained_takes_the_name(tmp_path):
    make("bert", "eager").save_pretrained(tmp_path)
    inputs = text("right")
    with torch.no_grad():
        ours, own = (AutoModel.from_pretrained(tmp_path, attn_implementation=a) for a in ("cab_sdpa", "eager"))
        torch.testing.assert_close(run(ours.eval(), inputs), run(own.eval(), inputs), **ROUNDING)
    assert len(check(ours, **inputs)) == 2


@pytest.mark.parametrize("custom", ["boolean", "added", "padding"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_masks_that_a_user_made_are_read_by_their_values(family, custom):
    inputs = text("right")
    kept = inputs["attention_mask"].bool()
    rows = kept[:, None, None, :].expand(-1, 1, LENGTH, -1)
    if family == "llama":
        rows = rows & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    added = torch.zeros(rows.shape).masked_fill(~rows, torch.finfo(torch.float32).min)
    given = {"boolean": rows, "added": added, "padding": inputs["attention_mask"]}[custom]
    with torch.no_grad():
        expected = run(make(family, "eager"), inputs)
        out = make(family, "cab_softmax")(input_ids=inputs["input_ids"], attention_mask=given)[0][kept]
    torch.testing.assert_close(out, expected, **ROUNDING)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_one_row_for_all_queries_is_no_causality_in_a_causal_model_either(family):
    inputs = text("right")
    kept = inputs["attention_mask"].bool()
    row = torch.zeros(kept.shape).masked_fill(~kept, torch.finfo(torch.float32).min)[:, None, None]
    own, ours = (
        make(family, name)(input_ids=inputs["input_ids"], attention_mask=row)[0][kept] for name in ("eager", "cab_sdpa")
    )
    torch.testing.assert_close(ours, own, **ROUNDING)


def test_a_causal_decoder_with_a_full_mask_is_not_causal():
    model = make("llama", "cab_softmax", is_causal=False)
    inputs = text("right")
    changed = inputs | {"input_ids": inputs["input_ids"].index_fill(1, torch.tensor([3]), 9)}
    with torch.no_grad():
        assert (model(**inputs)[0][:, 0] - model(**changed)[0][:, 0]).abs().max() > 1e-3


def test_attach_sets_verifies_and_distinguishes_options():
    inputs, model = text("right"), make("bert", "eager")
    with torch.no_grad():
        dense = run(model, inputs)
        few = run(attach(model, "smyrf", cluster_size=2, rounds=1), inputs)
        one = run(attach(model, "smyrf", cluster_size=64), inputs)
        again = run(attach(model, "smyrf", cluster_size=2, rounds=1), inputs)
    torch.testing.assert_close(one, dense, **ROUNDING)
    assert torch.equal(few, again)
    assert (few - dense).abs().max() > 1e-2
    assert len(check(model, **inputs)) == 2
    with torch.no_grad():  # a name that holds "flash" is no flash attention of transformers
        torch.testing.assert_close(run(attach(model, "sdpa", impl="math"), inputs), dense, **ROUNDING)


def test_an_attached_model_can_be_copied_and_saved_before_and_after_its_first_pass():
    inputs, model = text("right"), attach(make("bert", "eager"), "smyrf", cluster_size=4)
    with torch.no_grad():
        twin = copy.deepcopy(model)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        out = run(model, inputs)
        assert torch.equal(run(twin, inputs), out)
        assert torch.equal(run(loaded, inputs), out)
        assert torch.equal(run(copy.deepcopy(model), inputs), out)


@pytest.mark.parametrize("family", ["bert", "vit"])  # the attention of the one knows its layer, that of the other not
def test_what_is_drawn_is_the_same_by_name_attached_copied_and_in_another_model_of_one_config(family):
    inputs = FAMILIES[family].inputs("right")
    register(performer={"num_features": 8})
    named = make(family, "cab_performer")
    other = type(named)._from_config(named.config, attn_implementation="cab_performer").eval()
    other.load_state_dict(named.state_dict())
    attached = attach(make(family, "eager"), "performer", num_features=8)
    with torch.no_grad():
        expected = run(named, inputs)
        for model in (other, attached, copy.deepcopy(attached)):
            assert torch.equal(run(model, inputs), expected)


def test_what_was_registered_stays_until_it_is_named_again():
    inputs = text("right")
    register(smyrf={"cluster_size": 2, "rounds": 1})
    model = make("bert", "cab_smyrf")
    with torch.no_grad():
        few = run(model, inputs)
        register()
        register(local={"window": 3})
        assert torch.equal(run(model, inputs), few)
        register(smyrf={})
        assert (run(model, inputs) - few).abs().max() > 1e-2


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.* is deprecated:FutureWarning")
def test_gradient_checkpoints_change_no_gradient():
    inputs, grads = text("left"), []
    for reentrant in (None, True, False):
        model = make("bert", "cab_smyrf", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        run(model, inputs).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for plain, *others in zip(*grads, strict=True):
        assert all((plain is None and g is None) or torch.equal(plain, g) for g in others)


def test_the_zoo_does_not_import_transformers():
    code = (
        "import sys, attention_zoo, attention_zoo.convert, attention_zoo.fidelity; print('transformers' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def test_what_the_user_got_wrong_is_one_line():
    with pytest.raises(UnknownName, match="did you mean 'smyrf'"):
        register(smirf={})
    with pytest.raises(UnknownName, match="did you mean 'cluster_size'"):
        register(smyrf={"clustersize": 3})
    with pytest.raises(ValueError, match="rounds=0"):
        register(smyrf={"rounds": 0})
    with pytest.raises(Unsupported, match="linformer cannot stand in"):
        register(linformer={})
    with pytest.raises(TypeError, match="smyrf=4"):
        register(smyrf=4)
    with pytest.raises(UnknownName, match="did you mean 'causal_cross'"):
        register(cross="causal_crss")
    with pytest.raises(UnknownName, match="did you mean 'smyrf'") as told:
        attach(make("bert", "eager"), "smirf")
    assert "linformer" not in str(told.value)  # which could not stand in
    with pytest.raises(Unsupported, match="use attention_zoo"):
        attach(torch.nn.Linear(2, 2), "smyrf")


def test_an_ineligible_mechanism_says_why_when_it_is_asked_for():
    with pytest.raises(Unsupported, match="abc cannot stand in for softmax attention: it has no core"):
        make("bert", "cab_abc")(**text("right"))


@pytest.mark.parametrize("name", [n for n in eligibility.eligible() if Pattern.CAUSAL_SELF in standing(n).patterns])
def test_every_head_size_is_taken(name):
    sizes = {"head_dim": 6, "num_key_value_heads": 1, "hidden_size": 20}
    with torch.no_grad():
        assert torch.isfinite(run(make("llama", f"cab_{name}", **sizes), text("left"))).all()


def test_a_model_whose_attention_is_none_of_the_zoo_records_nothing_and_that_is_said():
    model = make("bert", "eager")
    with record(model) as calls, torch.no_grad():
        model(**text("right"))
    with pytest.raises(ValueError, match="no call of an attention was recorded"):
        of_layers(calls, "smyrf")


def test_attention_of_a_pretrained_model_is_recorded_by_layer():
    model, inputs = make("bart", "cab_softmax"), FAMILIES["bart"].inputs("right")
    with record(model) as calls, torch.no_grad():
        model(**inputs, use_cache=False)
    assert [call.name for call in calls[:3]] == [
        "encoder.layers.0.self_attn",
        "encoder.layers.1.self_attn",
        "decoder.layers.0.self_attn",
    ]
    assert [call.pattern.short for call in calls] == ["NS", "NS", "CS", "CC", "CS", "CC"]
    found = of_layers(calls, "smyrf", cluster_size=64)
    # In float32, whose roundings are 6e-8, on sums of a dozen.
    assert all(layer.fidelity.relative_error < 1e-5 for layer in found)
    assert all(layer.fidelity.captured_mass == pytest.approx(1) for layer in found)
