"""Many models: an index of signatures that grows, searched and traced without anything for each pair of all.

Engine, signatures, shards, candidates, families, blocks of a family, the sparse graph.
"""
