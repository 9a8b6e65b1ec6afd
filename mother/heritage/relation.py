"""What an exact relation says of a model."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Relation:
    """How one model came from others, read off exactly; the attribute "or" lists other models that fit as well."""

    kind: str  # "cast", "prune", "quantize" or "merge"
    parents: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
