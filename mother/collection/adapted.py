"""Adapters whose base is among the models: one edge each, and what the weights say of the base that is named.

That an adapter fits its base by shape says nothing: it fits all models of the architecture, and with any of them it is
that model with an update of low rank. Whose it is is asked of the update alone (`whose.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mother.collection.find import Source
from mother.collection.lone import POSSIBLE
from mother.collection.merged_edges import hang_merged, turned_way, without_child
from mother.collection.whose import ABSENT, ERROR, Answer, Candidates
from mother.errors import InputError
from mother.graph.model_graph import Edge, ModelGraph, standing_for
from mother.io.spool import Spool

CLAIMED = 9.0  # by eye: how much more probable the named base is than each relative before the weights are looked at
UNTESTED = 0.9  # by eye: probability of a base that is named, and that the weights say nothing of
RELATIVES = 20  # budget: of the named base, and roots of other families, that the adapter is held against
CHANCE = 1.64  # score below which the named base counts as one that the update has nothing to do with


@dataclass(frozen=True)
class Base:
    """Which base an adapter has, and how that is known."""

    model: str
    probability: float
    tested: bool  # whether the weights say that the update belongs to the family of this base
    others: tuple[str, ...] = ()
    excluded: str = ""  # why the base that is named is none
    fit: float | None = None  # score of the base


def weighed(answer: Answer | None, claimed: str, family_of: Mapping[str, Any]) -> Base:
    """The base of an adapter that names one, by what its weights say; `family_of` gives the tree of each model."""
    if answer is None:
        return Base(claimed, UNTESTED, False)
    scores = {one.model: one.z for one in answer.candidates if one.z is not None}
    fit = scores.get(claimed)
    if any(base == claimed for base, _ in answer.twins):
        return Base(claimed, 1.0, True, fit=fit)
    related = set(answer.family)
    if not related or claimed not in scores:
        return Base(claimed, UNTESTED, False, fit=fit)
    if claimed in related:
        # Twins of others tell what was merged into whom, not what an adapter was trained on.
        chances = {one.model: one.probability for one in answer.candidates if one.related}
        stands = next((one.form_of for one in answer.candidates if one.model == claimed), "")
        if stands:  # of the forms of one model the one that is named
            chances |= {claimed: chances[stands], stands: 0.0}
        if sum(chances.values()) == 0:
            chances = dict.fromkeys(chances, 1.0)
        weights = {model: chance * (CLAIMED if model == claimed else 1.0) for model, chance in chances.items()}
        total = sum(weights.values()) + ABSENT / (1 - ABSENT) * sum(chances.values())
        found = sorted(
            ((weight / total, model) for model, weight in weights.items()), key=lambda one: (-one[0], one[1])
        )
        probability, model = found[0]
        others = tuple(other for chance, other in found[1:] if chance >= POSSIBLE)
        return Base(model, probability, True, others, fit=scores[model])
    if any(family_of[model] == family_of[claimed] for model in related) or scores[claimed] > CHANCE:
        return Base(claimed, UNTESTED, False, tuple(sorted(related)), fit=fit)
    best = next(one for one in answer.candidates if one.related)
    excluded = (
        f"its update belongs to the family of {best.model} (z = {best.z:.1f}, by chance once in "
        f"{1 / answer.error:,.0f}), and has nothing to do with {claimed} (z = {scores[claimed]:.1f})"
    )
    others = tuple(one.model for one in answer.candidates if one is not best and one.probability >= POSSIBLE)
    return Base(best.model, best.probability, True, others, excluded, best.z)


def _near(graph: ModelGraph, base: str, adapters: set[str]) -> list[str]:
    """Models that an adapter is held against: its base, relatives of it, and a root of each other family."""
    tree, models = graph.nodes[base]["tree"], [m for m, facts in graph.nodes.items() if not facts.get("hidden")]
    models = [model for model in models if model not in adapters and model != base]
    relatives = [model for model in models if graph.nodes[model]["tree"] == tree]
    roots: dict[str, str] = {}
    for model in sorted(models, key=lambda model: -float(graph.nodes[model].get("root", 0.0))):
        if graph.nodes[model]["tree"] != tree:
            roots.setdefault(graph.nodes[model]["tree"], model)
    return [base, *relatives[:RELATIVES], *list(roots.values())[:RELATIVES]]


def _answer(
    graph: ModelGraph, one: Source, base: str, known: Mapping[str, Source], error: float, spool: Spool
) -> Answer | None:
    """What the weights say of the base of an adapter; None where they say nothing, or cannot be read again."""
    adapters = {source.id for source in known.values() if source.base is not None}
    near = [known[model] for model in _near(graph, base, adapters) if model in known]
    try:
        return Candidates(near, spool).answer(replace(one, base=None), error, base)
    except InputError:
        return None


def check_bases(graph: ModelGraph, sources: Sequence[Source], error: float, spool: Spool | None = None) -> ModelGraph:
    """The graph with each adapter whose base is in it under that base, or under the one that its weights name."""
    spool = spool or Spool()
    known = {source.id: source for source in sources}
    named = {source.location: source.id for source in sources}
    place = standing_for(graph.nodes)
    adapted = [one for one in sources if one.base is not None and one.id in graph.nodes and one.base in named]
    adapted = [one for one in adapted if named[one.base] in place and place[named[one.base]] != one.id]
    for one in adapted:
        base = place[named[one.base]]
        trees = {model: facts["tree"] for model, facts in graph.nodes.items()}
        level = min(error, ERROR) / len(adapted)
        answer = _answer(graph, one, base, known, level, spool)
        found = weighed(answer, base, trees)
        if found.excluded:  # of the family that it belongs to one model was asked
            answer = _answer(graph, one, found.model, known, level, spool) or answer
            found = _within(answer, found)
        graph = hang_merged(_hung(graph, one.id, base, found, answer), answer)
    return graph


def _within(answer: Answer, found: Base) -> Base:
    """The base of an adapter that names another one, among the family that its update belongs to."""
    first, *more = [one for one in answer.candidates if one.related] or [None]
    if first is None:
        return found
    others = tuple(one.model for one in more if one.probability >= POSSIBLE)
    return replace(found, model=first.model, probability=first.probability, others=others, fit=first.z)


def _hung(graph: ModelGraph, model: str, named: str, base: Base, answer: Answer | None) -> ModelGraph:
    """The graph with an adapter under its base. What hung between the two the other way round goes to those above."""
    own = [edge for edge in graph.edges if edge.child == model]
    edges = turned_way([edge for edge in graph.edges if edge.child != model], model, base.model, own)
    nodes = dict(graph.nodes)
    if nodes[base.model]["tree"] != nodes[model]["tree"]:  # what was made from it hangs from the base that is named
        edges = [replace(edge, parent=named) if edge.parent == model else edge for edge in edges]
    facts = next((edge.attributes for edge in own if edge.parent == base.model), {})
    facts = {key: value for key, value in facts.items() if key not in ("or", "direction", "ranks")}
    facts |= {"kind": "adapter", "adjacency": round(base.probability, 4), "arrow": 1.0, "direction": "known"}
    facts |= {"tested": base.tested}
    if answer is not None and answer.ranks:
        facts["rank"] = answer.ranks[-1]
    if base.fit is not None:
        facts["fit"] = round(base.fit, 2)
    if base.others:
        facts["or"] = list(base.others)
    nodes[model] = {**nodes[model], **{key: nodes[base.model][key] for key in ("tree", "group") if key in nodes[named]}}
    nodes[model]["root"] = 0.0
    notes = list(graph.notes)
    if base.excluded:
        nodes[model]["not_from"] = {named: base.excluded}
        notes.append(f"{model} names {named} as its base, but {base.excluded}")
    elif not base.tested:
        notes.append(f"{model}: the base is {named}, as it says; the weights do not tell")
    notes += answer.merged if answer is not None else []
    graph = replace(graph, nodes=nodes, edges=(*edges, Edge(base.model, model, facts)), notes=tuple(notes))
    for edge in own:
        if edge.parent != base.model and nodes[edge.parent].get("hidden"):
            graph = without_child(graph, edge.parent)
    return graph
