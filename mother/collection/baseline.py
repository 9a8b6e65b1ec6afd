"""Findings of an audit that somebody has accepted: they are listed, and fail no audit."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mother.collection.verdicts import FAIL_ON, FINDINGS, Finding, exit_code, in_words
from mother.errors import InputError
from mother.io.files import write_json

FORMAT = "mother-baseline/1"
FIELDS = ("model", "finding", "file", "says", "verdict")  # of a fingerprint, in its order

Fingerprint = tuple[str, str, str | None, str, str]


def _fingerprint(entry: Any) -> Fingerprint:
    """One finding of a baseline. Raises KeyError, TypeError or ValueError."""
    model, kind, file, says, verdict = (entry[field] for field in FIELDS)
    if not all(isinstance(text, str) for text in (model, kind, says, verdict)) or kind not in FINDINGS:
        raise ValueError(f"{json.dumps(entry)[:200]} is no finding")
    if file is not None and not isinstance(file, str):
        raise ValueError(f"the file of a finding on {model} is no text")
    return (model, kind, file, says, verdict)


def read_baseline(path: Path) -> frozenset[Fingerprint]:
    """The findings that a baseline accepts. Raises InputError where it is missing or damaged."""
    remedy = "Write one with --write-baseline."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f'it does not say "format": "{FORMAT}"')
        return frozenset(map(_fingerprint, content["findings"]))
    except OSError as error:
        raise InputError(f"{path} cannot be read as a baseline: {error.strerror}. {remedy}") from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be used as a baseline ({error}). {remedy}") from None


def write_baseline(path: Path, findings: Iterable[Finding]) -> None:
    """Accept findings: one entry for all that say the same, in an order that does not depend on the run."""
    found = sorted({one.fingerprint for one in findings}, key=lambda one: [text or "" for text in one])
    write_json(path, {"format": FORMAT, "findings": [dict(zip(FIELDS, one)) for one in found]})


@dataclass(frozen=True)
class Judged:
    """The findings of an audit, as this run takes them."""

    findings: Sequence[Finding]
    fail_on: Sequence[str] = FAIL_ON
    accepted: frozenset[Fingerprint] = frozenset()
    accepted_by: str = ""  # the file that accepts them

    def is_accepted(self, finding: Finding) -> bool:
        """Whether the baseline holds it."""
        return finding.fingerprint in self.accepted

    def fails(self, finding: Finding) -> bool:
        """Whether it is one that ends this audit with a code."""
        return finding.kind in self.fail_on and not self.is_accepted(finding)

    @property
    def gone(self) -> int:
        """How many entries of the baseline nothing was found of."""
        return len(self.accepted - {one.fingerprint for one in self.findings})

    def outcome(self) -> tuple[int, str]:
        """The exit code, and why, in the order of `fail_on`."""
        failing = [one.kind for one in self.findings if self.fails(one)]
        counts = {kind: failing.count(kind) for kind in (*self.fail_on, *FINDINGS)}
        spared = sum(one.kind in self.fail_on and self.is_accepted(one) for one in self.findings)
        words = in_words(counts) or "nothing that is to fail"
        return exit_code(counts, self.fail_on), words + (
            f" ({spared} accepted by {self.accepted_by})" if spared else ""
        )
