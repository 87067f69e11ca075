"""Title-to-article retrieval with a pretrained sentence encoder: noncausal self attention, dropped in."""
