"""Seeded faults of softmax attention: each must fail the certificate."""

FAULTS = [
    # [B, H, 1, Lk] with the heads in front: head h of sample b reads the padding of another sample.
    (
        "mask tiled the wrong way",
        "~key_padding_mask[:, None, None, :]",
        "~key_padding_mask.repeat(k.shape[1], 1).view(k.shape[0], k.shape[1], 1, -1)",
    ),
    ("masks joined by or", "visible & past", "visible | past"),
    ("triangle one key too wide", "device=k.device).tril()", "device=k.device).tril(1)"),
    ("wrong axis: softmax over the queries", "torch.softmax(logits, dim=-1,", "torch.softmax(logits, dim=-2,"),
    ("wrong temperature", "(q * q.shape[-1] ** -0.5)", "(q * q.shape[-1] ** -0.25)"),
    ("statistic over the future", "logits = (q * ", "logits = ((q - q.mean(2, keepdim=True)) * "),
    ("clamp", "    return torch.softmax(logits,", "    return torch.softmax(logits.clamp(-2.0, 2.0),"),
    (
        "dropped accumulation: the cache holds an old key",
        "torch.cat([self.k, k], dim=2)",
        "torch.cat([self.k, self.k[:, :, -1:]], dim=2)",
    ),
    (
        "row that sees nothing",
        "out = out.masked_fill(~visible.any(-1, keepdim=True), 0.0)",
        "out = out + 0.0",
    ),
]
