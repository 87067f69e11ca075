"""Seeded faults of linear attention: each must fail the certificate."""

FAULTS = [
    # The feature map of a key that was zeroed is one, not zero (facts, trap 4).
    (
        "padding zeroed before the feature map",
        "phi_k = self.key_features(k.to(accumulation_dtype(k)))\n"
        "        return phi_k if key_padding_mask is None else phi_k.masked_fill("
        "key_padding_mask[:, None, :, None], 0.0)",
        "k = k if key_padding_mask is None else k.masked_fill(key_padding_mask[:, None, :, None], 0.0)\n"
        "        return self.key_features(k.to(accumulation_dtype(k)))",
    ),
    (
        "mask tiled the wrong way",
        "phi_k.masked_fill(key_padding_mask[:, None, :, None], 0.0)",
        "phi_k.masked_fill(key_padding_mask.repeat(k.shape[1], 1).view(*k.shape[:3], 1), 0.0)",
    ),
    ("clamp", "smallest_denominator = 1e-6", "smallest_denominator = 0.1"),
    ("dropped accumulation", "KernelState(state.s + new.s, state.z + new.z)", "KernelState(state.s + new.s, new.z)"),
    # Sums over the chunks up to and including the one at hand: its own keys count twice, the later ones too.
    (
        "primitives.py",
        "statistic over the future",
        "F.pad(x[:, :, :-1].cumsum(2), (0, 0, 0, 0, 1, 0))",
        "x.cumsum(2)",
    ),
    (
        "primitives.py",
        "numerator not accumulated",
        "numerator = numerator + q @ before_kv",
        "numerator = numerator + 0 * (q @ before_kv)",
    ),
    ("wrong normaliser", "phi_k.transpose(-2, -1) @ v, phi_k.sum(-2)", "phi_k.transpose(-2, -1) @ v, phi_k.mean(-2)"),
    ("scale that the paper has not", "FEATURE_MAPS[self.feature_map](q)", "FEATURE_MAPS[self.feature_map](q / 8**0.5)"),
    ("primitives.py", "mask one key too wide", "(q @ k.transpose(-2, -1)).tril()", "(q @ k.transpose(-2, -1)).tril(1)"),
]
