"""Seeded faults of Longformer: each must fail the certificate."""

FAULTS = [
    (
        "a window into the future",
        "return self.window, 0 if self.pattern is Pattern.CAUSAL_SELF else self.window",
        "return self.window, self.window",
    ),
    ("padding ignored in the window", "key_valid=None if valid is None else valid[:, g:]", "key_valid=None"),
    ("no key is global", "if g == 0:", "if g >= 0:"),
    ("double count", "zip(in_window, on_global, strict=True)", "zip(in_window, on_global, on_global, strict=True)"),
    ("parts averaged, not merged", "merge_by_lse(out, lse, dim=0)[0]", "out.mean(0)"),
    ("wrong projection", "w_key = self.global_key_projection.weight", "w_key = self.key_projection.weight"),
    (
        "wrong temperature",
        "mixed, lse = self.core.attend(q.flatten(1, 2), x, x, visible, self.head_dim**-0.5)",
        "mixed, lse = self.core.attend(q.flatten(1, 2), x, x, visible, self.embed_dim**-0.5)",
    ),
    ("sign", "out = out + torch.where(seen", "out = out - torch.where(seen"),
    (
        "dropped state",
        "keep_ends(state, self.num_global, self.window)",
        "keep_ends(state, 0, self.num_global + self.window)",
    ),
]
