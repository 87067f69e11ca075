"""Seeded faults of linear attention: each must fail the certificate."""

FAULTS = [
    # The feature map of a key that was zeroed is one, not zero (facts, trap 4).
    (
        "padding zeroed before the feature map",
        "        phi_k = self.key_features(k.to(accumulation_dtype(k)), at.start)\n"
        "        if key_padding_mask is not None:\n"
        "            phi_k = phi_k.masked_fill(key_padding_mask[:, None, at, None], 0.0)\n",
        "        if key_padding_mask is not None:\n"
        "            k = k.masked_fill(key_padding_mask[:, None, at, None], 0.0)\n"
        "        phi_k = self.key_features(k.to(accumulation_dtype(k)), at.start)\n",
    ),
    (
        "mask tiled the wrong way",
        "phi_k.masked_fill(key_padding_mask[:, None, at, None], 0.0)",
        "phi_k.masked_fill(key_padding_mask[:, at].repeat(k.shape[1], 1).view(*k.shape[:3], 1), 0.0)",
    ),
    ("clamp", "smallest_denominator = 1e-6", "smallest_denominator = 0.1"),
    (
        "dropped accumulation",
        "                state = KernelState(state.s + new.s, state.z + new.z)\n            return",
        "                state = KernelState(state.s + new.s, new.z)\n            return",
    ),
    (
        "blocks of keys not accumulated",
        "new if state is None else KernelState(state.s + new.s, state.z + new.z)",
        "new",
    ),
    # The first sums are those of the whole sequence, in place of those of its first chunk.
    (
        "primitives.py",
        "statistic over the future",
        "sums = torch.bmm(transposed, values), keys.sum(1).unsqueeze(-1)",
        "sums = k.transpose(1, 2) @ v, k.sum(1).unsqueeze(-1)",
    ),
    (
        "primitives.py",
        "numerator not accumulated",
        "numerator = torch.baddbmm(numerator, queries, sums[0])",
        "numerator = torch.baddbmm(numerator, queries, 0 * sums[0])",
    ),
    ("wrong normaliser", "phi_k.transpose(-2, -1) @ v, phi_k.sum(-2)", "phi_k.transpose(-2, -1) @ v, phi_k.mean(-2)"),
    ("scale that the paper has not", "FEATURE_MAPS[self.feature_map](q)", "FEATURE_MAPS[self.feature_map](q / 8**0.5)"),
    (
        "primitives.py",
        "mask one key too wide",
        "torch.bmm(queries, transposed).tril_()",
        "torch.bmm(queries, transposed).tril_(1)",
    ),
]
