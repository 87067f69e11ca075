"""ABC: attention over a memory of r slots, into which a learned control writes all tokens.

Token i has a control vector phi_i in R^r; the memory is its outer products, and a query reads it by softmax:

    K~ = sum_i phi_i k_i^T,    V~ = sum_i phi_i v_i^T,    o_t = softmax(s K~ q_t) V~,    s = D^-1/2
    phi_i = e^(a_i) / sum_j e^(a_j)     for each slot, over all visible tokens; over j <= t in the causal self pattern

* ``control="input"``, the paper's ABC_MLP: a_i = W_phi x_i from the layer's input (in the cross patterns: from the
  keys' source), with weights of each head's own; one phi serves keys and values.
* ``control="projected"``, CAB's: a_i = W_k k_i for the keys and W_v v_i for the values, with weights that all heads
  share.

Time O(L r D), memory O(L (r + D)). All four patterns are published; in the causal cross pattern the memory is that of
the whole source, and each query reads it alone. A sample without a visible token gives zeros.

**Causal self.** K~_t and V~_t are prefix means, numerator and normaliser both accumulated: state of constant size, in
which the numerators are relative to the running maximum m of each slot's logits. The parallel form never has K~_t: in
chunks of c positions, with rho a reference for each chunk and slot,

    q_t . K~_t = [sum_j<=t (q_t . k_j) e^(a_j - rho) + e^(m - rho) q_t . S] / [sum_j<=t e^(a_j - rho) + e^(m - rho) z]

where j is in the chunk, and S and z are the numerator and the normaliser before it; likewise V~_t. rho is the maximum
up to the chunk's *first* token, so that nothing of the future enters, not even its rounding. Where a logit rises more
than ``LEVEL`` above rho inside the chunk, e^(a_j - rho) would overflow: the rows from there on are computed with
rho + LEVEL, rho + 2 LEVEL, and so on, one more pass for each such level that occurs. (A public causal form divides each
token by the accumulated normaliser without accumulating the numerator: every output is then its own value, scaled.)

Source: H. Peng et al., "ABC: Attention with Bounded-memory Control", ACL 2022, arXiv:2110.02488, section 4. CAB's form:
J. Zhang et al., "CAB: Comprehensive Attention Benchmarking on Long Sequence Modeling", ICML 2023, arXiv:2210.07661.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention_zoo.contract import Card, Pattern, ProjectedAttention, State, Support
from attention_zoo.errors import UnknownName
from attention_zoo.primitives import accumulation_dtype, without_autocast

CARD = Card(
    name="abc",
    title="ABC: Attention with Bounded-memory Control",
    authors="Peng, Kasai, Pappas, Yogatama, Wu, Kong, Schwartz, Smith",
    year=2022,
    paper="arXiv:2110.02488",
    family="projection",
    exact=False,
    time_order="L",
    memory_order="L",
    supports=dict.fromkeys(Pattern, Support.PUBLISHED),
    linear_in_values=False,  # what is written depends on the layer's input, or (CAB) on the values themselves
    softmax_logits=True,
    incremental=frozenset({Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS}),
    no_core_reason="the control vectors are computed from the layer's input",
)

CHUNK = 64
LEVEL = 30.0  # e^30 and its square are far inside float32
CONTROLS = ("input", "projected")


@dataclass
class Slots(State):
    """The memory of a whole source: K~ and V~, ``[B, H, r, D]``."""

    k: Tensor
    v: Tensor


@dataclass
class RunningSlots(State):
    """The memory of a prefix, in at least float32.

    ``maximum`` m and ``total`` sum_j e^(a_j - m) are ``[B, H, G, r]``, with one control for keys and values (G = 1) or
    one for each (G = 2); ``k`` and ``v``, ``[B, H, r, D]``, are the numerators sum_j e^(a_j - m) k_j and ... v_j.
    """

    maximum: Tensor
    total: Tensor
    k: Tensor
    v: Tensor


def control_vectors(
    logits: Float[Tensor, "B H r L"], key_padding_mask: Bool[Tensor, "B L"] | None
) -> Float[Tensor, "B H r L"]:
    """phi: a softmax over the visible tokens, zero where there is none."""
    wide = logits.to(accumulation_dtype(logits))
    if key_padding_mask is None:
        return torch.softmax(wide, dim=-1)
    padded = key_padding_mask[:, None, None]
    return torch.softmax(wide.masked_fill(padded, torch.finfo(wide.dtype).min), dim=-1).masked_fill(padded, 0.0)


def write(phi: Float[Tensor, "B H r L"], x: Float[Tensor, "B H L D"]) -> Float[Tensor, "B H r D"]:
    """sum_i phi_i x_i^T."""
    return phi.to(x.dtype) @ x


def read(
    q: Float[Tensor, "B H L D"], k_slots: Float[Tensor, "B H r D"], v_slots: Float[Tensor, "B H r D"], dropout: float
) -> Float[Tensor, "B H L D"]:
    """softmax(s K~ q_t) V~, by the fused kernel."""
    return F.scaled_dot_product_attention(q, k_slots, v_slots, dropout_p=dropout)


def finite(maximum: Tensor) -> Tensor:
    """The maximum, and any number where nothing was there to take one of."""
    return torch.where(maximum.isfinite(), maximum, 0.0)


class Level(NamedTuple):
    """What the rows of one level of the logits' maximum are computed with."""

    written: Float[Tensor, "B H N r c"]  # e^(a_j - rho), capped where only rows of other levels would see more
    carried: Float[Tensor, "B H N r 1"]  # e^(m - rho), for what was written before the chunk
    rows: Bool[Tensor, "B H N r c"] | None  # which rows are of this level; None for all

    def of(self, x: Float[Tensor, "B H N r c"]) -> Float[Tensor, "B H N r c"]:
        """Zero in the rows of other levels."""
        return x if self.rows is None else x.masked_fill(~self.rows, 0.0)


class PrefixControl(NamedTuple):
    """phi over each prefix, in the factors of the chunked form; N chunks of c positions, the last dimension."""

    levels: list[Level]
    into_state: Float[Tensor, "B H N r c"]  # e^(a_j - m), m the maximum up to the end of the chunk
    decay: Float[Tensor, "B H N r 1"]  # e^(m before the chunk - m after it)
    normaliser: Float[Tensor, "B H N r c"]  # relative to each row's rho; 1 where nothing is visible
    maximum: Float[Tensor, "B H r"]
    total: Float[Tensor, "B H r"]


def prefix_control(logits: Float[Tensor, "B H r L"], key_padding_mask: Bool[Tensor, "B L"] | None) -> PrefixControl:
    """The factors of phi over each prefix."""
    wide = logits.to(accumulation_dtype(logits))
    if key_padding_mask is not None:
        wide = wide.masked_fill(key_padding_mask[:, None, None], -torch.inf)
    a = into_chunks(wide.transpose(-2, -1), value=-torch.inf).transpose(-2, -1).contiguous()
    # Maxima cancel, so they carry no gradient.
    stop = a.detach()
    largest = stop.amax(-1, keepdim=True)
    end = largest.cummax(2).values
    before = F.pad(end[:, :, :-1], (0, 0, 0, 0, 1, 0), value=-torch.inf)
    rho = torch.maximum(before, stop[..., :1])
    if key_padding_mask is not None:
        # Rows before the first visible token of all see nothing, whatever their reference.
        visible = into_chunks(~key_padding_mask[:, None, :, None], value=False)
        first = visible.int().argmax(-2, keepdim=True).expand_as(rho)
        rho = torch.where(before.isfinite(), rho, stop.gather(-1, first))
    rho = finite(rho)
    levels = [
        Level((a - (rho + shift)).clamp(max=LEVEL).exp(), (before - rho - shift).exp(), rows)
        for shift, rows in levels_of(stop, largest, before, rho)
    ]
    into_state = (a - finite(end)).exp()
    decay = (before - finite(end)).exp()
    earlier, total = scan_states(decay, into_state.sum(-1, keepdim=True))
    normaliser = total_of([x.of(x.written.cumsum(-1) + x.carried * earlier) for x in levels])
    normaliser = torch.where(normaliser > 0, normaliser, 1.0)
    return PrefixControl(levels, into_state, decay, normaliser, end[:, :, -1, :, 0], total.squeeze(-1))


def levels_of(
    a: Float[Tensor, "B H N r c"],
    largest: Float[Tensor, "B H N r 1"],
    before: Float[Tensor, "B H N r 1"],
    rho: Float[Tensor, "B H N r 1"],
) -> list[tuple[float, Bool[Tensor, "B H N r c"] | None]]:
    """How far above rho the reference of a level is, and which rows are of it; one level of all rows is the rule."""
    # On the meta device there are no values to look at.
    if a.is_meta or not bool((largest - rho >= LEVEL).any()):
        return [(0.0, None)]
    running = torch.maximum(before, a.cummax(-1).values)
    number = ((running - rho) / LEVEL).floor().clamp(min=0)
    return [(LEVEL * float(n), number == n) for n in number.unique()]


def total_of(levels: list[Tensor]) -> Tensor:
    return levels[0] if len(levels) == 1 else torch.stack(levels).sum(0)


def into_chunks(x: Tensor, value: float = 0.0) -> Tensor:
    """[B, H, L, *] to [B, H, N, c, *]; what is missing at the end becomes ``value``."""
    chunk = min(CHUNK, x.shape[2])
    short = -x.shape[2] % chunk
    return (F.pad(x, (0, 0, 0, short), value=value) if short else x).unflatten(2, (-1, chunk))


def scan_states(
    decay: Float[Tensor, "B H N r 1"], new: Float[Tensor, "B H N r D"]
) -> tuple[Float[Tensor, "B H N r D"], Float[Tensor, "B H r D"]]:
    """S_n+1 = decay_n S_n + new_n from S_0 = 0: the state before each chunk, and the last."""
    state, before = torch.zeros_like(new[:, :, 0]), []
    for factor, chunk in zip(decay.unbind(2), new.unbind(2), strict=True):
        before.append(state)
        state = torch.addcmul(chunk, factor, state)
    return torch.stack(before, dim=2), state


def read_keys(
    q: Float[Tensor, "B H N c D"], k: Float[Tensor, "B H N c D"], phi: PrefixControl
) -> tuple[Float[Tensor, "B H N r c"], Float[Tensor, "B H r D"]]:
    """q_t . K~_t for each slot, and the last numerator of K~."""
    state, last = scan_states(phi.decay, phi.into_state @ k)
    scores = (k @ q.transpose(-2, -1)).triu_()
    products = [x.of(torch.addcmul(x.written @ scores, x.carried, state @ q.transpose(-2, -1))) for x in phi.levels]
    return total_of(products) / phi.normaliser, last


def read_values(
    p: Float[Tensor, "B H N r c"], v: Float[Tensor, "B H N c D"], phi: PrefixControl
) -> tuple[Float[Tensor, "B H N c D"], Float[Tensor, "B H r D"]]:
    """sum over slots of p_t V~_t, and the last numerator of V~."""
    state, last = scan_states(phi.decay, phi.into_state @ v)
    shares = [(x, x.of(p / phi.normaliser).transpose(-2, -1)) for x in phi.levels]
    weights = total_of([(share @ x.written).tril_() for x, share in shares])
    carried = total_of([share * x.carried.transpose(-2, -1) for x, share in shares])
    return (weights @ v).add_(carried @ state), last


class ABCAttention(ProjectedAttention):
    """Multi-head attention with bounded-memory control.

    Args:
        num_slots: r, the number of slots of each head's memory.
        control: what the control vectors are computed from: ``input`` (the paper's) or ``projected`` (CAB's).
    """

    card = CARD

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        pattern: Pattern | str,
        *,
        max_length: int,
        max_length_key: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        num_slots: int = 32,
        control: str = "input",
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            pattern,
            max_length=max_length,
            max_length_key=max_length_key,
            dropout=dropout,
            bias=bias,
        )
        if num_slots < 1:
            raise ValueError(f"num_slots={num_slots} is not positive; abc needs at least 1 slot")
        if control not in CONTROLS:
            raise UnknownName("control", control, CONTROLS)
        self.num_slots = num_slots
        self.control = control
        # No biases: one would cancel in the softmax over tokens.
        if control == "input":
            self.slot_projections = nn.ModuleList([nn.Linear(embed_dim, num_heads * num_slots, bias=False)])
        else:
            self.slot_projections = nn.ModuleList(nn.Linear(self.head_dim, num_slots, bias=False) for _ in range(2))
        for projection in self.slot_projections:
            nn.init.xavier_uniform_(projection.get_parameter("weight"))

    def control_logits(self, x: Tensor, k: Tensor, v: Tensor) -> list[Float[Tensor, "B H r L"]]:
        """a_i: one for keys and values, or one for each."""
        if self.control == "input":
            (of_both,) = self.slot_projections
            return [of_both(x).transpose(-2, -1).unflatten(1, (self.num_heads, self.num_slots))]
        # Positions before heads, as they lie in memory: otherwise the product would copy its input.
        logits = (w(y.transpose(1, 2)) for w, y in zip(self.slot_projections, (k, v), strict=True))
        return [a.permute(0, 2, 3, 1) for a in logits]

    def _remember(self, k: Tensor, v: Tensor, logits: list[Tensor], key_padding_mask: Tensor | None) -> Slots:
        phi = [control_vectors(a, key_padding_mask) for a in logits]
        return Slots(write(phi[0], k), write(phi[-1], v))

    def _read(self, q: Tensor, slots: Slots) -> Tensor:
        return read(q, slots.k, slots.v, self.dropout if self.training else 0.0)

    def _attend_past(
        self, q: Tensor, k: Tensor, v: Tensor, logits: list[Tensor], key_padding_mask: Tensor | None
    ) -> tuple[Tensor, RunningSlots]:
        length, wide = q.shape[2], accumulation_dtype(q)
        with without_autocast(q):
            phi = [prefix_control(a, key_padding_mask) for a in logits]
            q_chunks, k_chunks, v_chunks = (into_chunks(x.to(wide).contiguous()) for x in (q, k, v))
            read_logits, k_state = read_keys(q_chunks, k_chunks, phi[0])
            p = torch.softmax(read_logits * self.head_dim**-0.5, dim=-2)
            out, v_state = read_values(F.dropout(p, self.dropout, self.training), v_chunks, phi[-1])
            maximum, total = (torch.stack(x, dim=2) for x in zip(*((x.maximum, x.total) for x in phi), strict=True))
        state = RunningSlots(maximum, total, k_state, v_state)
        return out.flatten(2, 3)[:, :, :length].to(q.dtype), state

    def forward(
        self,
        query: Float[Tensor, "B Lq E"],
        key: Float[Tensor, "B Lk E"] | None = None,
        value: Float[Tensor, "B Lk E"] | None = None,
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B Lq E"]:
        self.check_inputs(query, key, value, key_padding_mask)
        source = query if key is None else key
        q, k, v = self._project(query, source, query if value is None else value)
        logits = self.control_logits(source, k, v)
        if self.pattern is Pattern.CAUSAL_SELF:
            out, _ = self._attend_past(q, k, v, logits, key_padding_mask)
        else:
            out = self._read(q, self._remember(k, v, logits, key_padding_mask))
        return self._merge(out)

    def prefill(
        self,
        x: Float[Tensor, "B L E"],
        *,
        source: Float[Tensor, "B Lk E"] | None = None,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> tuple[Float[Tensor, "B L E"], State]:
        keys = self.check_prefix(x, source, key_padding_mask)
        q, k, v = self._project(x, keys, keys)
        logits = self.control_logits(keys, k, v)
        if self.pattern.is_cross:
            slots = self._remember(k, v, logits, key_padding_mask)
            return self._merge(self._read(q, slots)), slots
        out, state = self._attend_past(q, k, v, logits, key_padding_mask)
        return self._merge(out), state

    def step(self, x_t: Float[Tensor, "B 1 E"], state: State) -> tuple[Float[Tensor, "B 1 E"], State]:
        if x_t.ndim == 2:
            out, state = self.step(x_t[:, None], state)
            return out[:, 0], state
        if isinstance(state, Slots):
            return self._merge(self._read(self._split(self.query_projection(x_t)), state)), state
        assert isinstance(state, RunningSlots)
        q, k, v = self._project(x_t, x_t, x_t)
        a = torch.stack(self.control_logits(x_t, k, v), dim=2).squeeze(-1).to(state.total.dtype)
        with without_autocast(q):
            maximum = torch.maximum(state.maximum, a)
            decay, written = (state.maximum - maximum).exp(), (a - maximum).exp()
            total = decay * state.total + written
            k_state, v_state = (
                decay[:, :, g, :, None] * old + written[:, :, g, :, None] * new.to(old.dtype)
                for g, old, new in ((0, state.k, k), (-1, state.v, v))
            )
            slots = Slots(k_state / total[:, :, 0, :, None], v_state / total[:, :, -1, :, None])
            out = self._read(q.to(total.dtype), slots).to(q.dtype)
        return self._merge(out), RunningSlots(maximum, total, k_state, v_state)

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        rows, width = batch * self.num_heads, self.head_dim
        control = length_k * (self.embed_dim if self.control == "input" else 2 * width)
        if self.pattern is Pattern.CAUSAL_SELF:
            chunk = min(CHUNK, length_q)
            padded = -(-length_q // chunk) * chunk
            products = 2 * padded * (chunk * (width + self.num_slots) + 2 * self.num_slots * width)
        else:
            products = 2 * (length_q + length_k) * self.num_slots * width
        return self.projection_flops(batch, length_q, length_k) + 2 * rows * (control * self.num_slots + products)

    def state_bytes(self, batch: int, length: int, element_size: int = 4) -> int:
        slots = batch * self.num_heads * self.num_slots
        if self.pattern is Pattern.CAUSAL_CROSS:
            return 2 * slots * self.head_dim * element_size
        if self.pattern is Pattern.CAUSAL_SELF:
            return 2 * slots * (self.head_dim + len(self.slot_projections)) * max(element_size, 4)
        return super().state_bytes(batch, length, element_size)
