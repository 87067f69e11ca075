"""Efficient attention mechanisms, each right in every pattern that it claims, each with its oracle.

>>> from attention_zoo import build
>>> layer = build("performer", embed_dim=64, num_heads=4, pattern="causal_self", max_length=128)
"""

from attention_zoo.registry import build, build_core, card, names

__all__ = ["build", "build_core", "card", "names"]
