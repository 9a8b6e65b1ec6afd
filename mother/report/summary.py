"""What a report opens on: findings, what is least certain, what was not read, and from which bytes it was made."""

import os
from collections import Counter
from datetime import UTC, date, datetime
from typing import Any

from mother.collection.audit import Audit
from mother.collection.licences import licence_facts
from mother.collection.workspace import Recovered
from mother.errors import escaped
from mother.graph.certainty import percent, ranges
from mother.graph.model_graph import ModelGraph
from mother.graph.text import head_line
from mother.io.runtime import code_digest, version, versions
from mother.report.kept import Evidence
from mother.report.words import GLOSSARY, LIMITS, sentences

UNSURE = 5  # edges that are shown as the least certain


def today() -> str:
    """The date that a result carries: SOURCE_DATE_EPOCH's, where a build sets it, so that builds can be repeated."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return datetime.fromtimestamp(int(epoch), UTC).date().isoformat() if epoch.isdigit() else date.today().isoformat()


def kinds(graph: ModelGraph) -> dict[str, int]:
    """How many edges there are of each kind."""
    return dict(sorted(Counter(str(edge.attributes.get("kind") or "hidden") for edge in graph.edges).items()))


def least_certain(graph: ModelGraph, most: int = UNSURE) -> list[dict[str, Any]]:
    """The edges of which the edge or its arrow is least certain."""
    known = [edge for edge in graph.edges if edge.attributes.get("kind")]

    def doubt(edge: Any) -> float:
        return min(edge.attributes.get("adjacency", 1.0), edge.attributes.get("arrow", 1.0))

    said = sentences(graph)
    ranked = sorted(known, key=lambda edge: (doubt(edge), edge.parent, edge.child))[:most]
    return [
        {
            "parent": edge.parent,
            "child": edge.child,
            "probability": doubt(edge),
            "words": said[edge.parent, edge.child],
        }
        for edge in ranked
        if doubt(edge) < 1
    ]


def findings(graph: ModelGraph, audit: Audit | None) -> str:
    """One sentence: what was found."""
    words = f"{head_line(graph)}."
    if audit is not None:
        wrong = sum(verdict.verdict == "contradicted" for verdict in audit.verdicts)
        claims = len(audit.verdicts)
        if not claims:
            words += " No model declares where it comes from."
        else:
            words += f" Of {claims} {'claim' if claims == 1 else 'claims'} the weights contradict {wrong or 'none'}."
    doubt = least_certain(graph, 1)
    return words + (f" The least certain edge has {percent(doubt[0]['probability'])}." if doubt else "")


def summary(recovered: Recovered, audit: Audit | None, command: str) -> dict[str, Any]:
    """All of the summary as JSON values."""
    graph = recovered.graph
    verdicts = audit.verdicts if audit is not None else []
    licences = {source.id: source.licence for source in recovered.sources if source.licence}
    return {
        "findings": findings(graph, audit),
        "kinds": kinds(graph),
        "contradictions": [one.to_json() for one in verdicts if one.verdict == "contradicted"],
        "audited": audit is not None,
        "least_certain": least_certain(graph),
        "left_out": graph.left_out,
        "not_read": graph.not_read,
        "notes": list(graph.notes),
        "licences": licence_facts(graph, licences),
        "certainty": dict(ranges()),
        "glossary": GLOSSARY,
        "limits": list(LIMITS),
        "date": today(),
        "version": version(),
        "versions": versions(),
        "code": code_digest(),
        "command": escaped(command),
        "hub": {"requests": recovered.traffic.requests, "bytes": recovered.traffic.bytes},
        "read_once": dict(recovered.copied),
        "files": recovered.files,
    }


def formats(recovered: Recovered) -> dict[str, str]:
    """The format of the files of each model, by their endings."""
    found = {}
    for model, files in recovered.files.items():
        endings = {str(file["file"]).rsplit(".", 1)[-1] for file in files if "." in str(file["file"])}
        found[model] = escaped(" + ".join(sorted(endings)) or "unknown")
    return found


def verdicts_by_model(evidence: Evidence, audit: Audit | None) -> dict[str, str]:
    """The verdict of the audit on each model that claims anything, the worst first."""
    found: dict[str, str] = {}
    for verdict in audit.verdicts if audit is not None else ():
        if found.get(verdict.model) != "contradicted":
            found[verdict.model] = verdict.verdict
    silent = "declares nothing" if audit is not None else "not audited"
    models = [model for group in evidence.groups for model in group.models] or list(evidence.locations)
    return {model: found.get(model, silent) for model in models}
