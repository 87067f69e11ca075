"""Seeded faults of longshort: each must fail the certificate."""

FAULTS = [
    (
        "statistic over the future",
        "return chunk < torch.arange(length, device=device)[:, None] // self.chunk_size",
        "return chunk <= torch.arange(length, device=device)[:, None] // self.chunk_size",
    ),
    (
        "mask tiled the wrong way",
        "    hidden = padded[:, None, :, None]\n",
        "    hidden = padded.repeat(wide.shape[1], 1, 1).view(*wide.shape[:3], 1, -1)\n",
    ),
    ("mask dropped", "exists = None if padded is None else", "exists = None if True else"),
    ("wrong axis", "return torch.softmax(wide, dim=-1)\n", "return torch.softmax(wide, dim=-2)\n"),
    (
        "wrong norm",
        "k, v = (self._split(self.token_norm(x)) for x in (tokens.k, tokens.v))",
        "k, v = self._split(self.token_norm(tokens.k)), self._split(tokens.v)",
    ),
    (
        "two softmaxes",
        "share = torch.sigmoid(torch.where(difference.isnan(), 0.0, difference))",
        "share = torch.full_like(difference, 0.5)",
    ),
    ("window off by one", "before=self.window - 1, after=0, key_valid", "before=self.window, after=0, key_valid"),
]
