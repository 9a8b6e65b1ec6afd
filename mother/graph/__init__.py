"""The Model Graph as data: manifests and recovered graphs, trees of directed graphs, scores, exports, figures, text.

What belongs here knows ids, edges and matrices, and no weights.
Imports `mother.io` and what is below it.
"""
