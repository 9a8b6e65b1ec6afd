"""What an audit says: the verdict on each claim, and parents that nobody named."""

from dataclasses import dataclass, field
from typing import Any

from mother.collection.claims import Claim

AGREES, CONTRADICTED = "agrees", "contradicted"
UNSUPPORTED, ABSENT = "not supported", "parent not in the collection"


@dataclass(frozen=True)
class Verdict:
    """What the weights say to a claim."""

    model: str
    claim: Claim
    parent: str | None  # id of the model that is meant
    verdict: str  # one of AGREES, CONTRADICTED, UNSUPPORTED, ABSENT
    reason: str

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        said = {"file": self.claim.file, "says": self.claim.parent, "relation": self.claim.relation}
        return {"model": self.model, **said, "parent": self.parent, "verdict": self.verdict, "reason": self.reason}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Verdict":
        """What `to_json` gave."""
        claim = Claim(content["file"], content["says"], content["relation"])
        return cls(content["model"], claim, content["parent"], content["verdict"], content["reason"])


@dataclass
class Audit:
    """The verdicts on all claims of a collection, and parents that nobody named."""

    verdicts: list[Verdict]
    undeclared: dict[str, str] = field(default_factory=dict)  # model -> what the weights say of it

    @property
    def exit_code(self) -> int:
        """0 where all claims agree, 3 where one is contradicted, 4 where one, or all for want of any, is undecided."""
        found = {verdict.verdict for verdict in self.verdicts}
        return 3 if CONTRADICTED in found else 0 if found == {AGREES} else 4

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "undeclared": self.undeclared,
            "exit_code": self.exit_code,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Audit":
        """What `to_json` gave."""
        return cls([Verdict.from_json(one) for one in content["verdicts"]], content["undeclared"])
