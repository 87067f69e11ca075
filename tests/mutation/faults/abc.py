"""Seeded faults of abc: each must fail the certificate."""

FAULTS = [
    (
        "dropped accumulation",
        "        state = torch.addcmul(chunk, factor, state)\n",
        "        state = chunk\n",
    ),
    (
        "statistic over the future",
        "rho = torch.maximum(before, stop[..., :1])",
        "rho = torch.maximum(before, largest)",
    ),
    (
        "mask tiled the wrong way",
        "    padded = key_padding_mask[:, None, None]\n",
        "    padded = key_padding_mask.repeat(logits.shape[1], 1).view(*logits.shape[:2], 1, -1)\n",
    ),
    ("wrong axis", "return torch.softmax(wide, dim=-1)", "return torch.softmax(wide, dim=-2)"),
    ("dropped normaliser", "x.of(p / phi.normaliser)", "x.of(p)"),
    ("wrong temperature", "read_logits * self.head_dim**-0.5", "read_logits / self.head_dim"),
    ("mask dropped", "wide = wide.masked_fill(key_padding_mask[:, None, None], -torch.inf)", "wide = wide * 1.0"),
    ("wrong memory", "write(phi[-1], v)", "write(phi[0], v)"),
]
