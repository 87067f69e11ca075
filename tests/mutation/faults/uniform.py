"""Seeded faults of the uniform floor: each must fail the certificate."""

FAULTS = [
    ("padding counted", "kept = kept.masked_fill(key_padding_mask, 0.0)", "pass"),
    (
        "padded values in the sum",
        "            values = values.masked_fill(key_padding_mask[:, None, :, None], 0.0)\n",
        "",
    ),
    (
        "mask tiled the wrong way",
        "values.masked_fill(key_padding_mask[:, None, :, None], 0.0)",
        "values.masked_fill(key_padding_mask.repeat(v.shape[1], 1).view(*v.shape[:3], 1), 0.0)",
    ),
    (
        "statistic over the future",
        "self._mean(totals, counts, v.dtype)",
        "self._mean(totals, counts[:, -1:], v.dtype)",
    ),
    ("the past dropped", "totals, counts = values.cumsum(2), kept.cumsum(1)", "totals, counts = values, kept"),
    ("wrong normaliser", "count.clamp(min=1)", "(count + 1)"),
    ("step forgets to count", "state.count + 1", "state.count"),
    ("dropout in evaluation", "F.dropout(out, self.dropout, self.training)", "F.dropout(out, self.dropout)"),
]
