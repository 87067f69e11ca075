"""Oracle of fused softmax attention: the same mathematics as softmax attention, so the same oracle."""

from attention_zoo.reference.softmax import dense_core, weights

__all__ = ["dense_core", "weights"]
