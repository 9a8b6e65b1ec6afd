"""What a search says of one model of an index, by its sketch or by its signature alone."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from mother.evidence.first_pass import COMPARABLE
from mother.evidence.matching import entries
from mother.evidence.sketch import Sketch
from mother.graph.certainty import KNOWN
from mother.heritage.trees import Heritage
from mother.index.others import Shapes
from mother.index.traced import odds, pair_facts

NOT_COMPARABLE, UNRELATED = "not comparable", "unrelated"
# The verdicts, and in which order they are told.
ORDER = {"copy": 0, "parent": 1, "child": 1, "parent or child": 1, "related": 2, NOT_COMPARABLE: 3, UNRELATED: 4}


@dataclass(frozen=True)
class Relative:
    """What an index says of one model and the one that is looked for.

    verdict      one of ORDER; "parent or child": the arrow is not known; "related": neither, or not told; "not
                 comparable": no sign that they are, and too little of the two was compared to call them unrelated
    probability  that the two are parent and child, whichever; arrow: that it points as the verdict says, given that
    by           "sketch", or "signature" where no more could be had
    compared     share of all weights of the larger of the two, embeddings and heads aside, that this speaks of
    """

    model: str
    location: str
    verdict: str
    kind: str | None
    probability: float | None
    arrow: float | None
    z: float
    distance: float  # of signatures of length 1
    by: str
    compared: float
    facts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def share_compared(sketch: Sketch, shapes: Shapes, row: dict[str, Any]) -> float:
    """`compared` of a Relative, of a model under the names of a group and one of this group, by its row.

    As FirstPass.compared of their sketches.
    """
    common = entries(shape for layer, shape in sketch.shapes.items() if shapes.get(layer) == shape)
    facts = json.loads(row["facts"] or "{}")
    sizes = [sketch.facts.entries, sketch.facts.weights, facts.get("entries", 0), facts.get("weights", 0)]
    return common / max(*sizes, entries(shapes.values()), 1)


def by_signature(row: dict[str, Any], related: bool) -> Relative:
    """What signatures alone say of the model and a row of the index, with its `compared`."""
    verdict = "related" if related else UNRELATED if row["compared"] >= COMPARABLE else NOT_COMPARABLE
    compared = round(row["compared"], 4)
    return Relative(row["id"], row["location"], verdict, None, None, None, 0.0, 0.0, "signature", compared, {})


def told(heritage: Heritage, own: int, other: int, row: dict) -> Relative:
    """What a traced heritage says of the model and another one."""
    models = heritage.first_pass.models
    here, there = heritage.aliases.get(own, own), heritage.aliases.get(other, other)
    compared = round(heritage.first_pass.compared(own, other), 4)
    base = Relative(row["id"], row["location"], "copy", "copy", 1.0, None, 0.0, 0.0, "sketch", compared, {})
    if here == there:
        return base
    cluster = next(one for one in heritage.clusters if here in one.members)
    if there not in cluster.members:
        if not heritage.first_pass.comparable(own, other):
            return replace(base, verdict=NOT_COMPARABLE, kind=None, probability=None)
        return replace(base, verdict=UNRELATED, kind=None, probability=0.0)
    up, down = odds(cluster, there, here), odds(cluster, here, there)
    forth, back = up[0], down[0]
    relation = {"parent": heritage.relations.get(here), "child": heritage.relations.get(there)}
    for verdict, end in (("parent", there), ("child", here)):
        found = relation[verdict]
        if found is not None and end in found.parents:
            return replace(base, verdict=verdict, kind=found.kind, arrow=1.0, facts=dict(found.attributes))
    total, verdict = min(1.0, forth + back), "parent" if forth >= back else "child"
    arrow = max(forth, back) / max(forth + back, 1e-300)
    if total < 0.5:
        return replace(base, verdict="related", kind=None, probability=round(total, 4), arrow=round(arrow, 4))
    ends = (models[there], models[here]) if verdict == "parent" else (models[here], models[there])
    facts = pair_facts(heritage, [ends]).get(ends, {})
    said = verdict if arrow >= KNOWN else "parent or child"
    base = replace(base, probability=round(total, 4), arrow=round(arrow, 4))
    return replace(base, verdict=said, kind=facts.pop("kind", None), facts=facts)
