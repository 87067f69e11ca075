"""Seeded faults of optimised attention, in what it is built on: each must fail its certificate."""

FAULTS = [
    # Heads as every H-th column: columns of the raw values then belong to another head than those of the queries.
    (
        "contract.py",
        "wrong axis: heads interleaved",
        "x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)",
        "x.unflatten(-1, (self.head_dim, self.num_heads)).permute(0, 3, 1, 2)",
    ),
    (
        "contract.py",
        "values read from the query",
        "self._split(self.value_projection(value))",
        "self._split(self.value_projection(value if self.training else query.mean() + 0 * value))",
    ),
    ("sdpa.py", "sign of the mask", "attn_mask=visible | blind", "attn_mask=~visible | blind"),
    (
        "softmax.py",
        "mask tiled the wrong way",
        "~key_padding_mask[:, None, None, :]",
        "~key_padding_mask.repeat(k.shape[1], 1).view(k.shape[0], k.shape[1], 1, -1)",
    ),
    (
        "softmax.py",
        "dropped accumulation: the cache holds an old value",
        "torch.cat([self.v, v], dim=2)",
        "torch.cat([self.v, self.v[:, :, -1:]], dim=2)",
    ),
    ("sdpa.py", "flag ignored", "is_causal=causal, scale=scale)", "is_causal=False, scale=scale)"),
]
