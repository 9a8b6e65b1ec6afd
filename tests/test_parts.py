"""A large family in parts: each model is there, no child is lost, and a part says where the rest is."""

import networkx as nx
import numpy as np
import pytest

from mother.graph.layered import Family, layered
from mother.report.parts import Names, parts_of


def small(family: Family, names: Names) -> tuple[bool, bool]:
    return family.columns * (2 + max(map(len, names.values()))) <= 60, family.rows <= 20


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("models", [5, 40, 200])
def test_every_edge_is_in_one_part_or_more(models: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = {f"m{at:03}": f"m{at:03}" for at in range(models)}
    nodes, edges = list(names), []
    for at in range(1, models):
        parents = rng.choice(at, size=min(at, 1 + int(rng.random() < 0.15)), replace=False)
        edges += [(nodes[parent], nodes[at]) for parent in parents]
    family = layered(nodes[0], nodes, edges)
    parts = parts_of(family, edges, names, small)
    assert set().union(*(part.edges for part in parts)) == set(edges)
    assert set().union(*(part.names for part in parts)) == set(nodes)
    assert all(nx.is_directed_acyclic_graph(nx.DiGraph(list(part.edges))) for part in parts)
    for at, part in enumerate(parts):
        assert set(part.drawing.place) == set(part.names)
        for model, name in part.names.items():
            for here in [int(word) for word in name.strip(")").split() if word.isdigit()]:
                assert here != at + 1 and model in parts[here - 1].names
    if len(parts) > 1:
        assert all(small(part.drawing, part.names)[1] or len(part.names) <= 6 for part in parts)


def test_a_star_and_a_chain_are_cut() -> None:
    nodes = [f"m{at:03}" for at in range(150)]
    names = dict(zip(nodes, nodes))
    star = [(nodes[0], one) for one in nodes[1:]]
    parts = parts_of(layered(nodes[0], nodes, star), star, names, small)
    assert len(parts) >= 8 and all(nodes[0] in part.names for part in parts)
    assert parts[0].names[nodes[0]] == f"m000 (parts 2 to {len(parts)})"
    chain = list(zip(nodes, nodes[1:]))
    parts = parts_of(layered(nodes[0], nodes, chain), chain, names, small)
    assert sum(len(part.edges) for part in parts) == 149 and parts[0].names[nodes[1]] != parts[0].names[nodes[0]]


def test_a_small_family_is_one_part() -> None:
    edges = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]
    family = layered("a", list("abcd"), edges)
    (part,) = parts_of(family, edges, {one: one for one in "abcd"}, small)
    assert part.drawing is family and part.edges == set(edges) and part.names["a"] == "a"
