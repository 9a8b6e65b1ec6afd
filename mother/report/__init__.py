"""A result for readers: why an edge is there, the HTML page, all files of a result.

Nothing is measured here but a pair that a reader asks for.
Imports `mother.collection` and what is below it.
"""
