"""Seeded faults of SMYRF: each must fail the certificate."""

FAULTS = [
    # One bound for all samples: the largest token of the batch moves the clusters of every other sample.
    (
        "statistic over the batch",
        "return squares.amax(-1)[..., None, None]",
        "return squares.amax().expand_as(squares[..., :1, None])",
    ),
    ("padding in the statistic", "squares = squares.masked_fill(~valid, 0.0)", "squares = squares + 0.0"),
    (
        "mask tiled the wrong way",
        "key_valid = None if key_padding_mask is None else ~key_padding_mask[:, None]",
        "key_valid = None if key_padding_mask is None else ~key_padding_mask.roll(1, 0)[:, None]",
    ),
    ("future seen in the own chunk", "device=q.device).tril()", "device=q.device)"),
    ("sign: padding sorted first", "hashes.masked_fill(~valid, torch.inf))", "hashes.masked_fill(~valid, -torch.inf))"),
    (
        "state that is not state",
        'self.register_buffer("hashes", frozen_normal(num_heads, rounds, head_dim + 2))',
        'self.register_buffer("hashes", frozen_normal(num_heads, rounds, head_dim + 2), persistent=False)',
    ),
    # Keys of the chunks that visit a source join its mean and its scale.
    (
        "statistic over the future",
        "end = sources.start.expand(*before.shape[:3], -1)",
        "end = (sources.start + sources.chunks).clamp(max=chunks).expand(*before.shape[:3], -1)",
    ),
    (
        "a round that is not merged",
        "found = [self._attend_round(q, k, v, met, r, ids) for r in range(self.rounds)]\n        here",
        "found = [self._attend_round(q, k, v, met, 0, ids) for r in range(self.rounds)]\n        here",
    ),
]
