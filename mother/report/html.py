"""A result as one HTML file for people who do not program: everything is inside, nothing is loaded from anywhere."""

import base64
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from mother.collection.audit import Audit
from mother.collection.workspace import Group, Recovered
from mother.graph.exports import describe, first_parents, roots
from mother.graph.text import head_line
from mother.report.explain import pair_evidence, wrong_if

MOST_SHOWN = 1200  # models of a group whose distances are shown as one picture
LOW, HIGH = -4.0, 0.2  # decimal logarithms of the distances between which colours differ
SHOWN = ("kind", "adjacency", "arrow", "direction", "hidden", "compared")


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


def report_data(recovered: Recovered, audit: Audit | None, title: str) -> dict[str, Any]:
    """What the page shows, as JSON values. Layers are rows of [name, change, rank (-1: full), newness, rounding]."""
    graph = recovered.graph
    groups = {model: group for group in recovered.groups for model in group.heritage.first_pass.models}
    layers: dict[str, int] = {}
    parents: dict[str, list[str]] = {}
    for edge in graph.edges:
        parents.setdefault(edge.child, []).append(edge.parent)
    edges = []
    for edge in sorted(graph.edges, key=lambda edge: (edge.parent, edge.child)):
        facts = edge.attributes
        entry = {"parent": edge.parent, "child": edge.child, "words": describe(facts)}
        entry |= {key: facts[key] for key in SHOWN if key in facts}
        entry["attributes"] = {key: value for key, value in facts.items() if key not in SHOWN}
        evidence: dict[str, Any] = {}
        if edge.parent in groups and edge.child in groups:
            evidence = pair_evidence(groups[edge.child], edge.parent, edge.child)
            rows = [
                [
                    layers.setdefault(row["layer"], len(layers)),
                    row["change"],
                    -1 if row["rank"] == "full" else row["rank"],
                    row["newness"],
                    row["rounding"],
                ]
                for row in evidence.get("layers", ())
            ]
            entry["evidence"] = evidence | {"layers": rows}
        named = {**facts, "parents": sorted(parents[edge.child])} if facts.get("kind") == "merge" else facts
        entry["wrong_if"] = wrong_if(named, evidence, edge.parent, edge.child)
        edges.append(entry)
    order = tree_order(recovered)
    counts = head_line(graph) + (f"; {len(graph.left_out)} left out" if graph.left_out else "")
    return {
        "title": title,
        "counts": counts,
        "nodes": [{"id": model, **graph.nodes[model]} for model in order if model in graph.nodes],
        "edges": edges,
        "layers": list(layers),
        "heat": [heat for group in recovered.groups if (heat := _heat(group, order)) is not None],
        "heat_low": LOW,
        "heat_high": HIGH,
        "audit": audit.to_json() if audit is not None else None,
        "left_out": [[model, reason] for model, reason in graph.left_out.items()],
        "not_read": [[path, reason] for path, reason in graph.not_read.items()],
        "notes": list(graph.notes),
    }


def _d3() -> Path:
    """D3 as mpld3 ships it. That package is not imported: it is slow, and needs docstrings, which python -OO drops."""
    return Path(find_spec("mpld3").submodule_search_locations[0]) / "js" / "d3.v5.min.js"


def to_html(recovered: Recovered, audit: Audit | None = None, title: str = "Model Graph") -> str:
    """The page of a result."""
    return page(report_data(recovered, audit, title))


def page(data: dict[str, Any]) -> str:
    """What `report_data` gave as a page of HTML.

    What comes from models can be nothing but text in it: JSON without '<', which the script shows as text.
    """
    content = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    content = content.encode("utf-8", "replace").decode()
    for letter in "<>&\u2028\u2029":
        content = content.replace(letter, f"\\u{ord(letter):04x}")
    assets = files("mother.report") / "assets"
    parts = {
        "@TITLE@": html.escape(data["title"]),
        "@CSS@": (assets / "report.css").read_text(encoding="utf-8"),
        "@D3@": _d3().read_text(encoding="utf-8").replace("</script", "<\\/script"),
        "@JS@": (assets / "report.js").read_text(encoding="utf-8"),
        "@DATA@": content,
    }
    pieces = (assets / "report.html").read_text(encoding="utf-8").split("@")
    # Placeholders are replaced in one go, so that nothing inside a part is taken for one.
    return "".join(parts.get(f"@{piece}@", piece) if at % 2 else piece for at, piece in enumerate(pieces))
