"""Handwritten digits from sequences of patches: noncausal self attention."""
