"""The terms of an edge's log weight, from which its probability comes, for readers."""

from typing import Any

import numpy as np

from mother.heritage.terms import third_between
from mother.heritage.trees import Heritage

SHOWN = 0.005  # smallest term that the text shows
WHOLE = "log weight"


def edge_terms(heritage: Heritage, i: int, j: int) -> dict[str, Any]:
    """What each evidence added to the log weight of i -> j, with the sum, and the third model that fits best between.

    Empty where the two are not in one tree. What makes an edge impossible is null, and so is the sum.
    """
    for cluster in heritage.clusters:
        if i in cluster.members and j in cluster.members:
            a, b = cluster.members.index(i), cluster.members.index(j)
            found = {name: float(values[a, b]) for name, values in cluster.terms.items()}
            found[WHOLE] = sum(found.values())
            rounded = {name: round(value, 3) + 0.0 if np.isfinite(value) else None for name, value in found.items()}
            third = third_between(cluster.evidence, cluster.coefficients, a, b)
            return {
                "terms": rounded,
                "third": None if third is None else heritage.first_pass.models[cluster.members[third]],
            }
    return {}


def terms_text(evidence: dict[str, Any]) -> str:
    """What `edge_terms` gave in one line, the largest first."""
    terms = {name: value for name, value in evidence["terms"].items() if name != WHOLE}
    words = [f"{name} forbids it" for name, value in terms.items() if value is None]
    for name, value in sorted(terms.items(), key=lambda term: -abs(term[1] or 0)):
        if value is not None and abs(value) >= SHOWN:
            third = f" ({evidence['third']})" if name == "between" and evidence["third"] else ""
            words.append(f"{name}{third} {value:+.2f}")
    whole = evidence["terms"][WHOLE]
    return f"{'impossible' if whole is None else f'{whole:+.2f}'}: {', '.join(words)}"
