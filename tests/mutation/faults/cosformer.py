"""Seeded faults of cosFormer: each must fail the certificate."""

FAULTS = [
    (
        "statistic over the length",
        "return cosine_features(q, first, self.longest)",
        "return cosine_features(q, first, q.shape[2])",
    ),
    ("dropped accumulation", "sums = linear.KernelState(state.s + new.s, state.z + new.z)", "sums = new"),
    ("position that stands still", "sums.z, state.position + 1)", "sums.z, state.position)"),
    (
        "wrong axis",
        "torch.arange(first, first + length, device=like.device)",
        "torch.arange(length, device=like.device)",
    ),
    ("clamp", "denominator > self.smallest_denominator, denominator, 1.0)", "denominator > 0.1, denominator, 0.1)"),
    ("wrong angle", "(math.pi / (2 * longest))", "(math.pi / longest)"),
    ("features of another sign", "F.relu(x)[..., None, :]", "F.relu(-x)[..., None, :]"),
]
