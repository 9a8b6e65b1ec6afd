"""What an exact relation says of a model, and the names of what absent models do to probabilities."""

from dataclasses import dataclass, field
from typing import Any

# What probabilities of edges are multiplied by after the trees are summed over, see Cluster.terms.
FACTORS = ABSENT_PARENT, ABSENT_ORIGINAL = "absent parent", "absent original"


@dataclass(frozen=True)
class Relation:
    """How one model came from others, read off exactly; the attribute "or" lists other models that fit as well."""

    kind: str  # "cast", "prune", "quantize" or "merge"
    parents: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
