"""One wording for one probability, one sentence for one edge: the words of reports and explanations."""

from collections.abc import Mapping, Sequence
from typing import Any

from mother.errors import escaped
from mother.graph.certainty import KNOWN, percent, sure
from mother.graph.model_graph import ModelGraph

GLOSSARY = {
    "edge": "that two models are parent and child, in whichever order; its probability asks for no order",
    "arrow": "which of two came first, given that they are parent and child",
    "newness": "what differs between two models was added by one of them: 1 by the second, -1 by the first",
    "log odds": "what a piece of evidence adds: 0 nothing, 1 makes odds 2.7 times as large, negative: against",
    "relatedness": "how far the weights are from independent initialisation: 0 with deviation 1 for unrelated models",
    "distance": "difference of the weights over their size: 0 for equal models, about 1.4 for unrelated ones",
    "family": "all models that are related here; its tree is the likeliest edge by edge, above 200 models as a whole",
    "copy": "a model whose tensors are all equal to another's; shown once, with the number of names",
    "hidden": "a model that is not in this collection, from which those behind it seem to come",
}

LIMITS = (
    "Related means: not initialised independently. It does not say who made a model, or why.",
    "A model that is not in this collection can stand between a parent and a child, or above both.",
    "Only layers of equal shapes are compared: a distilled model has no relatives here. Formats not read are listed.",
    "Probabilities were fitted on small models grown for it. On families unlike those they have been sure and wrong.",
    "Strong weight decay, averaging and training from a pruned model can turn an arrow round.",
)


def operation(edge: Mapping[str, Any]) -> str:
    """How a child was made, in words that follow "by"."""
    kind = edge.get("kind")
    if kind == "lora":
        return f"a {'DoRA' if edge.get('dora') else 'LoRA'} of rank {edge['rank']}" if "rank" in edge else "a LoRA"
    if kind == "adapter":
        return f"training an adapter of rank {edge['rank']}" if "rank" in edge else "training an adapter"
    if kind == "merge":
        return "merging"
    if kind == "cast":
        but = f" ({edge['except']})" if "except" in edge else ""
        return f"a cast to {edge['dtype']}{but}" if "dtype" in edge else "a cast"
    if kind == "quantize":
        how = f" ({edge['format']})" if "format" in edge else ""
        return f"quantizing to {edge['bits']} bits{how}" if "bits" in edge else f"quantizing{how}"
    if kind == "prune":
        return f"pruning to {percent(edge['zeros'])} zeros" if isinstance(edge.get("zeros"), float) else "pruning"
    return "fine-tuning"


def sentence(
    edge: Mapping[str, Any], parent: str, child: str, parents: Sequence[str] = (), absent: bool = False
) -> str:
    """What an edge says, plainly, with both of its probabilities; `absent`: it is the child that is not there."""
    how, edge_is, arrow = operation(edge), edge.get("adjacency", 1.0), edge.get("arrow", 1.0)
    if edge.get("kind") is None and absent:
        first = f" {parent} first: {sure(arrow)}." if arrow < KNOWN else ""
        return f"{child}, which is not in this collection, seems to come from {parent}: {sure(edge_is)}.{first}"
    if edge.get("kind") is None:
        return f"{child} seems to come from {parent}, which is not in this collection: {sure(edge_is)}."
    if edge.get("kind") in EXACT:
        tail = f"It can be read off the numbers, which makes it {sure(edge_is)}."
        if edge.get("or"):
            tail = f"It is {sure(edge_is)} that it was this one, and not {' or '.join(map(str, edge['or']))}."
        source = " and ".join(parents) if edge.get("kind") == "merge" and parents else parent
        return f"{child} was made from {source} by {how}. {tail}"
    if arrow < KNOWN:
        be = "are" if edge_is >= KNOWN else "may be"
        start = f"{parent} and {child} {be} parent and child by {how}; which came first is not known"
        return f"{start}. Parent and child: {sure(edge_is)}. {parent} first: {sure(arrow)}."
    start = (
        f"{child} was made from {parent} by {how}" if edge_is >= KNOWN else f"{child} may come from {parent} by {how}"
    )
    return f"{start}. Parent and child: {sure(edge_is)}. {parent} first: {sure(arrow)}."


def sentences(graph: ModelGraph) -> dict[tuple[str, str], str]:
    """What each edge says, by its ends, of a merge with all its parents; without letters that cannot be shown."""
    parents: dict[str, list[str]] = {}
    for edge in graph.edges:
        parents.setdefault(edge.child, []).append(escaped(edge.parent))
    return {
        (edge.parent, edge.child): sentence(
            edge.attributes,
            escaped(edge.parent),
            escaped(edge.child),
            sorted(parents[edge.child]),
            bool(graph.nodes[edge.child].get("hidden")),
        )
        for edge in graph.edges
    }


EXACT = {
    "cast": "every tensor of {child}, digest by digest, would have to be {parent}'s rounded to {dtype}{but} by chance.",
    "prune": "all entries of the two that differ would have to be zero in {child} by chance.",
    "quantize": "the differences would have to lie within half a step of {child}'s grid by chance, in most layers.",
    "merge": "{child} would have to be a combination of {parents}, up to rounding, by chance.",
    "copy": "the digests of all tensors would have to be equal by chance.",
}
READ_OFF = {
    "cast": "every tensor of {child} is that of {parent}, rounded to {dtype}{but}",
    "prune": "{child} is {parent} with entries set to zero",
    "quantize": "{child} lies on a grid, each entry within half a step of that of {parent}",
    "merge": "{child} is a combination of {parents}, up to rounding",
}
