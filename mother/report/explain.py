"""Why an edge is there, or is not: the evidence on two models, and what would have to be wrong for it to be wrong."""

from typing import Any

import networkx as nx
import numpy as np
import torch

from mother.collection.workspace import ALIKE, Group, Recovered
from mother.errors import InputError
from mother.evidence.direction import cast_direction
from mother.evidence.edges import DECISIVE, decay_direction, pooled_newness
from mother.evidence.facts import common_grid, mantissa
from mother.evidence.second_pass import SecondPass, is_lora, take_second_pass
from mother.heritage.typed_graph import KNOWN
from mother.report.terms import edge_terms, terms_text


def _pairs_of(group: Group, i: int, j: int) -> tuple[SecondPass, int]:
    """Measurements of a pair and its number in them; a pair that was not looked at is measured now."""
    second_pass = group.heritage.second_pass
    p = second_pass.number(i, j)
    if p is not None:
        return second_pass, p
    both = [group.sketches[min(i, j)], group.sketches[max(i, j)]]
    facts = [one.facts for one in both]
    grids, bits = [common_grid(one.grids) for one in facts], [mantissa(one) for one in facts]
    return take_second_pass(both, [(0, 1)], [[], []], grids, bits, torch.device("cpu")), 0


def _cast_direction(group: Group, second_pass: SecondPass, p: int, i: int, j: int) -> float | None:
    """Log likelihood ratio that j came last, by cast residuals; None for models of one type."""
    if not second_pass.cast[p].any():
        return None
    facts = group.heritage.first_pass.facts
    ratio = cast_direction(second_pass.cast[p])
    return round(ratio if mantissa(facts[i]) > mantissa(facts[j]) else -ratio, 1) + 0.0


def _node(recovered: Recovered, model: str) -> str:
    """The node that stands for a model: itself, or the one that it is a copy of."""
    for key, facts in recovered.graph.nodes.items():
        if key == model or model in facts.get("aliases", ()):
            return key
    return model


def pair_evidence(group: Group, parent: str, child: str) -> dict[str, Any]:
    """The figures behind a pair of one group, read as parent -> child.

    terms          what each evidence added to the log weight of this edge (`mother/heritage/terms.py`), and their sum
    third          the model that fits best between the two, which the term "between" is about
    newness        mean over layers in -1..1 and its t statistic: positive where what changed is new in the child
    rounding       log likelihood ratio that the child was rounded last; null where the update has no low rank
    cast           log likelihood ratio that the child came last, by how the finer model's weights lie about the
                   coarser's; null where both have one type
    decay          1 where rows of the child's tables are the parent's, shrunk by one factor; -1 the reverse
    equal          share of the compared entries that are equal
    layers         of each matrix that changed: share of the squared change, rank ("full" where it is), newness,
                   rounding
    """
    heritage = group.heritage
    place = {model: at for at, model in enumerate(heritage.first_pass.models)}
    i, j = place[parent], place[child]
    first_pass = heritage.first_pass
    distance = float(group.distances()[i, j])
    found: dict[str, Any] = {
        "relatedness": round(float(first_pass.relatedness[i, j]), 2),
        "distance": round(distance, 6) if np.isfinite(distance) else None,
        "compared": round(first_pass.compared(i, j), 4),
    }
    found |= edge_terms(heritage, i, j)
    if not np.isfinite(distance):
        return found
    second_pass, p = _pairs_of(group, i, j)
    sign = 1 if i < j else -1
    arrays = {name: values[:, p] for name, values in second_pass.arrays.items()}
    changed = arrays["energy"] > 0
    risen = changed & (arrays["rank"] > 0)
    mean, t = pooled_newness(arrays["newness"][risen], arrays["energy"][risen])
    low = is_lora(second_pass, p)
    total = max(float(arrays["energy"].sum()), 1e-300)
    found |= {
        "newness": round(sign * mean, 4),
        "newness_t": round(sign * t, 2),
        "rounding": round(sign * float(arrays["rounding"].sum()), 1) if low else None,
        "cast": _cast_direction(group, second_pass, p, i, j),
        "decay": sign * decay_direction(first_pass.facts[min(i, j)], first_pass.facts[max(i, j)]),
        "equal": round(float(arrays["equal"].sum() / max(1.0, arrays["entries"].sum())), 4),
        "layers_changed": int(changed.sum()),
        "layers_compared": int((arrays["entries"] > 0).sum()),
        "layers": [
            {
                "layer": str(second_pass.layers[row]),
                "change": round(float(arrays["energy"][row]) / total, 4),
                "rank": "full" if arrays["full"][row] else int(arrays["rank"][row]),
                "newness": round(sign * float(arrays["newness"][row]), 3),
                "rounding": round(sign * float(arrays["rounding"][row]), 1) + 0.0 if low else None,
            }
            for row in np.flatnonzero(changed)
        ],
    }
    return found


EXACT = {
    "cast": "every tensor of {child}, digest by digest, would have to be {parent}'s rounded to {dtype} by chance.",
    "prune": "all entries of the two that differ would have to be zero in {child} by chance.",
    "quantize": "the differences would have to lie within half a step of {child}'s grid by chance, in most layers.",
    "merge": "{child} would have to be a combination of {parents}, up to rounding, by chance.",
    "copy": "the digests of all tensors would have to be equal by chance.",
}


def wrong_if(edge: dict[str, Any], evidence: dict[str, Any], parent: str, child: str) -> list[str]:
    """What would have to be wrong for an edge to be wrong, strongest support first. One sentence each."""
    kind = edge.get("kind")
    names = {"parent": parent, "child": child, "dtype": edge.get("dtype", "a coarser type")}
    names["parents"] = " and ".join(edge.get("parents", [parent]))
    if kind in EXACT:
        return [
            EXACT[kind].format(**names),
            "Or both come from a third model, absent from this collection, in the same way.",
        ]
    found = []
    if kind is None:
        return [
            "The models beside this hidden ancestor would have to share by chance what they all do not have of one."
        ]
    arrow, adjacency = edge.get("arrow", 1.0), edge.get("adjacency", 1.0)
    rounding, t = evidence.get("rounding"), evidence.get("newness_t") or 0.0
    if abs(evidence.get("cast") or 0.0) > DECISIVE:
        found.append(
            "Arrow: the two are stored in different types, and the finer one's numbers lie about the coarser one's as "
            f"if {child if evidence['cast'] > 0 else parent} came last (log likelihood ratio "
            f"{abs(evidence['cast']):.0f}); they would have to lie so by chance."
        )
    elif rounding is not None and abs(rounding) > DECISIVE:
        side = child if rounding > 0 else parent
        found.append(
            f"Arrow: the rounding errors left in the difference have the grain of {side}'s numbers (log likelihood "
            f"ratio {abs(rounding):.0f}); they would have to have it by chance, or the update have been applied in "
            "other arithmetic."
        )
    elif evidence.get("decay"):
        found.append(
            "Arrow: rows of embeddings shrank by one common factor; weight decay would have to have run backwards."
        )
    elif arrow < KNOWN:
        found.append(
            f"Arrow: it is not known (probability {arrow:.2f}); what changed is hardly newer in one than in the other."
        )
    else:
        found.append(
            f"Arrow: what changed is new in {child} (mean newness {evidence.get('newness', 0):.2f}, t = {t:.1f} over "
            f"layers); training would have to have removed directions from {child} to make {parent}, as strong "
            "weight decay or averaging can."
        )
    found.append(
        f"Edge: a model between the two, or a common parent, would have to be missing here, or {child} be nearer to "
        f"another model than to its own parent (probability of the edge {adjacency:.2f})."
    )
    return found


def explain(recovered: Recovered, one: str, other: str) -> dict[str, Any]:
    """All that is known of two models of a result: whether they are related, how, which came first, how sure.

    Raises InputError where one of them is not in it.
    """
    groups = [recovered.group_of(model) for model in (one, other)]
    result: dict[str, Any] = {"models": [one, other]}
    if one == other:
        raise InputError(f"{one} is one model: name two.")
    if groups[0] is not groups[1]:
        return result | {"related": None, "summary": "They cannot be compared: their weights have other shapes."}
    group, nodes = groups[0], [_node(recovered, model) for model in (one, other)]
    graph = recovered.graph.to_networkx()
    if nodes[0] == nodes[1]:
        return result | {"related": True, "summary": f"Their weights are equal: {one} and {other} are copies."}
    if graph.nodes[nodes[0]]["tree"] != graph.nodes[nodes[1]]["tree"]:
        found = pair_evidence(group, *nodes)
        z = found["relatedness"]
        if found["compared"] < ALIKE:
            summary = (
                f"They cannot be compared: only {found['compared']:.0%} of their weights have equal names and shapes."
            )
            return result | {"related": None, "summary": summary, "evidence": found}
        summary = (
            f"No sign that they are related: z = {z:.1f} where independent initialisation gives 0 with deviation 1."
        )
        return result | {"related": False, "summary": summary, "evidence": found}
    result |= {"related": True}
    for parent, child in (nodes, nodes[::-1]):
        if graph.has_edge(parent, child):
            return result | _explain_edge(group, graph, parent, child)
    return result | _explain_relatives(group, graph, nodes)


def _explain_edge(group: Group, graph: nx.DiGraph, parent: str, child: str) -> dict[str, Any]:
    """Two models with an edge between them."""
    facts = dict(graph.edges[parent, child])
    if facts["kind"] == "merge":
        facts["parents"] = sorted(graph.predecessors(child))
    evidence = pair_evidence(group, parent, child)
    summary = f"{child} was made from {parent} by {facts['kind']}"
    if facts.get("direction") != "known":
        summary = f"{parent} and {child} are parent and child by {facts['kind']}, but which came first is not known"
    summary += f": edge {facts['adjacency']:.2f}, arrow {facts['arrow']:.2f}."
    wrong = wrong_if(facts, evidence, parent, child)
    ends = {"parent": parent, "child": child, "edge": facts}
    return ends | {"summary": summary, "evidence": evidence, "wrong_if": wrong}


def _explain_relatives(group: Group, graph: nx.DiGraph, nodes: list[str]) -> dict[str, Any]:
    """Two models of one tree without an edge between them."""
    for parent, child in (nodes, nodes[::-1]):
        if nx.has_path(graph, parent, child):
            path = nx.shortest_path(graph, parent, child)
            summary = f"{child} descends from {parent}: {' -> '.join(path)}."
            break
    else:
        parent, child = nodes
        path = nx.shortest_path(graph.to_undirected(as_view=True), *nodes)
        above = next((model for model in path if {*path} <= {model, *nx.descendants(graph, model)}), None)
        summary = f"They are relatives, neither of the other: {' - '.join(path)}"
        summary += f"; both come from {above}." if above else "."
    arrows = [
        graph.edges[ends].get("arrow", 1.0)
        for pair in zip(path, path[1:])
        for ends in (pair, pair[::-1])
        if graph.has_edge(*ends)
    ]
    if min(arrows) < KNOWN:
        summary += f" An arrow on the way is not known (probability {min(arrows):.2f})."
    adjacency = group.adjacency(*nodes)
    found = {"path": path, "summary": summary, "evidence": pair_evidence(group, *nodes)}  # as they were named
    return found | {"adjacency": round(adjacency, 4) if adjacency is not None else None}


def explain_text(found: dict[str, Any], most: int = 12) -> str:
    """One screen of text."""
    lines = [" and ".join(found["models"]), found["summary"]]
    if "adjacency" in found:
        lines.append(f"Probability that they are parent and child: {found['adjacency'] or 0:.2f}.")
    facts = {
        k: v
        for k, v in found.get("edge", {}).items()
        if k not in ("kind", "adjacency", "arrow", "direction", "ranks", "parents")
    }
    if facts:
        lines.append("Edge: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items()) + ".")
    evidence = found.get("evidence")
    if evidence:
        distance = "none in common" if evidence["distance"] is None else f"{evidence['distance']:.4g}"
        lines += [
            "",
            f"relatedness   z = {evidence['relatedness']:.1f}  "
            "(0 with deviation 1 for models initialised independently)",
        ]
        compared = f"{100 * evidence['compared']:.0f} % of the weights"
        lines.append(f"distance      {distance}  (0: equal; about 1.4: unrelated), on {compared}")
    if evidence and "newness" in evidence:
        changed = f"{evidence['layers_changed']} of {evidence['layers_compared']} matrices differ"
        lines.append(f"equal entries {100 * evidence['equal']:.1f} %; {changed}")
        first, second = (found["parent"], found["child"]) if "parent" in found else found["models"]
        newness = f"{evidence['newness']:+.3f}, t = {evidence['newness_t']:+.1f}"
        lines.append(f"newness       {newness}  (positive: what differs is new in {second})")
        if evidence["rounding"] is not None:
            ratio = f"{evidence['rounding']:+.1f}"
            lines.append(f"rounding      {ratio}  (log likelihood ratio; positive: {second} was rounded last)")
        if evidence["cast"] is not None:
            lines.append(f"cast          {evidence['cast']:+.1f}  (the same by residuals of a cast)")
        if evidence["decay"]:
            lines.append(f"decay         rows of {second if evidence['decay'] > 0 else first} are shrunk by one factor")
        if "terms" in evidence:
            lines.append(f"log weight    {terms_text(evidence)}  (of {first} -> {second})")
        rows = sorted(evidence["layers"], key=lambda row: -row["change"])
        if rows:
            lines += ["", f"{'matrix':<28} {'change':>7} {'rank':>6} {'newness':>8} {'rounding':>9}"]
        lines += [
            f"{row['layer'][:28]:<28} {100 * row['change']:6.1f}% {row['rank']:>6} {row['newness']:+8.2f} "
            + ("-" if row["rounding"] is None else f"{row['rounding']:+.1f}").rjust(9)
            for row in rows[:most]
        ]
        if len(rows) > most:
            lines.append(f"... and {len(rows) - most} more, in `--json`")
    if found.get("wrong_if"):
        lines += ["", "For this to be wrong:", *(f"- {words}" for words in found["wrong_if"])]
    return "\n".join(lines)
