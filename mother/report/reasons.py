"""Why an edge is there and points as it does: the terms of its probability as sentences, and what would refute them."""

import math
from typing import Any

from mother.graph.certainty import KNOWN, percent, sure
from mother.heritage.relation import ABSENT_PARENT
from mother.report.words import EXACT, READ_OFF

SHOWN = 0.05  # smallest contribution, in log odds, that is told
WHOLE = "log weight"
REST = "rest of the tree"
RULED_OUT = {  # term -> why it rules an edge out
    "quantized": "both are quantized, and the codes of {child} are not made from those of {parent}",
    "circle": "{parent} would descend from itself, by what made it exactly",
    "absent original": "{child} was quantized from a model that is not there, as others here were",
}


def log_odds(probability: float | int) -> float:
    """Of a probability, held inside the range that four decimals can tell."""
    inside = min(max(probability, 5e-5), 1 - 5e-5)
    return math.log(inside / (1 - inside))


def arrow_terms(edge: dict[str, Any], evidence: dict[str, Any]) -> dict[str, float]:
    """What each term adds to the log odds that the parent came first; what they leave is the rest of the tree's."""
    forth, back = evidence.get("terms"), evidence.get("terms_back")
    if not forth or not back or forth.get(WHOLE) is None or back.get(WHOLE) is None:
        return {}
    found = {name: value - back[name] for name, value in forth.items() if name not in (WHOLE, "exact relation")}
    whole, arrow = sum(found.values()), edge.get("arrow", 1.0)
    # The probability is kept with four decimals: what lies beyond them is nobody's.
    rest = 0.0 if arrow >= 0.9999 and whole > 9 else log_odds(arrow) - whole
    return {name: value for name, value in (found | {REST: rest}).items() if abs(value) >= SHOWN}


def edge_terms(evidence: dict[str, Any]) -> dict[str, float]:
    """What each term adds to the log weight of this edge against others that the child could have."""
    forth = evidence.get("terms") or {}
    found = {name: value for name, value in forth.items() if name != WHOLE and value is not None}
    return {name: value for name, value in found.items() if abs(value) >= SHOWN}


def _absent_parent(edge: dict[str, Any], evidence: dict[str, Any], parent: str, child: str) -> list[dict[str, Any]]:
    """By how much, and from what, the probability of an edge was lowered for a parent that is not there."""
    value, after = evidence.get("factors", {}).get(ABSENT_PARENT), edge.get("adjacency")
    if not value or after is None:
        return []
    before = min(1.0, after / math.exp(value))
    words = f"{parent} may be a sibling of {child}, and their parent absent: the probability is {after:.4g}"
    told = {"about": "edge", "term": ABSENT_PARENT, "log_odds": round(value, 2), "before": round(before, 4)}
    return [told | {"after": after, "words": f"{words}, and was {before:.4g} by the terms above"}]


def ruled_out(evidence: dict[str, Any], one: str, other: str) -> list[dict[str, Any]]:
    """What rules out that one of two models without an edge is made from the other, as `reasons` tells it.

    And which of two twins a model was made from.
    """
    found = []
    for way, parent, child in (("", one, other), ("_back", other, one)):
        terms = evidence.get(f"terms{way}", {}) | evidence.get(f"factors{way}", {})
        for term, words in RULED_OUT.items():
            if term in terms and terms[term] is None:
                told = f"{child} is not made from {parent}: {words.format(parent=parent, child=child)}"
                found.append({"about": "edge", "term": term, "log_odds": None, "words": told})
        if abs(value := terms.get("twins") or 0.0) >= SHOWN:
            words = _edge_words("twins", value, evidence, parent, child)
            found.append({"about": "edge", "term": "twins", "log_odds": round(value, 2), "words": words})
    return found


def _arrow_words(name: str, value: float, evidence: dict[str, Any], parent: str, child: str) -> str:
    newer, older = (child, parent) if value > 0 else (parent, child)
    if name == "newness":
        figures = f"newness {evidence.get('newness', 0):+.2f}, t = {evidence.get('newness_t', 0):+.1f}"
        return f"what differs was added by {newer} ({figures})"
    if name == "exact arrow":
        if evidence.get("cast"):
            return f"the finer one's numbers lie about the coarser one's as if {newer} came last"
        if evidence.get("rounding"):
            return f"the rounding errors in the difference have the grain of {newer}'s numbers"
        return f"rows of embeddings of {newer} are those of {older}, shrunk by one factor"
    if name == REST:
        return f"it follows from the rest of the tree, which fits better with {older} first"
    if name == "between":
        return f"fewer third models lie between if {older} came first"
    if name == "hub":
        return f"others hang from {older}, too"
    if name == "batches":
        return f"the batch norms of {newer} counted more batches than those of {older}"
    if name == "elder":
        return f"more models descend from {older}, if it came first, than from {newer}, if that did"
    if name == "altered":
        return f"{newer} was pruned, quantized, cast or merged, and few models are trained from such"
    if name == "equality":
        return f"{older} has more entries equal to those of another model than {newer} has"
    if name == "twins":
        return f"the rounding that {newer} holds, or its type, tells that {older} is the twin that it was made from"
    return f"{name} fits better with {older} first"


def _edge_words(name: str, value: float, evidence: dict[str, Any], parent: str, child: str) -> str:
    if name == "between":
        third = evidence.get("third")
        return f"{third} lies between the two, as far as can be seen" if third else "another model may lie between"
    words = {
        "distance": f"their distance, {evidence['distance']:.3g}"
        if evidence.get("distance") is not None
        else "distance",
        "equality": f"equal entries, against those of the model that shares most with {child}",
        "flatness": "their difference lies in few directions, against those to other models",
        "altered": f"{parent} was pruned, quantized, cast or merged, and few models are trained from such",
        "newness": f"{child} has what is new" if value > -0.7 else f"{child} does not have what is new",
        "exact arrow": "rounding, or shrunk rows, tell which came last",
        "not looked at": "the two are far apart",
        "private": f"{parent} and {child} each have something of their own that others lack, as siblings do",
        "hub": f"others hang from {parent}",
        "twins": f"of {parent} and its twin, which differ by rounding alone, {child} has the rounding or the type of "
        f"{'this one' if value > 0 else 'the other one'}",
        "batches": f"batch norms of {child} counted {'more' if value > -0.7 else 'fewer'} batches than {parent}'s",
        "elder": f"{'more' if value > 0 else 'fewer'} models stand on the side of {parent} than on that of {child}",
    }
    return words.get(name, name)


def _names(edge: dict[str, Any], parent: str, child: str) -> dict[str, str]:
    """What stands in for the words in braces of EXACT and READ_OFF."""
    but = f" (but {edge['except']})" if "except" in edge else ""
    names = {"parent": parent, "child": child, "dtype": edge.get("dtype", "a coarser type"), "but": but}
    return names | {"parents": " and ".join(edge.get("parents", [parent]))}


def reasons(edge: dict[str, Any], evidence: dict[str, Any], parent: str, child: str) -> list[dict[str, Any]]:
    """The terms that made both probabilities of an edge, of each the strongest first.

    Each says what it is `about` ("edge" or "arrow"), its `term`, what it adds in `log_odds` (of an edge: to the log
    weight that it has against others; null where it settles the matter alone) and the `words` for it. The last may
    have multiplied the probability `before`, which the others give, by what `log_odds` is the log of, to that `after`.
    """
    kind = edge.get("kind")
    names = _names(edge, parent, child)
    if kind in READ_OFF:
        return [{"about": "edge", "term": "exact relation", "log_odds": None, "words": READ_OFF[kind].format(**names)}]
    found = []
    for about, terms, words in (
        ("arrow", arrow_terms(edge, evidence), _arrow_words),
        ("edge", edge_terms(evidence), _edge_words),
    ):
        for name, value in sorted(terms.items(), key=lambda term: -abs(term[1])):
            told = words(name, value, evidence, parent, child)
            found.append({"about": about, "term": name, "log_odds": round(value, 2), "words": told})
    return found + _absent_parent(edge, evidence, parent, child)


def strongest(edge: dict[str, Any], evidence: dict[str, Any], parent: str, child: str) -> str:
    """One sentence: by what the arrow is known, or that nothing tells it."""
    told = [one for one in reasons(edge, evidence, parent, child) if one["about"] == "arrow"]
    for_it = [one for one in told if one["log_odds"] > 0]
    if edge.get("kind") in READ_OFF or edge.get("kind") is None or not told:
        return ""
    if edge.get("arrow", 1.0) < KNOWN or not for_it:
        return "Nothing tells clearly which came first."
    return f"Which came first: {for_it[0]['words']}."


def wrong_if(edge: dict[str, Any], evidence: dict[str, Any], parent: str, child: str) -> list[str]:
    """What would have to be wrong for an edge to be wrong: of the arrow what decided it, then of the edge."""
    kind = edge.get("kind")
    names = _names(edge, parent, child)
    if kind in EXACT:
        third = "Or they all come from one more model, absent from this collection, in the same way."
        return [EXACT[kind].format(**names), third]
    if kind is None:
        return ["The models beside this hidden ancestor would have to share by chance what they share."]
    if kind == "adapter" and edge.keys() & {"inferred", "tested"}:
        return [_adapter_wrong_if(edge, parent, child)]
    missing = (
        f"Edge: a model between the two, or a common parent, would have to be missing here, or {child} be nearer to "
        f"another model than to its own parent (that they are parent and child is {sure(edge.get('adjacency', 1.0))})."
    )
    return [_arrow_wrong_if(edge, evidence, parent, child), missing]


def _adapter_wrong_if(edge: dict[str, Any], parent: str, child: str) -> str:
    """What would have to be wrong for an adapter to have another base."""
    if edge.get("adjacency") == 1:
        return f"Edge: a model here is {parent} with {child}, up to rounding; this would have to be chance."
    if edge.get("tested") is False:
        return f"Edge: {child} says that {parent} is its base, and its weights do not tell; what it says may be wrong."
    return f"Edge: the base is told by the update of {child}; a relative of {parent}, here or absent, may be it."


def _arrow_wrong_if(edge: dict[str, Any], evidence: dict[str, Any], parent: str, child: str) -> str:
    terms, arrow = arrow_terms(edge, evidence), edge.get("arrow", 1.0)
    if arrow < KNOWN:
        return f"Arrow: which came first is open ({percent(arrow)} for {parent}); the other way is no surprise."
    first = max(terms, key=lambda name: terms[name], default=REST)
    if first == "exact arrow" and evidence.get("cast"):
        return (
            "Arrow: the two are stored in different types, and the finer one's numbers lie about the coarser one's as "
            f"if {child} came last (log likelihood ratio {abs(evidence['cast']):.0f}); this would have to be chance, "
            f"or {child} be made by rounding a model that {parent} comes from, too, and that is absent."
        )
    if first == "exact arrow" and evidence.get("rounding"):
        return (
            f"Arrow: the rounding errors left in the difference have the grain of {child}'s numbers (log likelihood "
            f"ratio {abs(evidence['rounding']):.0f}); they would have to have it by chance, or the update have been "
            "applied in other arithmetic."
        )
    if first == "exact arrow":
        return "Arrow: rows of embeddings shrank by one common factor; weight decay would have to have run backwards."
    if first == "newness":
        return (
            f"Arrow: what changed is new in {child} (mean newness {evidence.get('newness', 0):.2f}, t = "
            f"{evidence.get('newness_t') or 0:.1f} over layers); training would have to have removed directions from "
            f"{child} to make {parent}, as strong weight decay or averaging can."
        )
    if first == "batches":
        return (
            f"Arrow: the batch norms of {child} counted more batches than those of {parent}; they would have to have "
            "counted from another start, or been written by hand."
        )
    if first == "elder":
        return (
            f"Arrow: more models stand on the side of {parent}, and who came first has mostly more descendants; "
            f"{parent} would have to have been made from {child} all the same."
        )
    return (
        "Arrow: it follows from the rest of the tree; the family would have to have another root, or another "
        "edge on the way to it be wrong."
    )
