"""What an audit says: the verdict on each claim, and parents that nobody named."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mother.collection.claims import Claim

AGREES, CONTRADICTED = "agrees", "contradicted"
NOT_CONFIRMED, ABSENT = "not confirmed", "parent not in the collection"
FINDINGS = ("contradicted", "undecided", "undeclared", "unreadable")
FAIL_ON = ("contradicted", "unreadable")  # what ends an audit with a code unless the user says otherwise


def exit_code(findings: dict[str, int], fail_on: Iterable[str] = FAIL_ON) -> int:
    """3 where a contradiction is to fail, 4 where only others of the findings named are there, else 0."""
    failing = [kind for kind in fail_on if findings[kind]]
    return 3 if "contradicted" in failing else 4 if failing else 0


@dataclass(frozen=True)
class Verdict:
    """What the weights say to a claim."""

    model: str
    claim: Claim
    parent: str | None  # id of the model that is meant
    verdict: str  # one of AGREES, CONTRADICTED, NOT_CONFIRMED, ABSENT
    reason: str

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        said = {"file": self.claim.file, "says": self.claim.parent, "relation": self.claim.relation}
        said["unread"] = self.claim.unread
        return {"model": self.model, **said, "parent": self.parent, "verdict": self.verdict, "reason": self.reason}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Verdict":
        """What `to_json` gave."""
        claim = Claim(content["file"], content["says"], content["relation"], unread=content["unread"])
        return cls(content["model"], claim, content["parent"], content["verdict"], content["reason"])


@dataclass
class Audit:
    """The verdicts on all claims of a collection, and parents that nobody named."""

    verdicts: list[Verdict]
    undeclared: dict[str, str] = field(default_factory=dict)  # model -> what the weights say of it

    def findings(self, left_out: int = 0) -> dict[str, int]:
        """How many findings there are of each kind in FINDINGS; `left_out` is the number of models without a place.

        A card that could not be read counts as unreadable, a parent that is not here as undecided.
        """
        unread = sum(one.claim.unread is not None for one in self.verdicts)
        undecided = sum(one.verdict in (NOT_CONFIRMED, ABSENT) for one in self.verdicts) - unread
        contradicted = sum(one.verdict == CONTRADICTED for one in self.verdicts)
        return dict(zip(FINDINGS, (contradicted, undecided, len(self.undeclared), unread + left_out)))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "undeclared": self.undeclared,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Audit":
        """What `to_json` gave."""
        return cls([Verdict.from_json(one) for one in content["verdicts"]], content["undeclared"])
