"""Method map, second half: from evidence to a typed graph with probabilities.

Exact relations, calibration, the most probable trees, hidden ancestors.
Imports `mother.evidence` and what is below it; nothing of `mother.paper`.
"""
