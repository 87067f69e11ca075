"""S4D: one diagonal state space model per channel, that is a long convolution with few parameters.

    x'(t) = A x(t) + B u(t),    y(t) = Re C x(t) + D u(t),    A = diag(A_0, ..., A_{N/2-1}) complex

With N/2 conjugate pairs (whence the factor 2), B = 1, inputs held over steps of dt (zero-order hold), z_n = e^(dt A_n):

    x_t = z x_{t-1} + u_t,    C'_n = C_n (z_n - 1) / A_n,    K_l = 2 Re sum_n C'_n z_n^l                    (section 3)
    causal:       y_t = sum_{s <= t} K_{t-s} u_s + D u_t
    noncausal:    y_t = sum_{s <= t} K_{t-s} u_s + sum_{s > t} K*_{s-t-1} u_s + D u_t
    layer:        O_t = GLU(W GELU(y_t) + b)

where K* has the same A and dt and its own C. Re A_n = -exp(log_a_real) < 0, so nothing grows. At the start
Re A_n = -1/2, dt is log-uniform in [0.001, 0.1], C and D are standard normal, and Im A_n is, for n = 0, ..., N/2 - 1,

    lin     pi n
    inv     (N / pi) (N / (2 n + 1) - 1)
    legs    the positive eigenvalues of S / i, S_nk = sign(k - n) ((n + 1/2) (k + 1/2))^(1/2), n and k = 0, ..., N - 1
            (the skew part of HiPPO-LegS; the authors' code also scales C by the matching B, which is 1 here)

Computation. The kernel is never there as a whole, nor are the N L powers of its Vandermonde matrix. Within chunks of
the sequence the convolution is a Toeplitz matrix of each channel; across chunks it goes through the state,

    y_chunk = T u_chunk + 2 Re C' z^(i+1) x_before,    x_before the scan of the chunks' own states with z^chunk,

all as matrix products, with a scan over pairs of chunks. An FFT would carry rounding of the future into the past.
Time O(L d (chunk + N)), memory O(L d (1 + N / chunk)); decoding from N/2 complex numbers a channel.

A padded position is a zero input in its place: padding behind a sequence equals cutting it off, and distances across
padding within a sequence count its positions. ``num_heads`` does not enter, since each channel has its own state space.
Beside softmax attention's 4 d^2 weights there are 2 d^2 of the mixing and (2 N + 2) d of the state spaces, (3 N + 2) d
with K*. The authors train A and dt at a learning rate of at most 0.001 and without weight decay; that is the trainer's
to do.

Published: causal and noncausal (bidirectional) self attention. No cross patterns, for there are no queries.

Source: A. Gu, A. Gupta, K. Goel and C. Re, "On the Parameterization and Initialization of Diagonal State Space Models",
NeurIPS 2022, arXiv:2206.11893; the bidirectional form is that of K. Goel et al., ICML 2022, arXiv:2202.09729.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from attention_zoo.contract import Attention, Card, Pattern, State, Support
from attention_zoo.errors import UnknownName
from attention_zoo.primitives import accumulation_dtype, without_autocast

_NO_CROSS = "a state space has no queries: its output at a position is made from the inputs around that position"

CARD = Card(
    name="s4d",
    title="On the Parameterization and Initialization of Diagonal State Space Models",
    authors="Gu, Gupta, Goel, Ré",
    year=2022,
    paper="arXiv:2206.11893",
    family="state space",
    exact=False,
    time_order="L",
    memory_order="L",
    supports={Pattern.NONCAUSAL_SELF: Support.PUBLISHED, Pattern.CAUSAL_SELF: Support.PUBLISHED},
    unsupported={Pattern.NONCAUSAL_CROSS: _NO_CROSS, Pattern.CAUSAL_CROSS: _NO_CROSS},
    linear_in_values=False,
    rows_sum_to_one=False,
    permutation_equivariant=False,
    incremental=frozenset({Pattern.CAUSAL_SELF}),
    no_core_reason="it has no queries and keys: each channel of the layer's input is convolved with its own kernel",
)

CHUNK = 64  # positions whose convolution is one Toeplitz matrix
SMALLEST_DT, LARGEST_DT = 1e-3, 1e-1


def linear_frequencies(state_size: int) -> Float[Tensor, " n"]:
    """S4D-Lin: pi n."""
    return math.pi * torch.arange(state_size // 2, dtype=torch.float64)


def inverse_frequencies(state_size: int) -> Float[Tensor, " n"]:
    """S4D-Inv: (N / pi) (N / (2 n + 1) - 1)."""
    odd = 2 * torch.arange(state_size // 2, dtype=torch.float64) + 1
    return state_size / math.pi * (state_size / odd - 1)


def legendre_frequencies(state_size: int) -> Float[Tensor, " n"]:
    """S4D-LegS: the imaginary parts of the eigenvalues of the normal part of HiPPO-LegS, rising."""
    root = (torch.arange(state_size, dtype=torch.float64) + 0.5).sqrt()
    product = root[:, None] * root[None, :]
    return torch.linalg.eigvalsh(1j * (product.tril(-1) - product.triu(1)))[state_size // 2 :]


INITS: dict[str, Callable[[int], Tensor]] = {
    "lin": linear_frequencies,
    "inv": inverse_frequencies,
    "legs": legendre_frequencies,
}


def powers(exponent: Complex[Tensor, "d n"], count: int) -> Complex[Tensor, "d count n"]:
    """z^l = e^(l dt A) for l = 0, ..., count - 1."""
    order = torch.arange(count, dtype=exponent.real.dtype, device=exponent.device)[:, None]
    return torch.polar(torch.exp(order * exponent.real[:, None]), order * exponent.imag[:, None])


def toeplitz(past: Float[Tensor, "d C"], future: Float[Tensor, "d C"] | None) -> Float[Tensor, "d C C"]:
    """M[s, t] = past[t - s] for s <= t and future[s - t - 1] for s > t (zero where None), to be applied from the right.

    Every row is a piece of one line of 2 C kernel values, one place further to the left than the row above.
    """
    size = past.shape[-1]
    line = torch.cat((torch.zeros_like(past) if future is None else future.flip(1), past), dim=1)
    # A line repeated with period 2 C and read in rows of 2 C - 1 moves by that one place.
    repeated = line[:, None, :].expand(-1, size, -1).flatten(1)
    return repeated[:, size:].unflatten(1, (size, -1))[..., :size]


def states_before(
    added: Complex[Tensor, "*rest M n"], decay: Complex[Tensor, "*rest 1 n"]
) -> Complex[Tensor, "*rest M n"]:
    """x_j = decay x_{j-1} + added_{j-1}, x_0 = 0: the states before each chunk, by halving the number of chunks.

    States before even chunks are those before pairs of chunks; each odd chunk is one step after its even one.
    """
    chunks = added.shape[-2]
    if chunks == 1:
        return torch.zeros_like(added)
    paired = F.pad(added, (0, 0, 0, 1)) if chunks % 2 else added
    even, odd = paired.unflatten(-2, (-1, 2)).unbind(-2)
    before_even = states_before(decay * even + odd, decay * decay)
    before_odd = decay * before_even + even
    return torch.stack((before_even, before_odd), dim=-2).flatten(-3, -2)[..., :chunks, :]


def state_columns(u: Float[Tensor, "d M C"], z: Complex[Tensor, "d C n"]) -> Complex[Tensor, "d M n"]:
    """sum_s u_s z_s: what each chunk adds to the state, ``z_s`` being the power with which its position s arrives."""
    columns = torch.view_as_real(z).flatten(-2)
    return torch.view_as_complex(torch.bmm(u, columns).unflatten(-1, (-1, 2)))


def add_response(
    y: Float[Tensor, "d M C"], x: Complex[Tensor, "d M n"], response: Complex[Tensor, "d C n"]
) -> Float[Tensor, "d M C"]:
    """y_t + Re sum_n response_tn x_n, real parts times real parts less imaginary ones times imaginary ones."""
    columns = torch.view_as_real(response.conj().resolve_conj()).flatten(-2)
    return torch.baddbmm(y, torch.view_as_real(x).flatten(-2), columns.transpose(1, 2))


@dataclass
class DiagonalState(State):
    """x after the last position, ``[B, E, N / 2]``, complex64 (complex128 for float64)."""

    x: Tensor


class S4DAttention(Attention):
    """A diagonal state space per channel, GELU, and a gated linear map over the channels.

    Dropout, while training, falls on the output of the GELU, as in the authors' code. ``num_heads`` changes nothing.

    Args:
        state_size: N, the real size of a channel's state: N / 2 conjugate pairs. Even.
        init: of Im A: ``lin``, ``inv`` or ``legs``.
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
        state_size: int = 64,
        init: str = "lin",
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
        if state_size < 2 or state_size % 2:
            raise ValueError(f"state_size={state_size} is not an even positive number: states are conjugate pairs")
        if init not in INITS:
            raise UnknownName("init", init, INITS)
        self.state_size = state_size
        self.init = init
        pairs = state_size // 2
        directions = 1 if self.pattern.is_causal else 2
        self.log_dt = nn.Parameter(torch.empty(embed_dim).uniform_(math.log(SMALLEST_DT), math.log(LARGEST_DT)))
        self.log_a_real = nn.Parameter(torch.full((embed_dim, pairs), math.log(0.5)))
        self.a_imag = nn.Parameter(INITS[init](state_size).to(self.log_a_real).repeat(embed_dim, 1))
        # Real and imaginary parts apart, each of variance 1/2, so that .to(dtype) and bfloat16 leave them numbers.
        self.c = nn.Parameter(torch.randn(directions, embed_dim, pairs, 2) * 0.5**0.5)
        self.d = nn.Parameter(torch.randn(embed_dim))
        self.output_projection = nn.Linear(embed_dim, 2 * embed_dim, bias=bias)

    def discretised(self, dtype: torch.dtype) -> tuple[Complex[Tensor, "d n"], Complex[Tensor, "directions d n"]]:
        """dt A and C' = C (e^(dt A) - 1) / A, by zero-order hold."""
        a = torch.complex(-torch.exp(self.log_a_real.to(dtype)), self.a_imag.to(dtype))
        exponent = torch.exp(self.log_dt.to(dtype))[:, None] * a
        return exponent, torch.view_as_complex(self.c.to(dtype)) * torch.expm1(exponent) / a

    def convolve(
        self, u: Float[Tensor, "d B L"], *, want_state: bool
    ) -> tuple[Float[Tensor, "d B L"], Complex[Tensor, "B d n"] | None]:
        """y, and the state after the last position where it is wanted (causal)."""
        length = u.shape[-1]
        chunk = min(CHUNK, length)
        # In front, where the state is zero: so the last chunk ends with the last position.
        u = F.pad(u, (-length % chunk, 0)) if length % chunk else u.contiguous()
        u = u.unflatten(-1, (-1, chunk))
        batch, chunks = u.shape[1:3]
        rows = u.flatten(1, 2)
        exponent, c = self.discretised(u.dtype)
        z = powers(exponent, chunk + 1)
        responses = [2 * c_of_direction[:, None] * z for c_of_direction in c]
        past, *future = (response[:, :chunk].real.sum(-1) for response in responses)
        past = torch.cat((past[:, :1] + self.d.to(u.dtype)[:, None], past[:, 1:]), dim=1)
        y = torch.bmm(rows, toeplitz(past, future[0] if future else None))
        state = None
        if chunks > 1 or want_state:
            decay = z[:, None, chunk:]
            added = state_columns(rows, z[:, :chunk].flip(1)).unflatten(1, (batch, chunks))
            before = states_before(added, decay)
            y = add_response(y, before.flatten(1, 2), responses[0][:, 1:])
            if want_state:
                state = (decay * before[:, :, -1:] + added[:, :, -1:]).squeeze(2).transpose(0, 1).contiguous()
            if future:
                # Seen from the right: the last chunk comes first.
                added = state_columns(rows, z[:, :chunk]).unflatten(1, (batch, chunks)).flip(2)
                after = states_before(added, decay).flip(2)
                y = add_response(y, after.flatten(1, 2), responses[1][:, :chunk].flip(1))
        return y.unflatten(1, (batch, chunks)).flatten(2)[..., -length:], state

    def mix(self, y: Float[Tensor, "B L d"], dtype: torch.dtype) -> Float[Tensor, "B L d"]:
        """GLU(W GELU(y) + b)."""
        active = F.dropout(F.gelu(y).to(dtype), self.dropout, self.training)
        return F.glu(self.output_projection(active), dim=-1)

    def _run(
        self, x: Float[Tensor, "B L d"], key_padding_mask: Tensor | None, *, want_state: bool
    ) -> tuple[Float[Tensor, "B L d"], Tensor | None]:
        with without_autocast(x):
            u = x.to(accumulation_dtype(x))
            if key_padding_mask is not None:
                u = u.masked_fill(key_padding_mask[..., None], 0.0)
            y, state = self.convolve(u.permute(2, 0, 1), want_state=want_state)
        return self.mix(y.permute(1, 2, 0), x.dtype), state

    def forward(
        self,
        query: Float[Tensor, "B L E"],
        key: Float[Tensor, "B L E"] | None = None,
        value: Float[Tensor, "B L E"] | None = None,
        *,
        key_padding_mask: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L E"]:
        self.check_inputs(query, key, value, key_padding_mask)
        return self._run(query, key_padding_mask, want_state=False)[0]

    def prefill(
        self,
        x: Float[Tensor, "B L E"],
        *,
        source: Float[Tensor, "B Lk E"] | None = None,
        key_padding_mask: Bool[Tensor, "B L"] | None = None,
    ) -> tuple[Float[Tensor, "B L E"], State]:
        self.check_prefix(x, source, key_padding_mask)
        out, state = self._run(x, key_padding_mask, want_state=True)
        assert state is not None
        return out, DiagonalState(state)

    def step(self, x_t: Float[Tensor, "B 1 E"], state: State) -> tuple[Float[Tensor, "B 1 E"], State]:
        if x_t.ndim == 2:
            out, state = self.step(x_t[:, None], state)
            return out[:, 0], state
        assert isinstance(state, DiagonalState)
        with without_autocast(x_t):
            u = x_t[:, 0].to(accumulation_dtype(x_t))
            exponent, c = self.discretised(u.dtype)
            x = torch.exp(exponent) * state.x + u[..., None]
            y = 2 * (c[0] * x).real.sum(-1) + self.d.to(u.dtype) * u
        return self.mix(y[:, None], x_t.dtype), DiagonalState(x)

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        chunk = min(CHUNK, length_q)
        positions = batch * -(-length_q // chunk) * chunk
        directions = 1 if self.pattern.is_causal else 2
        through_states = 2 * self.state_size * directions if length_q > chunk else 0
        mixing = 2 * batch * length_q * self.embed_dim * 2 * self.embed_dim
        return 2 * positions * self.embed_dim * (chunk + through_states) + mixing

    def state_bytes(self, batch: int, length: int, element_size: int = 4) -> int:
        return batch * self.embed_dim * self.state_size * max(element_size, 4)
