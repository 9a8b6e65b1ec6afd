"""Arithmetic that knows nothing of models: floating-point numbers, singular values, compiled loops, threads.

What belongs here takes and gives arrays, and can be checked against numpy, scipy or torch.
It may import nothing else of this package but `mother.errors`.
"""
