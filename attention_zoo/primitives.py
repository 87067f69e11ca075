"""What mechanisms share: chunked causal scan, log-sum-exp merge, block gather, masks.

Each function is mathematics on tensors with no state; a mechanism composes them in the order of its paper.
"""

from __future__ import annotations
