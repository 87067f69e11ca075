"""Seeded faults of S4D: each must fail the certificate."""

FAULTS = [
    ("sign of the real part", "torch.complex(-torch.exp(self.log_a_real", "torch.complex(torch.exp(self.log_a_real"),
    (
        "dropped accumulation across chunks",
        "states_before(decay * even + odd, decay * decay)",
        "states_before(odd, decay * decay)",
    ),
    (
        "causal flag ignored: the noncausal form looks back only",
        "            if future:\n",
        "            if future and not self.pattern:\n",
    ),
    (
        "statistic over the future: a convolution that wraps around",
        "torch.zeros_like(past) if future is None else future.flip(1)",
        "past if future is None else future.flip(1)",
    ),
    ("kernel of the wrong direction", "responses[1][:, :chunk].flip(1))", "responses[0][:, :chunk].flip(1))"),
    ("off by one: the present counted twice", "responses[1][:, :chunk].flip(1))", "responses[1][:, 1:].flip(1))"),
    (
        "padding kept",
        "u.masked_fill(key_padding_mask[..., None], 0.0)",
        "u.masked_fill(key_padding_mask[..., None], 1.0)",
    ),
    ("half of the conjugate pair", "y = 2 * (c[0] * x).real.sum(-1)", "y = (c[0] * x).real.sum(-1)"),
    ("Euler's step for zero-order hold", "* torch.expm1(exponent) / a", "* exponent / a"),
    (
        "wrong axis: channels gated by their neighbours",
        "F.glu(self.output_projection(active), dim=-1)",
        "F.glu(self.output_projection(active).roll(1, -1), dim=-1)",
    ),
]
