"""Seeded faults of linformer: each must fail the certificate."""

FAULTS = [
    (
        "mask dropped",
        "k, v = k.masked_fill(padding, 0.0), v.masked_fill(padding, 0.0)",
        "k = k.masked_fill(padding, 0.0)",
    ),
    ("wrong columns", "e = e[..., : x.shape[2]].to(x.dtype)", "e = e[..., -x.shape[2] :].to(x.dtype)"),
    (
        "wrong axis",
        "(e @ x.transpose(1, 2).flatten(2)).unflatten(2, (x.shape[1], -1)).transpose(1, 2)",
        "(e @ x.transpose(1, 2).flatten(2)).unflatten(2, (-1, x.shape[1])).movedim(3, 1)",
    ),
    (
        "wrong matrix",
        "compress(self.key_matrix, k), compress(self.value_matrix, v)",
        "compress(self.value_matrix, k), compress(self.key_matrix, v)",
    ),
    (
        "statistic over the batch",
        "padding = key_padding_mask[:, None, :, None]",
        "padding = key_padding_mask.any(0)[None, None, :, None]",
    ),
]
