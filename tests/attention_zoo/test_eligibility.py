import pytest
from torch import nn

from attention_zoo.contract import AttentionCore, Card, HeadwiseAttention, Pattern, Support, Unsupported
from attention_zoo.eligibility import _judge, eligible, require, standing
from attention_zoo.errors import UnknownName
from attention_zoo.registry import names

NS, CS, NC, CC = Pattern
ELIGIBLE = {  # mechanism: patterns, and options without which it cannot
    "bigbird": ((NS, CS), {}),
    "cosformer": ((NS, CS, NC, CC), {}),
    "identity": ((NS, CS), {}),
    "lara": ((NS, NC), {"proposal": "segment"}),
    "linear": ((NS, CS, NC, CC), {}),
    "local": ((NS, CS), {}),  # across sequences it predicts a centre, with weights of its own
    "longformer": ((NS, CS), {}),  # the second set of projections begins as a copy of the first, and so is the core's
    "nystromformer": ((NS, NC), {"conv_kernel": 0}),
    "performer": ((NS, CS, NC, CC), {}),
    "probsparse": ((NS, NC), {}),
    "reformer": ((NS, NC, CC), {"shared_qk": False}),
    "sdpa": ((NS, CS, NC, CC), {}),
    "smyrf": ((NS, CS, NC, CC), {}),
    "softmax": ((NS, CS, NC, CC), {}),
    "uniform": ((NS, CS, NC, CC), {}),
}
REFUSED = {
    "abc": "no core (the control vectors are computed from the layer's input)",
    "efficient": "no key and no value projection",
    "eva": "query_landmarks, key_landmarks (8,576 at 8 heads of 64)",
    "linformer": "tied to one length",
    "longshort": "no core (the dynamic projection is computed",
    "optimised": "no value projection",
    "s4d": "no core (it has no queries and keys",
    "super": "tied to one length",
}


def test_every_mechanism_is_in_one_of_the_tables():
    assert {*ELIGIBLE, *REFUSED} == set(names())
    assert eligible() == sorted(ELIGIBLE)


@pytest.mark.parametrize("name", ELIGIBLE)
def test_what_can_stand_in_where_and_with_which_options(name):
    found = standing(name)
    assert (found.patterns, dict(found.needed), found.reason) == (*ELIGIBLE[name], "")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_says_why_in_one_line(name):
    with pytest.raises(Unsupported, match="cannot stand in for softmax attention") as refusal:
        require(name)
    assert REFUSED[name] in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_options_decide_too():
    assert standing("nystromformer", conv_kernel=9).patterns == ()
    assert "conv (72 at 8 heads of 64)" in standing("nystromformer", conv_kernel=9).reason
    assert require("nystromformer", num_landmarks=8) == {"conv_kernel": 0, "num_landmarks": 8}
    assert "pool" not in require("lara", num_landmarks=4).values()
    with pytest.raises(UnknownName, match="did you mean 'rounds'"):
        require("smyrf", round=2)


@pytest.mark.parametrize("name", ["reformer", "probsparse"])
def test_a_selection_that_sees_the_future_cannot_stand_in_for_a_causal_one(name):
    with pytest.raises(Unsupported, match="sees the future"):
        standing(name).require(Pattern.CAUSAL_SELF)


class _GatedCore(AttentionCore):
    def __init__(self, *args, gate: bool = True, **sizes):
        super().__init__(*args, **sizes)
        self.register_parameter("gate", nn.Parameter(nn.init.zeros_(nn.Linear(1, 1).weight)) if gate else None)


class _Gated(HeadwiseAttention):
    core_type = _GatedCore
    card = Card(
        name="gated",
        title="",
        authors="",
        year=2026,
        paper="none",
        family="floor",
        exact=False,
        time_order="L",
        memory_order="L",
        supports={Pattern.NONCAUSAL_SELF: Support.PUBLISHED},
        unsupported=dict.fromkeys((CS, NC, CC), "not written"),
    )


def test_the_verdict_is_read_off_a_layer_and_not_off_a_name():
    assert "gate (1 at 8 heads of 64)" in _judge(_Gated, {}).reason
    assert _judge(_Gated, {"gate": False}).patterns == (NS,)
    without_keys = type("WithoutKeys", (_Gated,), {"projections": frozenset({"query", "value", "output"})})
    assert "no key projection" in _judge(without_keys, {"gate": False}).reason
