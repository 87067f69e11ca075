"""Seeded faults of local attention: each must fail the certificate."""

FAULTS = [
    ("wrong width", "torch.exp(-2 * (distance / window).square())", "torch.exp(-0.5 * (distance / window).square())"),
    # The Gaussian inside the softmax gives rows that sum to one: not what the paper has.
    (
        "normalised after the Gaussian",
        "F.dropout(align * bell, dropout)",
        "F.dropout(F.normalize(align * bell, p=1, dim=-1), dropout)",
    ),
    (
        "statistic over the queries",
        "count * torch.sigmoid(score)",
        "count * torch.sigmoid(score - score.mean(-1, keepdim=True))",
    ),
    (
        "mask tiled the wrong way",
        "argsort(dim=-1, stable=True)[:, None].expand(-1, k.shape[1], -1)",
        "argsort(dim=-1, stable=True).repeat(k.shape[1], 1).view(k.shape[:3])",
    ),
    ("padding counted", "(~key_padding_mask).sum(-1))", "torch.ones_like(key_padding_mask).sum(-1))"),
    ("window one key too wide", "return (self.window - 1, 0) if", "return (self.window, 0) if"),
    ("dropped state", "keep_ends(state.append(k, v), 0, self.window)", "KVCache(k, v, None)"),
    # CAB's window: padding and the window's border combined so that either is enough to be seen.
    (
        "_banded.py",
        "masks combined the wrong way",
        "inside[:, None, :, None, :] & pattern.to(q.device)",
        "inside[:, None, :, None, :] | pattern.to(q.device)",
    ),
    ("_banded.py", "a key of the future", "column <= row + before + after", "column <= row + before + after + 1"),
    (
        "_banded.py",
        "dropped accumulation of the gradient",
        ": part.shape[3]] += part",
        ": part.shape[3]] = part",
    ),
]
