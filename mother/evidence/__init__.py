"""Method map, first half: from weights to evidence on models and pairs of models.

Sketches, relatedness, two passes over pairs, exact tests and statistics of direction; no decision about a graph.
Imports `mother.graph` and what is below it; nothing of `mother.paper`.
"""
