"""Seeded faults of LARA: each must fail the certificate."""

FAULTS = [
    ("mask: padding in the sum", "log_sum = log_xi.logsumexp(-1)", "log_sum = (w @ k.transpose(-2, -1)).logsumexp(-1)"),
    (
        "mask: padding in the segments",
        "k_bar, no_key = self.landmarks(k, valid,",
        "k_bar, no_key = self.landmarks(k, None,",
    ),
    ("mask tiled the wrong way", "padded[:, None, None], -torch.inf)", "padded.roll(1, 0)[:, None, None], -torch.inf)"),
    ("statistic over the batch", "mu = (q_bar + k_bar)", "mu = (q_bar + k_bar.mean(0, keepdim=True))"),
    ("wrong axis", "heuristic = log_density.softmax(-1)", "heuristic = log_density.softmax(-2)"),
    ("clamp", "SMALLEST_ALPHA = 1e-8", "SMALLEST_ALPHA = 1e-1"),
    ("sign", "+ half_square(mu)\n", "- half_square(mu)\n"),
    ("wrong temperature", "(w * scale) @ k.transpose(-2, -1) -", "w @ k.transpose(-2, -1) -"),
]
