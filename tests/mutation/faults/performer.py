"""Seeded faults of FAVOR+: each must fail the certificate."""

FAULTS = [
    ("wrong temperature: d^-1/2 for d^-1/4", "x.shape[-1] ** -0.25", "x.shape[-1] ** -0.5"),
    # The maximum over all keys cancels in the ratio up to rounding, and shows the future all the same.
    (
        "statistic over the future",
        "exponent.clamp_(max=LARGEST_EXPONENT).exp_()",
        "exponent.sub_(exponent.detach().amax((-2, -1), keepdim=True)).exp_()",
    ),
    ("wrong axis: the maximum over the queries", "amax(-1, keepdim=True)", "amax(-2, keepdim=True)"),
    ("clamp", "smallest_denominator = 1e-30", "smallest_denominator = 0.1"),
    ("sign", "sub_(half_square(k) + ", "sub_(-half_square(k) + "),
    (
        "state that is not state",
        'self.register_buffer("projection", torch.empty(num_features, head_dim))',
        'self.register_buffer("projection", torch.empty(num_features, head_dim), persistent=False)',
    ),
    (
        "epsilon inside the features",
        "exponent.clamp_(max=LARGEST_EXPONENT).exp_()",
        "1e-4 + exponent.clamp_(max=LARGEST_EXPONENT).exp_()",
    ),
    ("calls counted in evaluation", "if self.training and self.redraw_interval:", "if self.redraw_interval:"),
    (
        "linear.py",
        "mask tiled the wrong way",
        "phi_k.masked_fill(key_padding_mask[:, None, at, None], 0.0)",
        "phi_k.masked_fill(key_padding_mask[:, at].repeat(k.shape[1], 1).view(*k.shape[:3], 1), 0.0)",
    ),
    (
        "primitives.py",
        "numerator not accumulated",
        "numerator = torch.baddbmm(numerator, queries, sums[0])",
        "numerator = torch.baddbmm(numerator, queries, 0 * sums[0])",
    ),
]
