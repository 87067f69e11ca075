"""Seeded faults of fused softmax attention: each must fail the certificate."""

FAULTS = [
    # True means "may attend" to the kernel and "ignore" to a key padding mask.
    ("sign of the mask", "attn_mask=visible | blind", "attn_mask=~visible | blind"),
    ("flag ignored", "is_causal=causal, scale=scale)", "is_causal=False, scale=scale)"),
    (
        "future seen where there is padding",
        "is_causal=True",
        "is_causal=False",
    ),
    (
        "softmax.py",
        "mask tiled the wrong way",
        "~key_padding_mask[:, None, None, :]",
        "~key_padding_mask.repeat(k.shape[1], 1).view(k.shape[0], k.shape[1], 1, -1)",
    ),
    (
        "scaled twice",
        "F.scaled_dot_product_attention(q, k, v, dropout_p",
        "F.scaled_dot_product_attention(q * q.shape[-1] ** -0.5, k, v, dropout_p",
    ),
    ("row that sees nothing", "return out.masked_fill(blind, 0.0)", "return out"),
    ("dropout in evaluation", "self.dropout if self.training else 0.0", "self.dropout"),
    (
        "statistic over the batch",
        "dropout = self.dropout",
        "q = q - q.mean(0, keepdim=True)\n        dropout = self.dropout",
    ),
]
