"""Seeded faults of FAVOR+: each must fail the certificate."""

FAULTS = [
    ("wrong temperature: d^-1/2 for d^-1/4", "x.shape[-1] ** -0.25", "x.shape[-1] ** -0.5"),
    # The maximum over all keys cancels in the ratio up to rounding, and shows the future all the same.
    (
        "statistic over the future",
        "torch.exp(exponent.clamp(max=LARGEST_EXPONENT))",
        "torch.exp(exponent - exponent.detach().amax((-2, -1), keepdim=True))",
    ),
    ("wrong axis: the maximum over the queries", "amax(-1, keepdim=True)", "amax(-2, keepdim=True)"),
    ("clamp", "smallest_denominator = 1e-30", "smallest_denominator = 0.1"),
    ("sign", "project(k, projection) - half_square(k)", "project(k, projection) + half_square(k)"),
    (
        "state that is not state",
        'self.register_buffer("projection", torch.empty(num_features, head_dim))',
        'self.register_buffer("projection", torch.empty(num_features, head_dim), persistent=False)',
    ),
    (
        "epsilon inside the features",
        "torch.exp(exponent.clamp(max=LARGEST_EXPONENT))",
        "1e-4 + torch.exp(exponent.clamp(max=LARGEST_EXPONENT))",
    ),
    ("calls counted in evaluation", "if self.training and self.redraw_interval:", "if self.redraw_interval:"),
    (
        "linear.py",
        "mask tiled the wrong way",
        "phi_k.masked_fill(key_padding_mask[:, None, :, None], 0.0)",
        "phi_k.masked_fill(key_padding_mask.repeat(k.shape[1], 1).view(*k.shape[:3], 1), 0.0)",
    ),
    (
        "primitives.py",
        "numerator not accumulated",
        "numerator = numerator + q @ before_kv",
        "numerator = numerator + 0 * (q @ before_kv)",
    ),
]
