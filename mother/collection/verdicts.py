"""What an audit says: the verdict on each claim, and parents that nobody named."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mother.collection.claims import Claim

AGREES, CONTRADICTED = "agrees", "contradicted"
NOT_CONFIRMED, ABSENT = "not confirmed", "parent not in the collection"
VERDICTS = (AGREES, CONTRADICTED, NOT_CONFIRMED, ABSENT)
FINDINGS = ("contradicted", "undecided", "undeclared", "unreadable")
COUNTED = {  # one, several
    "contradicted": ("contradiction", "contradictions"),
    "undecided": ("undecided claim", "undecided claims"),
    "undeclared": ("model that declares nothing", "models that declare nothing"),
    "unreadable": ("unreadable", "unreadable"),
}
SILENT, LEFT_OUT = "declares nothing", "left out"  # what stands for a verdict where there is no claim
FAIL_ON = ("contradicted", "unreadable")  # what ends an audit with a code unless the user says otherwise


def exit_code(findings: dict[str, int], fail_on: Iterable[str] = FAIL_ON) -> int:
    """3 where a contradiction is to fail, 4 where only others of the findings named are there, else 0."""
    failing = [kind for kind in fail_on if findings[kind]]
    return 3 if "contradicted" in failing else 4 if failing else 0


def in_words(findings: dict[str, int]) -> str:
    """How many findings there are of each kind, such as "1 contradiction, 2 undecided claims"; "" for none."""
    return ", ".join(f"{count} {COUNTED[kind][count != 1]}" for kind, count in findings.items() if count)


@dataclass(frozen=True)
class Finding:
    """What an audit has to say about one claim, or about a model without one."""

    kind: str  # one of FINDINGS
    model: str
    file: str | None  # that says so; None: no file
    says: str  # what the file says, "" for nothing
    verdict: str
    reason: str
    line: int | None = None  # of the file

    @property
    def fingerprint(self) -> tuple[str, str, str | None, str, str]:
        """What is the same in all runs that find the same: not the reason, whose figures may move."""
        return (self.model, self.kind, self.file, self.says, self.verdict)


@dataclass(frozen=True)
class Verdict:
    """What the weights say to a claim."""

    model: str
    claim: Claim
    parent: str | None  # id of the model that is meant
    verdict: str  # one of AGREES, CONTRADICTED, NOT_CONFIRMED, ABSENT
    reason: str

    @property
    def finding(self) -> Finding | None:
        """The same as a finding; None where the weights agree."""
        kind = {AGREES: None, CONTRADICTED: "contradicted"}.get(self.verdict, "undecided")
        if self.claim.unread is not None:
            kind = "unreadable"
        if kind is None:
            return None
        said = f"{self.claim.relation} of {self.claim.parent}" if self.claim.relation else self.claim.parent
        return Finding(kind, self.model, self.claim.file, said, self.verdict, self.reason, self.claim.line)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        said = {"file": self.claim.file, "line": self.claim.line, "says": self.claim.parent}
        said |= {"relation": self.claim.relation, "unread": self.claim.unread}
        return {"model": self.model, **said, "parent": self.parent, "verdict": self.verdict, "reason": self.reason}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Verdict":
        """What `to_json` gave. Raises ValueError, KeyError or TypeError for anything else."""
        said = {key: content[key] for key in ("file", "relation", "unread")}
        claim = Claim.from_json(said | {"parent": content["says"], "line": content.get("line")})
        found = cls(content["model"], claim, content["parent"], content["verdict"], content["reason"])
        if not isinstance(found.model, str) or not isinstance(found.reason, str) or found.verdict not in VERDICTS:
            raise ValueError("a verdict has no model, reason or verdict")
        if found.parent is not None and not isinstance(found.parent, str):
            raise ValueError(f"the parent of {found.model} is no text")
        return found


@dataclass
class Audit:
    """The verdicts on all claims of a collection, and parents that nobody named."""

    verdicts: list[Verdict]
    undeclared: dict[str, str] = field(default_factory=dict)  # model -> what the weights say of it

    def findings(self, left_out: int = 0) -> dict[str, int]:
        """How many findings there are of each kind in FINDINGS; `left_out` is the number of models without a place.

        A card that could not be read counts as unreadable, a parent that is not here as undecided.
        """
        found = Counter(one.kind for one in self.listed({}))
        return {kind: found[kind] for kind in FINDINGS} | {"unreadable": found["unreadable"] + left_out}

    def listed(self, left_out: dict[str, str]) -> list[Finding]:
        """All findings; `left_out` are models without a place, and why."""
        found = [finding for verdict in self.verdicts if (finding := verdict.finding) is not None]
        for model, words in self.undeclared.items():
            reason = f"it declares nothing, and the weights say that it is from {words}"
            found.append(Finding("undeclared", model, None, "", SILENT, reason))
        return found + [Finding("unreadable", model, None, "", LEFT_OUT, why) for model, why in left_out.items()]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "undeclared": self.undeclared,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Audit":
        """What `to_json` gave. Raises ValueError, KeyError, TypeError or AttributeError for anything else."""
        silent = content["undeclared"]
        if not all(isinstance(words, str) for words in silent.values()):
            raise ValueError("what is not declared is no text")
        return cls([Verdict.from_json(one) for one in content["verdicts"]], silent)
