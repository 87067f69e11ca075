"""An attention written outside the repository: every output is the mean of the values that are not padding."""

import torch
from torch.nn import functional as F

from attention_zoo.contract import AttentionCore, Card, HeadwiseAttention, Pattern, Support


class MeanCore(AttentionCore):
    """out_i = sum_j m_j v_j / sum_j m_j, with m_j = 0 at padding."""

    def forward(self, q, k, v, *, key_padding_mask=None):
        seen = torch.ones_like(v[..., :1])
        if key_padding_mask is not None:
            seen = seen * ~key_padding_mask[:, None, :, None]
        mean = (v * seen).sum(dim=-2, keepdim=True) / seen.sum(dim=-2, keepdim=True).clamp(min=1)
        return F.dropout(mean.expand(*q.shape[:-1], v.shape[-1]), self.dropout, self.training)

    def flops(self, batch, length_q, length_k):
        return 0


class MeanAttention(HeadwiseAttention):
    core_type = MeanCore
    projections = frozenset({"value", "output"})
    card = Card(
        name="mean_attention",
        title="Mean attention",
        authors="Somebody",
        year=2026,
        paper="none",
        family="floor",
        exact=False,
        time_order="L",
        memory_order="L",
        supports={Pattern.NONCAUSAL_SELF: Support.PUBLISHED, Pattern.NONCAUSAL_CROSS: Support.PUBLISHED},
        unsupported={
            Pattern.CAUSAL_SELF: "written for the noncausal patterns only",
            Pattern.CAUSAL_CROSS: "written for the noncausal patterns only",
        },
    )
