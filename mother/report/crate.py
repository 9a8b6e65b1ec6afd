"""A Model Graph as RO-Crate 1.1: JSON-LD of schema.org that archives of research data read."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mother.collection.spdx import licence_names, licence_url, spdx_id
from mother.errors import escaped
from mother.graph.certainty import both
from mother.graph.model_graph import ModelGraph
from mother.report.words import operation, sentences

METADATA = "ro-crate-metadata.json"
CONTEXT, PROFILE = "https://w3id.org/ro/crate/1.1/context", "https://w3id.org/ro/crate/1.1"
HOME = "https://arxiv.org/abs/2405.18432"  # of the method's paper

Files = Mapping[str, Sequence[Mapping[str, Any]]]
Entity = dict[str, Any]


def _to(*ids: str) -> list[Entity]:
    return [{"@id": one} for one in ids]


def _property(at: str, name: str, value: object) -> Entity:
    return {"@id": at, "@type": "PropertyValue", "name": name, "value": value}


def _licences(declared: Mapping[str, str]) -> dict[str, Entity]:
    """The licences that cards declare and that have an address, by their names."""
    names = {name for one in declared.values() for name in licence_names(one)}
    known = {name: licence_url(name) for name in sorted(names)}
    return {
        name: {"@id": url, "@type": "CreativeWork", "name": spdx_id(name) or escaped(name), "url": url}
        for name, url in known.items()
        if url is not None
    }


def _models(graph: ModelGraph, number: Mapping[str, str], files: Files, licences: Mapping[str, str]) -> list[Entity]:
    """Models, each with its parents and its files; those are not in the crate, but known by their SHA-256.

    A licence is a link to what stands for it where there is such a thing, else its name.
    """
    links = _licences(licences)
    found: list[Entity] = list({one["@id"]: one for one in links.values()}.values())
    parents: dict[str, list[str]] = {}
    for edge in graph.edges:
        parents.setdefault(edge.child, []).append(number[edge.parent])
    for model, facts in graph.nodes.items():
        at = number[model]
        entity: Entity = {"@id": at, "@type": "CreativeWork", "additionalType": "machine learning model"}
        entity["name"] = "not here" if facts.get("hidden") else escaped(model)
        entity |= {"alternateName": [escaped(one) for one in facts["aliases"]]} if facts.get("aliases") else {}
        entity |= {"isBasedOn": _to(*parents[model])} if model in parents else {}
        names = licence_names(licences[model]) if model in licences else []
        said = [{"@id": links[one]["@id"]} if one in links else escaped(one) for one in names]
        entity |= {"license": said if len(said) > 1 else said[0]} if said else {}
        known = [one for one in files.get(model, ()) if one.get("sha256")]
        entity |= {"identifier": _to(*(f"{at}-{k}" for k in range(len(known))))} if known else {}
        found.append(entity)
        for k, one in enumerate(known):
            said = _property(f"{at}-{k}", escaped(str(one["file"])), one["sha256"])
            found.append(said | {"propertyID": "SHA-256", "description": f"{one['size']} bytes"})
    return found


def _edges(graph: ModelGraph, number: Mapping[str, str], tool: str) -> list[Entity]:
    """Edges as actions that made a child of its parent, each with its probabilities."""
    found: list[Entity] = []
    said = sentences(graph)
    for at, edge in enumerate(graph.edges):
        facts, here = edge.attributes, f"#edge-{at}"
        action: Entity = {"@id": here, "@type": "CreateAction", "instrument": {"@id": tool}}
        action |= {"object": _to(number[edge.parent]), "result": _to(number[edge.child])}
        if facts.get("kind"):
            action["name"] = f"{operation(facts)}, {both(facts)}"
            action["description"] = said[edge.parent, edge.child]
        names = [name for name in ("kind", "adjacency", "arrow", "coefficient") if facts.get(name) is not None]
        action |= {"additionalProperty": _to(*(f"{here}-{name}" for name in names))} if names else {}
        found += [action, *(_property(f"{here}-{name}", name, facts[name]) for name in names)]
    return found


def to_crate(
    graph: ModelGraph,
    files: Files,
    found: Mapping[str, Any],
    version: str,
    parts: Sequence[str] = (),
) -> str:
    """The metadata of a crate of the files `parts`; `found` is the summary of the result."""
    number = {model: f"#model-{at}" for at, model in enumerate(graph.nodes)}
    licences = found.get("licences", {}).get("declared", {})
    tool = "#mother"
    models = _models(graph, number, files, licences)
    root: Entity = {"@id": "./", "@type": "Dataset", "name": escaped(graph.name), "description": found["findings"]}
    root |= {"datePublished": found["date"], "hasPart": _to(*parts), "mentions": _to(*number.values())}
    about = {"@id": METADATA, "@type": "CreativeWork", "about": {"@id": "./"}, "conformsTo": {"@id": PROFILE}}
    software = {"@id": tool, "@type": "SoftwareApplication", "name": "MoTHer", "softwareVersion": version, "url": HOME}
    kept = [{"@id": name, "@type": "File", "name": name, "encodingFormat": "application/json"} for name in parts]
    content = [about, root, software, *kept, *models, *_edges(graph, number, tool)]
    return json.dumps({"@context": CONTEXT, "@graph": content}, indent=1, ensure_ascii=False) + "\n"
