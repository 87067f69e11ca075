"""Seeded faults of nystromformer: each must fail the certificate."""

FAULTS = [
    (
        "wrong axis",
        "a = torch.softmax(logits.masked_fill(~k_exists, torch.finfo(wide).min), dim=-1)",
        "a = torch.softmax(logits.masked_fill(~k_exists, torch.finfo(wide).min), dim=-2)",
    ),
    ("sign", "z = z @ (13 * identity - az", "z = z @ (13 * identity + az"),
    (
        "statistic over the batch",
        "norms = a.sum(-2).amax(-1) * a.sum(-1).amax(-1)",
        "norms = (a.sum(-2).amax() * a.sum(-1).amax()).expand(a.shape[:-2])",
    ),
    (
        "mask dropped",
        "k_landmarks, k_counts = segment_means(k, key_valid,",
        "k_landmarks, k_counts = segment_means(k, None,",
    ),
    (
        "padding in the convolution",
        "values = v if key_padding_mask is None else v.masked_fill(key_padding_mask[:, None, :, None], 0.0)",
        "values = v",
    ),
    (
        "mask tiled the wrong way",
        'visible: Bool[Tensor, "B 1 1 Lk"] | None,\n) -> Float[Tensor, "B H Lq Dv"]:\n'
        '    """softmax(s Q K^T) V over the visible keys, fused; of no meaning in a sample that has none."""\n',
        'visible: Bool[Tensor, "B 1 1 Lk"] | None,\n) -> Float[Tensor, "B H Lq Dv"]:\n'
        "    if visible is not None:\n"
        "        b, h = q.shape[:2]\n"
        "        visible = visible.repeat(h, 1, 1, 1).view(b, h, 1, visible.shape[-1])\n",
    ),
    ("temperature", "(q_landmarks.to(wide) * self.head_dim**-0.5)", "(q_landmarks.to(wide) * self.head_dim**-0.25)"),
]
