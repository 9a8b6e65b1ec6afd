"""The evidence on the pairs of a group as arrays, from what was measured (read by `mother/report/kept.py`)."""

import numpy as np
import torch

from mother.collection.workspace import Group, Recovered
from mother.evidence.direction import agreed, cast_direction
from mother.evidence.edges import DECISIVE, decay_direction, pair_newness
from mother.evidence.facts import common_grid, mantissa
from mother.evidence.low_rank import is_lora
from mother.evidence.second_pass import SecondPass, take_second_pass
from mother.heritage.terms import third_between
from mother.report.kept import DECIDED, SCALARS, Evidence, GroupEvidence


def _facts_of_pair(group: Group, second_pass: SecondPass, p: int, i: int, j: int) -> dict[str, float]:
    """The figures of a pair as numbers, for i -> j; those that are not there are nan."""
    facts = group.heritage.first_pass.facts
    arrays = {name: values[:, p] for name, values in second_pass.arrays.items()}
    changed = arrays["energy"] > 0
    mean, t, _ = pair_newness(arrays)
    low, cast = is_lora(second_pass, p), np.nan
    if second_pass.cast[p].any():
        cast = cast_direction(second_pass.cast[p]) * (1 if mantissa(facts[i]) > mantissa(facts[j]) else -1)
    decay = decay_direction(facts[i], facts[j])
    decided = "decay" if decay else ""
    if not np.isnan(cast) and (abs(cast) > DECISIVE or not low):
        decided = "cast"
    elif low:
        decided = "rounding"
    return {
        "newness": mean,
        "newness_t": t,
        "rounding": agreed(arrays["rounding"]) if low else np.nan,
        "cast": cast,
        "decay": decay,
        "equal": float(arrays["equal"].sum() / max(1.0, arrays["entries"].sum())),
        "layers_changed": int(changed.sum()),
        "layers_compared": int((arrays["entries"] > 0).sum()),
        "decided": DECIDED.index(decided),
    }


def _layers(second_pass: SecondPass) -> dict[str, np.ndarray]:
    """Rows of each pair's table, [pair, layer]: share of the squared change, rank (-1: full), newness, rounding."""
    arrays = second_pass.arrays
    total = np.maximum(arrays["energy"].sum(axis=0), 1e-300)
    return {
        "change": (arrays["energy"] / total).T.astype(np.float32),
        "rank": np.where(arrays["full"], -1, arrays["rank"]).T.astype(np.int32),
        "layer_newness": arrays["newness"].T.astype(np.float32),
        "layer_rounding": arrays["rounding"].T.astype(np.float32),
    }


def _terms(group: Group, pairs: list[tuple[int, int]]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Terms of both ways of each pair [pair, way, term], best third model [pair, way], probability [pair, way]."""
    clusters = group.heritage.clusters
    names = list(dict.fromkeys(name for one in clusters for name in one.terms))
    where = {member: (c, at) for c, one in enumerate(clusters) for at, member in enumerate(one.members)}
    terms = np.full((len(pairs), 2, len(names)), np.nan, dtype=np.float32)
    third, probability = (
        np.full((len(pairs), 2), -1, dtype=np.int32),
        np.full((len(pairs), 2), np.nan, dtype=np.float32),
    )
    for p, (i, j) in enumerate(pairs):
        if i not in where or j not in where or where[i][0] != where[j][0]:
            continue
        cluster = clusters[where[i][0]]
        for way, (a, b) in enumerate(((where[i][1], where[j][1]), (where[j][1], where[i][1]))):
            terms[p, way] = [cluster.terms[name][a, b] if name in cluster.terms else 0.0 for name in names]
            probability[p, way] = cluster.probability[a, b]
            found = third_between(cluster.evidence, cluster.coefficients, a, b)
            third[p, way] = -1 if found is None else cluster.members[found]
    return names, {"terms": terms, "third": third, "probability": probability}


def _measure(group: Group, i: int, j: int) -> SecondPass:
    """Measurements of a pair that was not looked at."""
    both = [group.sketches[i], group.sketches[j]]
    facts = [one.facts for one in both]
    grids, bits = [common_grid(one.grids) for one in facts], [mantissa(one) for one in facts]
    return take_second_pass(both, [(0, 1)], [[], []], grids, bits, torch.device("cpu"))


def measured(group: Group, edges: list[tuple[str, str]]) -> GroupEvidence:
    """The evidence on all pairs of a group that were looked at, and on these edges of it."""
    heritage = group.heritage
    first_pass, second_pass = heritage.first_pass, heritage.second_pass
    place = {model: at for at, model in enumerate(first_pass.models)}
    ends = {(min(place[a], place[b]), max(place[a], place[b])) for a, b in edges if a in place and b in place}
    more = sorted(ends - second_pass.index.keys())
    pairs = [*second_pass.index, *more]
    parts = [(second_pass, p, i, j) for (i, j), p in second_pass.index.items()]
    parts += [(_measure(group, i, j), 0, i, j) for i, j in more]
    facts = [_facts_of_pair(group, *part) for part in parts]
    layers = list(second_pass.layers)
    for one, *_ in parts[len(second_pass.index) :]:
        layers += [layer for layer in one.layers if layer not in layers]
    tables = {}
    for name, dtype in (("change", "f4"), ("rank", "i4"), ("layer_newness", "f4"), ("layer_rounding", "f4")):
        tables[name] = np.zeros((len(pairs), len(layers)), dtype=dtype)
    column = {layer: at for at, layer in enumerate(layers)}
    for name, values in _layers(second_pass).items():
        tables[name][: len(values), : len(second_pass.layers)] = values[[p for _, p, *_ in parts[: len(values)]]]
    for row, (one, *_) in enumerate(parts[len(second_pass.index) :], len(second_pass.index)):
        for name, values in _layers(one).items():
            tables[name][row, [column[layer] for layer in one.layers]] = values[0]
    read, weights = (np.array([getattr(one, name) for one in first_pass.facts]) for name in ("entries", "weights"))
    larger = np.maximum.outer(read, read)  # as `FirstPass.compared`, for all pairs
    compared = first_pass.shared * larger / np.maximum(np.maximum(np.maximum.outer(weights, weights), larger), 1)
    names, terms = _terms(group, pairs)
    arrays = {
        "relatedness": first_pass.relatedness.astype(np.float32),
        "distances": group.distances().astype(np.float32),
        "compared": compared.astype(np.float32),
        "ends": np.array(pairs, dtype=np.int32).reshape(-1, 2),
        "scalars": np.array([[one[name] for name in SCALARS] for one in facts], dtype=np.float64).reshape(
            -1, len(SCALARS)
        ),
        **tables,
        **terms,
    }
    copies = {first_pass.models[copy]: first_pass.models[one] for copy, one in heritage.aliases.items()}
    return GroupEvidence(group.name, list(first_pass.models), copies, [str(layer) for layer in layers], names, arrays)


def evidence_of(recovered: Recovered) -> Evidence:
    """The evidence of a result, in the order of its groups."""
    edges = [(edge.parent, edge.child) for edge in recovered.graph.edges]
    groups = [measured(group, edges) for group in recovered.groups]
    return Evidence(groups, {source.id: source.location for source in recovered.sources})
