"""Seeded faults of super attention: each must fail the certificate."""

FAULTS = [
    (
        "statistic over the future: the whole kernel in the causal form",
        "return align(kernel, v, causal=self.pattern is Pattern.CAUSAL_SELF)",
        "return align(kernel, v)",
    ),
    (
        "wrong axis: the kernel transposed",
        "kernel = self.alignment_kernel[:length, :length].to(v.dtype)",
        "kernel = self.alignment_kernel[:length, :length].to(v.dtype).T",
    ),
    (
        "wrong block of the kernel",
        "kernel = self.alignment_kernel[:length, :length].to(v.dtype)",
        "kernel = self.alignment_kernel[-length:, -length:].to(v.dtype)",
    ),
    (
        "padding reaches the sums",
        "            v = v.masked_fill(key_padding_mask[:, None, :, None], 0.0)",
        "            v = v + 0.0",
    ),
    (
        "mask tiled the wrong way",
        "            v = v.masked_fill(key_padding_mask[:, None, :, None], 0.0)",
        "            v = v.masked_fill(key_padding_mask.repeat(v.shape[1], 1).view(*v.shape[:3], 1), 0.0)",
    ),
    (
        "dropped accumulation: rows forget the blocks before theirs",
        "out.append(block + rows[:, :start] @ columns[:start] if start else block)",
        "out.append(block)",
    ),
    (
        "dropped accumulation: the step keeps no raw value",
        "raw = torch.cat([state.raw, v], dim=2)",
        "raw = torch.cat([state.raw, 0 * v], dim=2)",
    ),
]
