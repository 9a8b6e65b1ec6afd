"""Which models a user means, what they claim of their origin, and the kept result that more can be added to.

Anybody's models, as `recover.py` takes them; the paper's scripts use manifests instead.
Imports `mother.heritage` and what is below it; nothing of `mother.runs`.
"""
