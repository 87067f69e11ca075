"""Seeded faults of probsparse: each must fail the certificate."""

FAULTS = [
    ("sign", "return scores.amax(-1) - scores.mean(-1)", "return scores.amax(-1) + scores.mean(-1)"),
    (
        "dropped accumulation",
        "means = v.cumsum(2, dtype=wide) / counted.cumsum(2).clamp(min=1)",
        "means = v.to(wide) / counted.cumsum(2).clamp(min=1)",
    ),
    (
        "missing normaliser",
        "means = v.cumsum(2, dtype=wide) / counted.cumsum(2).clamp(min=1)",
        "means = v.cumsum(2, dtype=wide)",
    ),
    ("padding in the mean", "v = v.masked_fill(~valid[:, None, :, None], 0.0)", "v = v.clone()"),
    (
        "padding in the sample",
        "sample = order[:, None].expand(-1, sample.shape[1], -1).gather(-1, sample)",
        "sample = sample.clone()",
    ),
    (
        "wrong axis",
        "measure.argsort(dim=-1, descending=True, stable=True)",
        "measure.argsort(dim=-1, descending=False)",
    ),
    (
        "off by one",
        "past = torch.arange(k.shape[2], device=k.device) <= index",
        "past = torch.arange(k.shape[2], device=k.device) < index",
    ),
    (
        "statistic over the batch",
        "tokens = valid.sum(-1)[:, None, None]",
        "tokens = valid.sum(-1).amax().expand(len(q))[:, None, None]",
    ),
    ("temperature", "scale=self.head_dim**-0.5", "scale=1.0 / self.head_dim"),
    (
        "sampled sum over all keys",
        "mean = scores.masked_fill(~exists, 0.0).sum(-1) / exists.sum(-1).clamp(min=1)",
        "mean = scores.masked_fill(~exists, 0.0).sum(-1) / q.shape[2]",
    ),
]
