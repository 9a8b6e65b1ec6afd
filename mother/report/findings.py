"""The findings of an audit for forges: SARIF, which they show beside the lines of a file, and JUnit, as tests."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from mother.collection.baseline import Judged
from mother.collection.verdicts import Audit, Finding
from mother.errors import escaped
from mother.io.files import write_json, write_text
from mother.io.open import WEIGHT_FILES
from mother.io.runtime import version

SARIF, JUNIT = "audit.sarif", "audit.xml"
SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
FINGERPRINT = "motherFinding/v1"

RULES = {  # finding -> level, what it is, what it does and does not mean
    "contradicted": (
        "error",
        "The weights contradict what a file says of a model's origin.",
        "The weights exclude the parent or the relation that is claimed, with a probability of at least 0.95 by a "
        "method that can be wrong on families unlike those it was fitted on. It does not say who wrote the claim, why, "
        "or whether anybody meant to deceive: look at the evidence (mother explain) before you say anything.",
    ),
    "undecided": (
        "note",
        "The weights do not settle what a file says of a model's origin.",
        "The parent is not among the models of this audit, or the weights fit more than one story. It does not mean "
        "that the claim is wrong, and it does not mean that it is right.",
    ),
    "undeclared": (
        "note",
        "A model declares no origin, and the weights name a parent.",
        "Nothing in the model's card or configuration names a parent, and the weights are near those of another model "
        "of this audit. It is no fault to declare nothing, and an edge can be wrong.",
    ),
    "unreadable": (
        "warning",
        "A model, or what it says of its origin, could not be read.",
        "It was left out, so that nothing is known of it: neither that its claims are right nor that they are wrong.",
    ),
}


def _uri(location: str, file: str | None) -> str:
    """Where a file of a model is: relative to the current folder where it is below it."""
    if location.startswith("hf://"):
        return quote(f"{location}/{file}" if file else location, safe="/:@")
    path = Path(location)
    if file is not None:
        single = path.name in WEIGHT_FILES and not path.is_dir()
        path = (path.parent if single else path) / file
    here = Path.cwd()
    if here in path.parents:
        return quote(os.fsencode(path.relative_to(here).as_posix()))
    return path.as_uri()


def _message(text: str) -> str:
    """Text of a message, in which SARIF takes brackets for links and braces for placeholders."""
    for letter, instead in {"[": "\\[", "]": "\\]", "{": "{{", "}": "}}"}.items():
        text = text.replace(letter, instead)
    return escaped(text)


def sentence(finding: Finding) -> str:
    """A finding in one line."""
    if not finding.says:
        return f"{finding.model}: {finding.reason}"
    return f"{finding.model} says that it is from {finding.says}: {finding.verdict}; {finding.reason}"


def _result(finding: Finding, judged: Judged, location: str | None) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps(finding.fingerprint).encode()).hexdigest()
    found: dict[str, Any] = {
        "ruleId": finding.kind,
        "ruleIndex": list(RULES).index(finding.kind),
        "level": RULES[finding.kind][0],
        "message": {"text": _message(sentence(finding))},
        "partialFingerprints": {FINGERPRINT: digest},
    }
    if location is not None:
        place: dict[str, Any] = {"artifactLocation": {"uri": _uri(location, finding.file)}}
        if finding.line is not None:
            place["region"] = {"startLine": finding.line}
        found["locations"] = [{"physicalLocation": place}]
    if judged.is_accepted(finding):
        found["suppressions"] = [{"kind": "external", "status": "accepted"}]
    return found


def to_sarif(judged: Judged, locations: Mapping[str, str]) -> dict[str, Any]:
    """SARIF 2.1.0; `locations` says where each model is."""
    rules = [
        {
            "id": kind,
            "shortDescription": {"text": short},
            "fullDescription": {"text": short},
            "help": {"text": text},
            "defaultConfiguration": {"level": level},
        }
        for kind, (level, short, text) in RULES.items()
    ]
    results = [_result(finding, judged, locations.get(finding.model)) for finding in judged.findings]
    driver = {"name": "MoTHer", "version": version(), "semanticVersion": version(), "rules": rules}
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def to_junit(audit: Audit, judged: Judged) -> str:
    """JUnit's XML: a test for each claim, and one for each model that declares nothing or was left out."""
    said = [(verdict.model, f"{verdict.claim.file}: {verdict.claim.parent}") for verdict in audit.verdicts]
    cases: list[tuple[str, str, Finding | None]] = [
        (model, name, verdict.finding) for (model, name), verdict in zip(said, audit.verdicts)
    ]
    spoken = sum(finding is not None for _, _, finding in cases)
    cases += [(finding.model, finding.verdict, finding) for finding in judged.findings[spoken:]]
    suite = ElementTree.Element("testsuite", name="mother audit", tests=str(len(cases)))
    failures = skipped = 0
    for model, name, finding in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=escaped(model), name=escaped(name))
        if finding is None:
            continue
        words = escaped(sentence(finding))
        if judged.fails(finding):
            failures += 1
            ElementTree.SubElement(case, "failure", type=finding.kind, message=words).text = words
        else:
            skipped += 1
            accepted = f"accepted by {escaped(judged.accepted_by)}: " if judged.is_accepted(finding) else ""
            ElementTree.SubElement(case, "skipped", message=f"{accepted}{finding.kind}: {words}")
    counts = {"failures": failures, "errors": 0, "skipped": skipped}
    suite.attrib |= {key: str(value) for key, value in counts.items()}
    ElementTree.indent(suite)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(suite, encoding="unicode")}\n'


def write_findings(folder: Path, audit: Audit, judged: Judged, places: Sequence[tuple[str, str]]) -> None:
    """Write both into a result folder; `places` are (id, location) of the models."""
    write_json(folder / SARIF, to_sarif(judged, dict(places)))
    write_text(folder / JUNIT, to_junit(audit, judged))
