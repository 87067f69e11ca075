"""Language modelling of bytes: causal self attention."""
