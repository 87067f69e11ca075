"""Masked language modelling of bytes: noncausal self attention."""
