"""For other tools: recipes of merges for mergekit, and patches of model cards that declare nothing."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

import yaml

from mother.collection.claims import CARD
from mother.graph.exports import base_kind
from mother.graph.model_graph import Edge, ModelGraph

SURE = 0.95  # least probability of edge and arrow that a card is to declare
RELATION = {
    "fine-tune": "finetune",
    "lora": "finetune",
    "quantize": "quantized",
    "merge": "merge",
}  # of the Hub's words


def file_name(model: str, at: int) -> str:
    """A name for a file about a model, which stays inside its folder and is no other model's."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", model).strip("._")[:80] or "model"
    return f"{at:04}-{plain}"


def _into(graph: ModelGraph) -> dict[str, list[Edge]]:
    found: dict[str, list[Edge]] = {}
    for edge in sorted(graph.edges, key=lambda edge: (edge.child, edge.parent)):
        if edge.attributes.get("kind"):
            found.setdefault(edge.child, []).append(edge)
    return found


def merge_recipes(graph: ModelGraph) -> tuple[dict[str, str], list[str]]:
    """A mergekit configuration for each merge, by name of the file; and merges whose coefficients are not known.

    The coefficients are those found, so nothing is normalised.
    """
    recipes, unknown = {}, []
    for at, (child, edges) in enumerate(_into(graph).items()):
        if base_kind(edges[0].attributes.get("kind")) != "merge":
            continue
        shares = {edge.parent: edge.attributes.get("coefficient") for edge in edges}
        if any(share is None for share in shares.values()):
            unknown.append(child)
            continue
        content: dict[str, Any] = {
            "merge_method": "linear",
            "models": [
                {"model": parent, "parameters": {"weight": float(share)}}  # type: ignore[arg-type]
                for parent, share in sorted(shares.items(), key=lambda one: (-float(one[1] or 0), one[0]))
            ],
            "parameters": {"normalize": False},
        }
        recipes[f"{file_name(child, at)}.yaml"] = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return recipes, unknown


def card_facts(graph: ModelGraph, model: str) -> dict[str, Any]:
    """`base_model` and, where the Hub has a word, `base_model_relation` of a model; {} where its origin is not sure."""
    edges = _into(graph).get(model, [])
    if not edges or min(min(e.attributes.get("adjacency", 1), e.attributes.get("arrow", 1)) for e in edges) < SURE:
        return {}
    if any(edge.attributes.get("direction") == "unknown" for edge in edges):
        return {}
    kind = str(edges[0].attributes["kind"])
    relation = "adapter" if kind.split()[0].lower() == "adapter" else RELATION.get(base_kind(kind))
    found: dict[str, Any] = {"base_model": [edge.parent for edge in edges]}
    return found | ({"base_model_relation": relation} if relation else {})


def card_patch(facts: Mapping[str, Any], card: str | None, name: str = CARD) -> str:
    """A patch that writes facts into the front matter of a card, or makes a card where there is none."""
    lines = yaml.safe_dump(dict(facts), sort_keys=False, allow_unicode=True).splitlines(keepends=True)
    old = (card or "").splitlines(keepends=True)
    if old and old[0].rstrip() == "---":
        new = [old[0], *lines, *old[1:]]
    else:
        new = ["---\n", *lines, "---\n", *old]
    begin = f"a/{name}" if card is not None else "/dev/null"
    told = list(difflib.unified_diff(old, new, begin, f"b/{name}"))
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in told)
