"""Seeded faults of EVA: each must fail the certificate."""

FAULTS = [
    ("future statistic", "visible = (chunk < home) if", "visible = (chunk <= home) if"),
    ("future window of its chunk", "device=windows.key.device).triu()", "device=windows.key.device).triu(1)"),
    ("near tokens twice", "(chunk != home)", "(chunk >= 0) & (home >= 0)"),
    ("mask: padding in the landmarks", "count = valid.sum(-1)", "count = torch.full_like(valid.sum(-1), size)"),
    (
        "mask tiled the wrong way",
        "log_xi = log_xi.masked_fill(~valid[:, None]",
        "log_xi = log_xi.masked_fill(~valid.roll(1, 0)[:, None]",
    ),
    ("wrong temperature", "half_square(k) * scale**2", "half_square(k) * scale"),
    (
        "dropped accumulation",
        "return torch.cat((old[0], new[0]), 2), torch.cat((old[1], new[1]), 2), empty",
        "return new",
    ),
    (
        "wrong axis",
        "self.key_landmarks(mean(sum_k.sum(3), in_chunk))",
        "self.key_landmarks(mean(sum_k.sum(3), in_chunk)).flip(2)",
    ),
    (
        "own cell in the rest",
        "log_sum[..., None, :].masked_fill(own, -torch.inf)",
        "log_sum[..., None, :].expand(*cells.log_sum.shape, span)",
    ),
    ("clamp", "total / count.clamp(min=1)", "total / count.clamp(min=4)"),
]
