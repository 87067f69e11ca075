"""Seeded faults of efficient attention, in what it is built on: each must fail its certificate."""

FAULTS = [
    (
        "contract.py",
        "wrong axis: heads interleaved",
        "x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)",
        "x.unflatten(-1, (self.head_dim, self.num_heads)).permute(0, 3, 1, 2)",
    ),
    (
        "sdpa.py",
        "wrong temperature",
        "scale = q.shape[-1] ** -0.5",
        "scale = q.shape[-1] ** -0.25",
    ),
    (
        "sdpa.py",
        "future seen where there is padding",
        "is_causal=True",
        "is_causal=False",
    ),
    ("sdpa.py", "row that sees nothing", "return out.masked_fill(blind, 0.0)", "return out"),
    (
        "softmax.py",
        "dropped accumulation: the cache holds an old key",
        "torch.cat([self.k, k], dim=2)",
        "torch.cat([self.k, self.k[:, :, -1:]], dim=2)",
    ),
]
