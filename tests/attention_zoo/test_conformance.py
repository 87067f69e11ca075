"""Right attentions get their certificate; each wrong one below fails in the test that is named for its fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.conformance import Certificate, Mark, Oracle, Status, certify
from attention_zoo.conformance.subject import longest_length, whole_blocks
from attention_zoo.contract import (
    Attention,
    AttentionCore,
    Card,
    Collapse,
    HeadwiseAttention,
    Pattern,
    State,
    Support,
    Unsupported,
)
from attention_zoo.reference import softmax as oracle_module
from attention_zoo.registry import UnknownName

NS, CS, NC, CC = Pattern
ORACLE = Oracle(oracle_module)


@dataclass
class Cache(State):
    k: Tensor
    v: Tensor
    mask: Tensor | None


class Right(AttentionCore):
    """Softmax attention in named pieces, each of which a wrong one below replaces."""

    def visible(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        seen = torch.ones(q.shape[0], 1, q.shape[2], k.shape[2], dtype=torch.bool)
        if self.pattern is CS:
            seen = seen & self.past(q.shape[2])
        return seen if mask is None else seen & self.unpadded(mask, q)

    def past(self, length: int) -> Tensor:
        return torch.ones(length, length, dtype=torch.bool).tril()

    def unpadded(self, mask: Tensor, q: Tensor) -> Tensor:
        return ~mask[:, None, None, :]

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5

    def weights(self, logits: Tensor, seen: Tensor) -> Tensor:
        return torch.softmax(logits.masked_fill(~seen, torch.finfo(logits.dtype).min), -1) * seen

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        weights = self.weights(self.logits(q, k), self.visible(q, k, key_padding_mask))
        return F.dropout(weights, self.dropout, self.training) @ v

    def prefill(
        self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> tuple[Tensor, State]:
        return self(q, k, v, key_padding_mask=key_padding_mask), Cache(k, v, key_padding_mask)

    def step(self, q: Tensor, k: Tensor | None, v: Tensor | None, state: State) -> tuple[Tensor, State]:
        assert isinstance(state, Cache)
        if k is not None and v is not None:
            mask = None if state.mask is None else F.pad(state.mask, (0, 1))
            state = Cache(torch.cat([state.k, k], 2), torch.cat([state.v, v], 2), mask)
        seen = torch.ones(1, dtype=torch.bool) if state.mask is None else ~state.mask[:, None, None]
        return self.weights(self.logits(q, state.k), seen) @ state.v, state

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        return 4 * batch * self.num_heads * length_q * length_k * self.head_dim

    def state_bytes(self, batch: int, length: int, element_size: int = 4) -> int:
        return 2 * batch * self.num_heads * length * self.head_dim * element_size


def card(*patterns: Pattern, **changes: Any) -> Card:
    patterns = patterns or tuple(Pattern)
    fields: dict[str, Any] = {
        "name": "own",
        "title": "",
        "authors": "",
        "year": 2024,
        "paper": "",
        "family": "exact",
        "exact": False,
        "time_order": "L^2",
        "memory_order": "L^2",
        "supports": dict.fromkeys(patterns, Support.PUBLISHED),
        "unsupported": {pattern: "not tried here" for pattern in Pattern if pattern not in patterns},
        "softmax_logits": True,
        "incremental": frozenset({CS, CC}),
    }
    return Card(**{**fields, **changes})


def layer(core: type[AttentionCore], *patterns: Pattern, **changes: Any) -> type[Attention]:
    return type(f"{core.__name__}Layer", (HeadwiseAttention,), {"card": card(*patterns, **changes), "core_type": core})


def failures(kind: type[Attention], oracle: Oracle | None = ORACLE) -> set[str]:
    made = certify(kind, patterns=kind.card.supports, oracle=oracle)
    assert not made.passed, "a wrong attention was certified"
    return {f"{result.test}" for part in made.patterns.values() for result in part.failures}


# --- right ones ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def right() -> Certificate:
    return certify(layer(Right, exact=True, collapses=Collapse({})), oracle=ORACLE)


def test_right_one_is_certified_in_every_pattern(right: Certificate) -> None:
    assert [part.mark for part in right.patterns.values()] == [Mark.CERTIFIED] * 4, str(right)


def test_every_test_is_on_every_certificate_and_every_gap_has_a_reason(right: Certificate) -> None:
    for part in right.patterns.values():
        assert {result.test for result in part.results} >= {f"T{n}" for n in range(1, 15)}
        for result in part.results:
            assert (result.status is Status.NOT_APPLICABLE) == bool(result.reason), str(result)


def test_certificate_survives_json(right: Certificate) -> None:
    assert Certificate.from_json(json.loads(json.dumps(right.to_json()))) == right
    assert right.to_json()["patterns"]["causal_self"]["mark"] == "certified"
    assert "causal_self: certified (published)" in str(right)


def test_nothing_of_the_global_generator_is_used() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    certify(layer(Right, CC), patterns=[CC])
    assert torch.equal(before, torch.get_rng_state())


def test_without_an_oracle_the_mark_says_so() -> None:
    made = certify(layer(Right, CS), patterns=[CS, NS])
    assert made.patterns[CS].mark is Mark.NO_ORACLE
    assert any(result.reason == "no oracle is shipped" for result in made.patterns[CS].results)
    assert made.patterns[NS].mark is Mark.UNSUPPORTED
    assert made.patterns[NS].reason == "not tried here"


def test_the_zoo_finds_its_oracle_by_convention() -> None:
    from attention_zoo.softmax import SoftmaxAttention

    oracle = Oracle.find(SoftmaxAttention)
    assert oracle is not None
    assert oracle.name == "attention_zoo.reference.softmax"
    assert Oracle.find(layer(Right)) is None


def test_unknown_option_is_the_callers_error() -> None:
    with pytest.raises(UnknownName, match="windw"):
        certify(layer(Right), options={"windw": 3})


class RunningMean(Attention):
    """A layer without a core: the mean of W x over the past, padding left out."""

    card = card(
        CS, no_core_reason="it has no queries", incremental=frozenset(), linear_in_values=False, rows_sum_to_one=False
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight = nn.Linear(self.embed_dim, self.embed_dim, bias=False)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        self.check_inputs(query, key, value, key_padding_mask)
        x = self.weight(query)
        valid = torch.ones_like(x[..., :1]) if key_padding_mask is None else (~key_padding_mask)[..., None].to(x.dtype)
        # Sums are carried in at least float32, as everywhere in the zoo.
        wide = torch.promote_types(x.dtype, torch.float32)
        mean = (x * valid).cumsum(1, dtype=wide) / valid.cumsum(1, dtype=wide).clamp(min=1)
        return F.dropout(mean.to(x.dtype), self.dropout, self.training)

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        return 2 * batch * length_q * self.embed_dim**2


def test_layer_without_a_core_is_tested_as_a_layer() -> None:
    made = certify(RunningMean)
    part = made.patterns[CS]
    assert part.mark is Mark.NO_ORACLE, str(made)
    assert {result.level for result in part.results} == {"layer"}
    reasons = {result.test: result.reason for result in part.results if result.status is Status.NOT_APPLICABLE}
    assert "no queries" in reasons["T12"]
    assert "no queries" in reasons["T5"]


class SeesScale(Right):
    """Causal in the values; the temperature is a statistic over all keys, the future's too."""

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        return super().logits(q, k) / k.detach().abs().amax((2, 3), keepdim=True)


def _value_causal(core: type[AttentionCore]) -> type[Attention]:
    loose = {"incremental": frozenset(), "trimmed_equality": False, "trimmed_reason": "the scale sees padding"}
    return layer(core, CS, supports={CS: Support.VALUE_CAUSAL}, softmax_logits=False, **loose)


def test_value_causal_must_leak_and_only_through_the_selection() -> None:
    class Refusing(SeesScale):
        def visible(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
            return super().visible(q, k, mask)

        def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
            k = k if key_padding_mask is None else k.masked_fill(key_padding_mask[:, None, :, None], 1e-3)
            return super().forward(q, k, v, key_padding_mask=key_padding_mask)

        def prefill(self, *args: Any, **kwargs: Any) -> tuple[Tensor, State]:
            raise Unsupported("the scale is known at the end only")

    kind = _value_causal(Refusing)
    kind.card = replace(kind.card, trimmed_equality=True)
    made = certify(kind, patterns=[CS])
    assert made.patterns[CS].mark is Mark.VALUE_CAUSAL, str(made)


# --- wrong ones ------------------------------------------------------------------------------------------------------


class SeesNext(Right):
    def past(self, length: int) -> Tensor:
        return torch.ones(length, length, dtype=torch.bool).tril(1)


class FutureStabiliser(Right):
    """exp(logits - max over all keys) with a constant in the denominator: causal but for the maximum."""

    def weights(self, logits: Tensor, seen: Tensor) -> Tensor:
        w = torch.exp(logits - logits.amax(-1, keepdim=True)) * seen
        return w / (w.sum(-1, keepdim=True) + 1e-6)


class TargetMean(Right):
    """Causal cross with queries centred over the whole target."""

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        return super().logits(q - q.mean(2, keepdim=True), k)


class LengthTemperature(Right):
    """The temperature grows with the length of the pass: no content leaks, but a prefix is another function."""

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        return super().logits(q, k) * (1 + q.shape[2] / 100)


class FutureValues(Right):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        out = super().forward(q, k, v, key_padding_mask=key_padding_mask)
        return out + 1e-6 * v.mean(2, keepdim=True)


class OwnValueOnly(Right):
    """The numerator is not accumulated: normalised over the past, but only the own value is added."""

    def weights(self, logits: Tensor, seen: Tensor) -> Tensor:
        return super().weights(logits, seen) * torch.eye(logits.shape[-1], dtype=torch.bool)


class CausalAnyway(Right):
    def visible(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        return super().visible(q, k, mask) & self.past(q.shape[2])


class IgnoresPadding(Right):
    def unpadded(self, mask: Tensor, q: Tensor) -> Tensor:
        return torch.ones(1, dtype=torch.bool)


class HeadMajorMask(Right):
    """The mask tiled for a batch flattened head by head, while the inputs are flattened sample by sample."""

    def unpadded(self, mask: Tensor, q: Tensor) -> Tensor:
        return ~mask.repeat(self.num_heads, 1).view(q.shape[0], self.num_heads, 1, -1)


class BatchDenominator(Right):
    def weights(self, logits: Tensor, seen: Tensor) -> Tensor:
        w = torch.exp(logits) * seen
        return w / w.sum(-1, keepdim=True).mean(0, keepdim=True).clamp(min=1e-9)


class PaddedPhi(Right):
    """Keys are zeroed before the feature map phi(x) = elu(x) + 1, and phi(0) = 1: padding stays in the denominator."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        if key_padding_mask is not None:
            k = k.masked_fill(key_padding_mask[:, None, :, None], 0.0)
            v = v.masked_fill(key_padding_mask[:, None, :, None], 0.0)
        phi_q, phi_k = F.elu(q) + 1, F.elu(k) + 1
        denominator = (phi_q * phi_k.sum(2, keepdim=True)).sum(-1, keepdim=True)
        return F.dropout(phi_q @ (phi_k.transpose(-2, -1) @ v) / denominator, self.dropout, self.training)


class ClampedDenominator(Right):
    """Features elu(x) + 1 whose denominator is held above 0.1, where unit inputs never come."""

    def weights(self, logits: Tensor, seen: Tensor) -> Tensor:
        return logits * seen / (logits * seen).sum(-1, keepdim=True).clamp(min=0.1)

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        return (F.elu(q) + 1) @ (F.elu(k) + 1).transpose(-2, -1)


class Positional(Right):
    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        return super().logits(q, k) + torch.arange(k.shape[2], dtype=q.dtype) / 100


class ForgetsMask(Right):
    """The mask of the prefix is not in the state."""

    def prefill(self, *args: Any, **kwargs: Any) -> tuple[Tensor, State]:
        out, state = super().prefill(*args, **kwargs)
        assert isinstance(state, Cache)
        return out, Cache(state.k, state.v, None)


class ChangesState(Right):
    def step(self, q: Tensor, k: Tensor | None, v: Tensor | None, state: State) -> tuple[Tensor, State]:
        out, new = super().step(q, k, v, state)
        assert isinstance(state, Cache)
        state.v.mul_(2.0)
        return out, new


class WrongStateBytes(Right):
    def state_bytes(self, batch: int, length: int, element_size: int = 4) -> int:
        return super().state_bytes(batch, length, 4)


class Unnormalised(Right):
    def weights(self, logits: Tensor, seen: Tensor) -> Tensor:
        return 1.01 * super().weights(logits, seen)


class Overflows(Right):
    def weights(self, logits: Tensor, seen: Tensor) -> Tensor:
        w = torch.exp(logits) * seen
        return w / w.sum(-1, keepdim=True).clamp(min=1e-30)


class NaNWhenBlind(Right):
    def weights(self, logits: Tensor, seen: Tensor) -> Tensor:
        return torch.softmax(logits.masked_fill(~seen, -torch.inf), -1)


class NaNGradientWhenBlind(Right):
    """The same outputs by way of a square root, whose gradient at zero times zero is NaN."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        out = super().forward(q, k, v, key_padding_mask=key_padding_mask)
        return out.square().sqrt() * out.sign()


class Unscaled(Right):
    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        return super().logits(q, k) * q.shape[-1] ** 0.5


class Detached(Right):
    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        return super().logits(q, k.detach())


class LowPrecisionInside(Right):
    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        return super().logits(q, k) if q.dtype is torch.float64 else super().logits(q.bfloat16(), k.bfloat16()).to(q)


class ValueGate(Right):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        return super().forward(q, k, v * torch.tanh(v).abs(), key_padding_mask=key_padding_mask)


class PlainAttribute(Right):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.direction = torch.ones(self.head_dim)


class HiddenState(Right):
    """What the output depends on is a number that the state_dict does not hold."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.temperature = float(torch.rand(()))

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        return super().logits(q, k) * self.temperature


class Noisy(Right):
    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        return super().logits(q, k) + torch.rand(()).to(q.dtype)  # cancels, but the generator has moved


class CountsCalls(Right):
    """The clock of a redraw that runs in evaluation too."""

    calls = 0

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        self.calls += 1
        return super().logits(q, k)

    def get_extra_state(self) -> int:
        return self.calls

    def set_extra_state(self, state: int) -> None:
        self.calls = state


class InPlace(Right):
    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        return super().logits(q, k.detach().add_(0.5) if not k.requires_grad else k)


class NoDropout(Right):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        return self.weights(self.logits(q, k), self.visible(q, k, key_padding_mask)) @ v


class DropsTheOthers(Right):
    """Keeps what it should drop; at p = 1/2 nobody would notice."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        weights = self.weights(self.logits(q, k), self.visible(q, k, key_padding_mask))
        if self.training and self.dropout:
            weights = weights * (torch.rand_like(weights) <= self.dropout) / (1 - self.dropout)
        return weights @ v


class DropoutWithoutGradient(Right):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        whole = NoDropout.forward(self, q, k, v, key_padding_mask=key_padding_mask)  # type: ignore[arg-type]
        return whole + (super().forward(q, k, v, key_padding_mask=key_padding_mask) - whole).detach()


class AlwaysSingle(Right):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        out = super().forward(q, k, v, key_padding_mask=key_padding_mask)
        return out.float() if q.dtype is torch.bfloat16 else out


class DeadParameter(Right):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.unused = nn.Parameter(torch.ones(3))


class FloatFlops(Right):
    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        return super().flops(batch, length_q, length_k) / 1  # type: ignore[return-value]


class LengthSized(Right):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bias = nn.Parameter(torch.zeros(self.max_length_key))

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        return super().logits(q, k) + self.bias[: k.shape[2]].sum()


WRONG: dict[str, tuple[str, Callable[[], type[Attention]]]] = {
    "sees the next token": ("T3", lambda: layer(SeesNext, CS)),
    "stabiliser over the future": ("T3", lambda: layer(FutureStabiliser, CS)),
    "statistic over the target": ("T3", lambda: layer(TargetMean, CC)),
    "claims value_causal, is causal": ("T3", lambda: layer(Right, CS, supports={CS: Support.VALUE_CAUSAL})),
    "claims published, is value-causal": ("T3", lambda: layer(SeesScale, CS)),
    "temperature by length": ("T4", lambda: layer(LengthTemperature, CC)),
    "future values": ("T5", lambda: layer(FutureValues, CS)),
    "numerator not accumulated": ("T6", lambda: layer(OwnValueOnly, CS)),
    "causal though it should not be": ("T6", lambda: layer(CausalAnyway, NS)),
    "claims no influence": ("T6", lambda: layer(Right, CS, past_influence=False)),
    "padding ignored": ("T7", lambda: layer(IgnoresPadding, NC)),
    "mask tiled head by head": ("T9", lambda: layer(HeadMajorMask, NC)),
    "denominator over the batch": ("T9", lambda: layer(BatchDenominator, NS)),
    "keys zeroed before the feature map": ("T8", lambda: layer(PaddedPhi, NC, softmax_logits=False)),
    "positions in an order-free one": ("T10", lambda: layer(Positional, NC)),
    "claims order, has none": ("T10", lambda: layer(Right, NC, permutation_equivariant=False)),
    "mask lost after prefill": ("T11", lambda: layer(ForgetsMask, CS)),
    "step changes the old state": ("T11", lambda: layer(ChangesState, CC)),
    "state of another size": ("T11", lambda: layer(WrongStateBytes, CS)),
    "incremental form not declared": ("T11", lambda: layer(Right, CC, incremental=frozenset())),
    "rows do not sum to one": ("T12", lambda: layer(Unnormalised, NC)),
    "denominator clamped": ("T12", lambda: layer(ClampedDenominator, NC, softmax_logits=False)),
    "claims rows that do not": ("T12", lambda: layer(Right, NC, rows_sum_to_one=False)),
    "exp without a stabiliser": ("T13", lambda: layer(Overflows, NC)),
    "claims softmax logits, has none": ("T13", lambda: layer(PaddedPhi, NC)),
    "claims no softmax logits, has them": ("T13", lambda: layer(Right, NC, softmax_logits=False)),
    "NaN where nothing is visible": ("T14", lambda: layer(NaNWhenBlind, NS)),
    "NaN gradient where nothing is visible": ("T14", lambda: layer(NaNGradientWhenBlind, CS)),
    "no scale": ("T1", lambda: layer(Unscaled, NC)),
    "gradient cut": ("T1", lambda: layer(Detached, NC)),
    "bfloat16 inside float32": ("T1", lambda: layer(LowPrecisionInside, NC)),
    "not linear in the values": ("T1", lambda: layer(ValueGate, NC)),
    "claims not linear, is": ("T1", lambda: layer(Right, NC, linear_in_values=False)),
    "claims to be exact": ("T2", lambda: layer(Unscaled, NS, exact=True)),
    "claims to collapse": ("T2", lambda: layer(Unscaled, NC, collapses=Collapse({}))),
    "no trimmed equality, no reason": ("T8", lambda: layer(Right, NC, trimmed_equality=False)),
    "claims no trimmed equality": ("T8", lambda: layer(Right, NC, trimmed_equality=False, trimmed_reason="none")),
    "tensor as plain attribute": ("S2", lambda: layer(PlainAttribute, NC)),
    "state that is not saved": ("S2", lambda: layer(HiddenState, NC)),
    "draws in evaluation": ("S1", lambda: layer(Noisy, NC)),
    "state moved in evaluation": ("S1", lambda: layer(CountsCalls, NC)),
    "input changed in place": ("S1", lambda: layer(InPlace, NC)),
    "dropout mask upside down": ("S3", lambda: layer(DropsTheOthers, NC)),
    "gradient as if nothing was dropped": ("S3", lambda: layer(DropoutWithoutGradient, NC)),
    "output of another dtype": ("S4", lambda: layer(AlwaysSingle, NC)),
    "dead parameter": ("S5", lambda: layer(DeadParameter, NC)),
    "flops that are no count": ("S6", lambda: layer(FloatFlops, NC)),
    "parameters by length, not declared": ("S6", lambda: layer(LengthSized, NC)),
    "claims parameters by length": ("S6", lambda: layer(Right, NC, fixed_length=True)),
}


@pytest.mark.parametrize("fault", WRONG)
def test_each_fault_is_caught_by_its_test(fault: str) -> None:
    test, make = WRONG[fault]
    assert test in failures(make())


def test_dropout_that_is_ignored_is_said_and_does_not_fail() -> None:
    pattern = certify(layer(NoDropout, NC), patterns=[NC]).patterns[NC]
    assert "S3" not in pattern.failed_tests
    said = [result for result in pattern.results if result.title == "dropout"]
    assert {result.status for result in said} == {Status.NOT_APPLICABLE}
    assert all("ignores dropout" in result.reason for result in said)


def test_a_mechanism_without_an_analytic_count_says_so_and_does_not_fail() -> None:
    class Uncounted(Right):
        def flops(self, batch: int, length_q: int, length_k: int) -> int:
            raise NotImplementedError

    pattern = certify(layer(Uncounted, NC), patterns=[NC]).patterns[NC]
    assert "S6" not in pattern.failed_tests
    assert any(result.title == "flops" and result.status is Status.NOT_APPLICABLE for result in pattern.results)


def test_wrong_wiring_of_a_layer_is_caught_by_the_oracle_at_layer_level() -> None:
    class Swapped(HeadwiseAttention):
        card = card(NC)
        core_type = Right

        def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return super()._project(query, value, key)

    made = certify(Swapped, patterns=[NC], oracle=ORACLE)
    assert {(result.test, result.level) for result in made.patterns[NC].failures} == {("T1", "layer")}


def test_an_unsupported_pattern_must_be_refused() -> None:
    class Accepts(RunningMean):
        def __init__(self, embed_dim: int, num_heads: int, pattern: str, **kwargs: Any) -> None:
            super().__init__(embed_dim, num_heads, CS, **kwargs)

    made = certify(Accepts, patterns=[NS])
    assert made.patterns[NS].failed_tests == ("S6",)


def test_code_that_raises_is_a_finding_and_not_a_crash() -> None:
    class Divides(Right):
        def logits(self, q: Tensor, k: Tensor) -> Tensor:
            if q.shape[2] % 2:
                raise RuntimeError("the length must be even")
            return super().logits(q, k)

    made = certify(layer(Divides, NC), patterns=[NC])
    assert any("the length must be even" in result.detail for result in made.patterns[NC].failures)


def test_an_excuse_is_judged_over_all_patterns_and_only_when_all_were_run() -> None:
    """Positions matter in NC alone: the declaration is right for the mechanism, though CC shows no order."""

    class SomeOrder(Positional):
        def logits(self, q: Tensor, k: Tensor) -> Tensor:
            return super().logits(q, k) if self.pattern is NC else Right.logits(self, q, k)

    kind = layer(SomeOrder, NC, CC, permutation_equivariant=False)
    assert certify(kind, patterns=[NC, CC]).passed
    assert certify(kind, patterns=[CC]).passed


def test_an_excuse_is_judged_with_the_options_that_the_card_speaks_of() -> None:
    class Optional(Right):
        def __init__(self, *args: Any, ordered: bool = True, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.ordered = ordered

        def logits(self, q: Tensor, k: Tensor) -> Tensor:
            return super().logits(q, k) + self.ordered * torch.arange(k.shape[2], dtype=q.dtype) / 100

    kind = layer(Optional, NC, permutation_equivariant=False)
    assert certify(kind, patterns=[NC]).passed
    assert certify(kind, patterns=[NC], options={"ordered": False}).passed


@pytest.mark.parametrize(("options", "longest", "whole"), [({}, 131, 128), ({"bucket_size": 64}, 131, 128)])
def test_lengths_cover_two_blocks_exactly_and_more(options: dict[str, int], longest: int, whole: int) -> None:
    assert (longest_length(options), whole_blocks(options)) == (longest, whole)
    assert longest_length({"window": 200, "num_features": 5000}) == 409


class OffByOneBlock(Right):
    """ceil(n / 64) as n // 64 + 1: one block too many, and a wrong temperature, where n is a multiple of 64."""

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        blocks = k.shape[2] // 64 + 1
        return super().logits(q, k) * (-(-k.shape[2] // 64) / blocks)


def test_a_fault_at_whole_blocks_alone_is_caught() -> None:
    assert "T1" in failures(layer(OffByOneBlock, NS))


class ForgetsFarBlocks(Right):
    """Blocks of 256 keys that no option names; a row does not see those that lie two blocks or more behind it."""

    def past(self, length: int) -> Tensor:
        block = torch.arange(length) // 256
        return super().past(length) & (block[:, None] - block[None, :] < 2)


def test_a_fault_between_far_blocks_that_no_option_names_is_caught() -> None:
    assert "T1" in failures(layer(ForgetsFarBlocks, CS))


def test_options_that_exclude_a_pattern_make_it_unsupported_and_default_ones_cannot() -> None:
    class SelfOnly(Right):
        def __init__(self, num_heads: int, head_dim: int, pattern: str, *, shared: bool = False, **kw: Any) -> None:
            super().__init__(num_heads, head_dim, pattern, **kw)
            if shared and self.pattern.is_cross:
                raise Unsupported("queries and keys come from different sequences")

    part = certify(layer(SelfOnly, NC), options={"shared": True}, patterns=[NC]).patterns[NC]
    assert (part.mark, part.reason) == (Mark.UNSUPPORTED, "queries and keys come from different sequences")

    class Never(Right):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise Unsupported("never")

    assert certify(layer(Never, NC), patterns=[NC]).patterns[NC].mark is Mark.FAILED
