"""Seeded faults of Reformer's LSH attention: each must fail the certificate."""

FAULTS = [
    (
        "sign: the keys that lie least far along the direction",
        "furthest = along.argsort(dim=-1, descending=True, stable=True)",
        "furthest = along.argsort(dim=-1, descending=False, stable=True)",
    ),
    ("wrong offset of a bucket", "first = size.cumsum(-1) - size", "first = (size.cumsum(-1) - size - 1).clamp(min=0)"),
    (
        "mask of the sample before",
        "valid = None if key_padding_mask is None else ~key_padding_mask",
        "valid = None if key_padding_mask is None else ~key_padding_mask.roll(1, 0)",
    ),
    ("lonely token loses itself", "out = torch.where(alone[..., None], v, out)", "out = out + 0.0"),
    ("padding keeps its value", "alone = alone & valid[:, None]", "alone = alone & (valid | True)[:, None]"),
    (
        "pairs of earlier rounds counted again",
        "for earlier in range(r):",
        "for earlier in range(r - 1):",
    ),
    (
        "bucket runs past its end",
        "torch.minimum(last, (chunk + 1) * width - 1)",
        "torch.minimum(last + 1, (chunk + 1) * width - 1)",
    ),
]
