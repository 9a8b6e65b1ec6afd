"""A result as one HTML file for people who do not program: everything is inside, nothing is loaded from anywhere."""

import base64
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import networkx as nx
import numpy as np

from mother.collection.audit import Audit
from mother.collection.verdicts import CONTRADICTED
from mother.collection.workspace import Group, Recovered
from mother.graph.exports import describe, first_parents, roots
from mother.graph.layered import Family, families, labels
from mother.report.explain import told
from mother.report.kept import Evidence
from mother.report.static import (
    audit_html,
    edges_html,
    files_html,
    legend_html,
    picture_html,
    summary_html,
    table,
    text,
)
from mother.report.summary import formats, summary, verdicts_by_model

MOST_SHOWN = 1200  # models of a group whose distances are shown as one picture
LOW, HIGH = -4.0, 0.2  # decimal logarithms of the distances between which colours differ
WRONG = " ✗"  # beside the name of a model whose claim is contradicted
SHOWN = ("kind", "adjacency", "arrow", "direction", "hidden", "compared", "coefficient")


def tree_order(recovered: Recovered) -> list[str]:
    """All models depth first, copies after the model that they are copies of."""
    graph = nx.DiGraph(first_parents(recovered.graph))
    order = []
    for root in roots(recovered.graph):
        for model in nx.dfs_preorder_nodes(graph, root):
            order += [model, *recovered.graph.nodes[model].get("aliases", ())]
    return order


def _heat(group: Group, order: Sequence[str]) -> dict[str, Any] | None:
    """Distances of a group as bytes: 0 equal, 1 to 254 between 10^LOW and 10^HIGH, 255 not comparable."""
    place = {model: at for at, model in enumerate(group.heritage.first_pass.models)}
    models = [model for model in order if model in place]
    if not 1 < len(models) <= MOST_SHOWN:
        return None
    rows = [place[model] for model in models]
    distance = group.distances()[np.ix_(rows, rows)]
    with np.errstate(divide="ignore", invalid="ignore"):
        level = (np.log10(distance) - LOW) / (HIGH - LOW)
    codes = np.where(np.isfinite(level), 1 + np.rint(253 * np.clip(level, 0, 1)), 0)
    codes = np.where(np.isfinite(distance), codes, 255).astype(np.uint8)
    return {"group": group.name, "models": models, "cells": base64.b64encode(codes.tobytes()).decode()}


def _edges(recovered: Recovered, evidence: Evidence, layers: dict[str, int]) -> list[dict[str, Any]]:
    """All edges with what is said of them. `layers` numbers the names of matrices, which many edges share."""
    edges = []
    parents: dict[str, list[str]] = {}
    for edge in recovered.graph.edges:
        parents.setdefault(edge.child, []).append(edge.parent)
    for edge in sorted(recovered.graph.edges, key=lambda edge: (edge.parent, edge.child)):
        facts = edge.attributes
        entry = {"parent": edge.parent, "child": edge.child, "words": describe(facts)}
        entry |= {key: facts[key] for key in SHOWN if key in facts}
        entry["attributes"] = {key: value for key, value in facts.items() if key not in SHOWN}
        said = told(evidence.group_of(edge.child), recovered.graph, edge, sorted(parents[edge.child]))
        rows = [
            [
                layers.setdefault(row["layer"], len(layers)),
                row["change"],
                -1 if row["rank"] == "full" else row["rank"],
                row.get("newness"),
                row.get("rounding"),
            ]
            for row in said["evidence"].pop("layers", ())
        ]
        entry["evidence"] = said["evidence"] | {"layers": rows}
        edges.append(entry | {key: said[key] for key in ("summary", "why", "wrong_if")})
    return edges


def drawing_of(family: Family) -> dict[str, Any]:
    """A family as JSON values: places as [model, column, row], bends as [parent, child, [column, row], ...]."""
    return {
        "name": family.name,
        "places": [[model, column, round(row, 2)] for model, (column, row) in family.place.items()],
        "bends": [
            [*ends, *([column, round(row, 2)] for column, row in way)] for ends, way in sorted(family.bends.items())
        ],
    }


def report_data(
    recovered: Recovered,
    evidence: Evidence,
    audit: Audit | None,
    title: str,
    command: str = "",
) -> dict[str, Any]:
    """What the page shows, as JSON values.

    Layers are rows of [name, change, rank (-1: full), newness, rounding].
    """
    graph = recovered.graph
    layers: dict[str, int] = {}
    edges = _edges(recovered, evidence, layers)
    order = tree_order(recovered)
    drawn, alone = families(graph)
    short, form, verdict = labels(graph), formats(recovered), verdicts_by_model(evidence, audit)
    nodes = [
        {"id": model, "label": short[model], "format": form.get(model, ""), "verdict": verdict.get(model, "")}
        | graph.nodes[model]
        for model in order
        if model in graph.nodes
    ]
    return {
        "title": title,
        "summary": summary(recovered, audit, command),
        "nodes": nodes,
        "edges": edges,
        "families": [drawing_of(family) for family in drawn],
        "alone": alone,
        "layers": list(layers),
        "heat": [heat for group in recovered.groups if (heat := _heat(group, order)) is not None],
        "heat_low": LOW,
        "heat_high": HIGH,
        "audit": audit.to_json() if audit is not None else None,
    }


def _families(data: dict[str, Any]) -> list[Family]:
    """The families of `report_data` as drawings."""
    return [
        Family(
            one["name"],
            [model for model, _, _ in one["places"]],
            {model: (column, row) for model, column, row in one["places"]},
            {(parent, child): [(at, row) for at, row in way] for parent, child, *way in one["bends"]},
        )
        for one in data["families"]
    ]


def to_html(data: dict[str, Any]) -> str:
    """What `report_data` gave as a page of HTML.

    What comes from models can be nothing but text in it: escaped, or JSON without '<', which the script shows as text.
    """
    unsaid = ("summary", "audit")  # said in HTML already, but for the verdicts on each model
    content = {key: value for key, value in data.items() if key not in unsaid}
    content["verdicts"] = (data["audit"] or {}).get("verdicts", [])
    script = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    script = script.encode("utf-8", "replace").decode()
    for letter in "<>&\u2028\u2029":
        script = script.replace(letter, f"\\u{ord(letter):04x}")
    found = data["summary"]
    names = {node["id"]: node["label"] + WRONG * (node["verdict"] == CONTRADICTED) for node in data["nodes"]}
    legend = legend_html(data["edges"], bool(found["contradictions"]))
    copies = {node["id"]: len(node.get("aliases", ())) for node in data["nodes"]}
    assets = files("mother.report") / "assets"
    parts = {
        "TITLE": text(data["title"]),
        "CSS": (assets / "report.css").read_text(encoding="utf-8"),
        "JS": "".join((assets / f"{name}.js").read_text(encoding="utf-8") for name in ("packing", "tree", "report")),
        "SUMMARY": summary_html(found),
        "PICTURE": legend + picture_html(_families(data), data["alone"], data["edges"], names, copies),
        "EDGES": edges_html(data["edges"], {node["id"] for node in data["nodes"] if node.get("hidden")}),
        "AUDIT": audit_html(data["audit"]),
        "FILES": files_html(found),
        "LEFT": table(("what", "why"), [*found["left_out"].items(), *found["not_read"].items()], "left"),
        "DATA": script,
    }
    pieces = (assets / "report.html").read_text(encoding="utf-8").split("@")
    # Placeholders are replaced in one go, so that nothing inside a part is taken for one.
    return "".join(parts.get(piece, f"@{piece}@") if at % 2 else piece for at, piece in enumerate(pieces))
