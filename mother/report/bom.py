"""A Model Graph as bill of materials (CycloneDX ML-BOM) and as provenance (PROV-JSON)."""

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from mother.collection.spdx import licence_names, spdx_id
from mother.errors import escaped
from mother.graph.certainty import both
from mother.graph.model_graph import Edge, ModelGraph
from mother.report.words import operation, sentences

SPACE = uuid.UUID("7b0c26e5-1c7a-5e0b-9a53-0d6f3c1f5a2e")  # ours, so that the same graph has the same serial number
ANALYSIS = "binary-analysis"  # of CycloneDX's techniques the one that looks at the bytes
URN = "urn:mother:"

Files = Mapping[str, Sequence[Mapping[str, Any]]]


def _there(graph: ModelGraph) -> list[str]:
    return [model for model, facts in graph.nodes.items() if not facts.get("hidden")]


def _relative(name: str, edge: Edge, said: str) -> dict[str, Any]:
    """A parent or child in a pedigree: how sure its place is, by what, and in which words."""
    facts = edge.attributes
    sure = round(float(facts.get("adjacency", 1.0)) * float(facts.get("arrow", 1.0)), 4)
    method = {"technique": ANALYSIS, "confidence": sure, "value": said}
    identity = {"field": "name", "confidence": sure, "concludedValue": escaped(name), "methods": [method]}
    kept = {key: facts[key] for key in ("kind", "adjacency", "arrow", "direction", "coefficient") if key in facts}
    properties = [{"name": f"mother:{key}", "value": escaped(str(value))} for key, value in kept.items()]
    return {
        "type": "machine-learning-model",
        "name": escaped(name),
        "evidence": {"identity": [identity]},
        "properties": properties,
    }


def _licences(declared: str) -> list[dict[str, Any]]:
    """Licences as a card declares them: by SPDX's identifier where there is one, else by name."""
    known = [(name, spdx_id(name)) for name in licence_names(declared)]
    said = [{"id": one} if one else {"name": escaped(name)} for name, one in known]
    return [{"license": one | {"acknowledgement": "declared"}} for one in said]


def _component(
    graph: ModelGraph, model: str, files: Files, licences: Mapping[str, str], said: Mapping[tuple[str, str], str]
) -> dict[str, Any]:
    known = [edge for edge in graph.edges if edge.attributes.get("kind")]
    pedigree: dict[str, Any] = {
        "ancestors": [_relative(edge.parent, edge, said[edge.parent, model]) for edge in known if edge.child == model],
        "descendants": [_relative(edge.child, edge, said[model, edge.child]) for edge in known if edge.parent == model],
    }
    copies = graph.nodes[model].get("aliases", ())
    if copies:
        pedigree["variants"] = [{"type": "machine-learning-model", "name": escaped(one)} for one in copies]
    above = [edge for edge in graph.edges if edge.child == model and not edge.attributes.get("kind")]
    if above:
        pedigree["notes"] = "It shares an ancestor with its siblings that is not in this collection."
    parts = [
        {
            "type": "file",
            "name": escaped(str(one["file"])),
            "hashes": [{"alg": "SHA-256", "content": one["sha256"]}],
            "properties": [{"name": "mother:bytes", "value": str(one["size"])}],
        }
        for one in files.get(model, ())
        if one.get("sha256")
    ]
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": f"model:{escaped(model)}",
        "name": escaped(model),
        "pedigree": {key: value for key, value in pedigree.items() if value},
    }
    component |= {"components": parts} if parts else {}
    declared = licences.get(model)
    return component | ({"licenses": _licences(declared)} if declared else {})


def to_cyclonedx(
    graph: ModelGraph, files: Files, date: str, version: str, licences: Mapping[str, str] | None = None
) -> str:
    """CycloneDX 1.6: each model with its files, parents and children; the evidence is that of the edge between.

    `date` is that of the result, as YYYY-MM-DD. The confidence of a parent is the probability of edge and arrow.
    Licences are those that cards declare, by SPDX's identifier where there is one.
    """
    said = sentences(graph)
    components = [_component(graph, model, files, licences or {}, said) for model in _there(graph)]
    tool = {"type": "application", "name": "MoTHer", "version": version}
    content = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"timestamp": f"{date}T00:00:00Z", "tools": {"components": [tool]}},
        "components": components,
    }
    serial = uuid.uuid5(SPACE, json.dumps(content, sort_keys=True))
    return json.dumps(content | {"serialNumber": f"urn:uuid:{serial}"}, indent=1, ensure_ascii=False) + "\n"


def to_prov(graph: ModelGraph, files: Files) -> str:
    """PROV-JSON of the W3C: models are entities, edges derivations with their kinds and probabilities."""
    number = {model: f"m:n{at}" for at, model in enumerate(graph.nodes)}
    entities: dict[str, Any] = {}
    for model, facts in graph.nodes.items():
        entities[number[model]] = {"prov:label": "not here" if facts.get("hidden") else escaped(model)}
        if digests := [str(one["sha256"]) for one in files.get(model, ()) if one.get("sha256")]:
            entities[number[model]]["m:sha256"] = digests
    derived = {}
    for at, edge in enumerate(graph.edges):
        said = {"prov:generatedEntity": number[edge.child], "prov:usedEntity": number[edge.parent]}
        if edge.attributes.get("kind"):
            said |= {"prov:label": f"{operation(edge.attributes)}, {both(edge.attributes)}"}
            said |= {"m:kind": edge.attributes["kind"]}
            for name in ("adjacency", "arrow", "coefficient"):
                if edge.attributes.get(name) is not None:
                    said |= {f"m:{name}": {"$": str(edge.attributes[name]), "type": "xsd:double"}}
        derived[f"_:e{at}"] = said
    content = {"prefix": {"m": URN}, "entity": entities, "wasDerivedFrom": derived}
    return json.dumps({key: value for key, value in content.items() if value}, indent=1, ensure_ascii=False) + "\n"
