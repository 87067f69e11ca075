"""Seeded faults of the floor without attention: each must fail the certificate."""

FAULTS = [
    (
        "mask tiled the wrong way",
        "v.masked_fill(key_padding_mask[:, None, :, None], 0.0)",
        "v.masked_fill(key_padding_mask.repeat(v.shape[1], 1).view(*v.shape[:3], 1), 0.0)",
    ),
    ("mask ignored", "out = v if key_padding_mask is None else", "out = v if True else"),
    ("wrong axis: positions shifted", "return F.dropout(out,", "return F.dropout(out.roll(-1, 2),"),
    ("statistic over the future", "return F.dropout(out,", "return F.dropout(out - 1e-3 * out.mean(2, keepdim=True),"),
    ("sign", "return F.dropout(out,", "return F.dropout(-out,"),
    ("step returns the query", "return F.dropout(v,", "return F.dropout(q,"),
    (
        "dropout in evaluation",
        "return F.dropout(out, self.dropout, self.training)",
        "return F.dropout(out, self.dropout)",
    ),
]
