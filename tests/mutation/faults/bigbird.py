"""Seeded faults of BigBird: each must fail the certificate."""

FAULTS = [
    ("a key of the future", "seen = seen.tril(block)", "seen = seen.tril(block + 1)"),
    # A prefix draws other blocks than the whole does.
    (
        "statistic over the future",
        "above = torch.zeros_like(below) if self._causal else (total",
        "above = (total",
    ),
    ("double count", "picks - below + block[:, None] + 2", "picks - below + block[:, None] + 1"),
    (
        "draws with replacement",
        "pick = torch.where(pick == earlier, last, pick)",
        "pick = torch.where(pick < 0, last, pick)",
    ),
    (
        "dropped random blocks",
        "if self.num_random > 0:\n            parts",
        "if self.num_random < 0:\n            parts",
    ),
    (
        "mask of other positions",
        "rest_valid = None if valid is None else valid[:, first:]",
        "rest_valid = None if valid is None else valid[:, : q.shape[2]]",
    ),
    (
        "wrong temperature",
        "return attention_with_lse(q, k, v, scale=self.head_dim**-0.5, visible=visible, dropout=dropout)",
        "return attention_with_lse(q, k, v, scale=1 / self.head_dim, visible=visible, dropout=dropout)",
    ),
    ("state that forgets", "KVCache(k, v, key_padding_mask)", "KVCache(k, torch.zeros_like(v), key_padding_mask)"),
]
