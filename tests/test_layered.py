"""Layered drawings: right of all parents, one row apart, and names that are cut where words end."""

import networkx as nx
import numpy as np
import pytest

from mother.graph.layered import LONGEST, families, layered, short_names
from mother.graph.model_graph import Edge, ModelGraph


def random_family(seed: int, models: int) -> tuple[list[str], list[tuple[str, str]]]:
    """A tree with merges, some of which have a parent that is a root."""
    rng = np.random.default_rng(seed)
    names = [f"m{k}" for k in range(models)]
    edges = {(names[rng.integers(k)], names[k]) for k in range(1, models)}
    edges |= {(names[rng.integers(k)], names[k]) for k in range(models // 2, models, 5)}
    return [*names, "late root"], sorted(edges | {("late root", names[-1])})


@pytest.mark.parametrize("seed", range(4))
def test_models_stand_right_of_all_their_parents_and_apart(seed: int) -> None:
    names, edges = random_family(seed, 60)
    found = layered("m0", names, edges)
    assert set(found.place) == set(names)
    for parent, child in edges:
        assert found.place[parent][0] < found.place[child][0]
        way = [column for column, _ in found.bends.get((parent, child), ())]
        assert way == list(range(found.place[parent][0] + 1, found.place[child][0]))
    # Whatever is in one column, a model or an edge that passes, is a row apart: no name is struck through.
    columns: dict[int, list[float]] = {}
    for column, row in [*found.place.values(), *(at for way in found.bends.values() for at in way)]:
        columns.setdefault(column, []).append(row)
    for rows in columns.values():
        assert (np.diff(sorted(rows)) > 0.999).all()
    assert found.rows > max(row for _, row in found.place.values()) and found == layered("m0", names, edges)


def test_families_and_models_without_relatives() -> None:
    nodes = {"a": {"tree": "0"}, "b": {"tree": "0"}, "x": {"tree": "1"}, "y": {"tree": "2"}, "z": {"tree": "2"}}
    nodes |= {"hidden parent of y": {"tree": "2", "hidden": True}}
    edges = (Edge("a", "b", {}), Edge("hidden parent of y", "y", {}), Edge("hidden parent of y", "z", {}))
    found, alone = families(ModelGraph("g", nodes, edges))
    assert [set(one.members) for one in found] == [{"y", "z", "hidden parent of y"}, {"a", "b"}] and alone == ["x"]
    assert all(nx.is_directed_acyclic_graph(nx.DiGraph(list(one.bends))) for one in found)


def test_names_are_cut_where_words_end() -> None:
    names = ["acme/llama-7b-chat", "acme/llama-7b-code", "acme/llama-7b-base"]
    assert short_names(names) == dict(zip(names, ["…chat", "…code", "…base"]))
    assert short_names(["acme/llama", "acme/llama-7b"]) == {"acme/llama": "…llama", "acme/llama-7b": "…llama-7b"}
    for apart in (["one"], ["abc", "abd"], ["a/x", "b/x"]):
        assert short_names(apart) == {name: name for name in apart}
    assert short_names(["abcdef", "abcdeg"]) == {"abcdef": "abcdef", "abcdeg": "abcdeg"}  # no word ends there
    assert short_names(["acme/", "acme/x"]) == {"acme/": "acme/", "acme/x": "acme/x"}  # nothing would be left
    long = "x" * 100
    assert len(short_names([long])[long]) <= LONGEST
