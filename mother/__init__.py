"""MoTHer: recover the family tree of neural networks from their weights."""
