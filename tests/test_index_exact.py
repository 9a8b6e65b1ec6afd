"""What digests tell of an index: casts and copies, whatever block a family is cut into."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from conftest import save_model, vit_weights
from test_index import built, neighbours

from mother.collection.find import search
from mother.evidence.edges import STRUCTURE
from mother.graph.arborescence import edge_marginals
from mother.heritage.calibration import Weights, read_coefficients
from mother.index.blocks import cut
from mother.index.candidates import near_models, with_pairs
from mother.index.casts import originals
from mother.index.engine import Engine
from mother.index.graph import Found, Sizes, _add_family, index_graph
from mother.index.groups import find_copies, group_names, load_group
from mother.index.offers import Offers, by_exact, read_offers, without_ancestors
from mother.index.search import search_index
from mother.index.store import Index
from mother.index.traced import trace_schema
from mother.index.trees import likeliest_tree

NAMES = [f"encoder.layer.{block}.attention.attention.query.weight" for block in range(4)]
NEAR = 30  # models that are nearer to a cast than signatures can tell
Tensors = dict[str, torch.Tensor]


def moved(weights: Tensors | None, seed: int, size: float) -> Tensors:
    draw = torch.Generator().manual_seed(seed)
    step = {name: size * torch.randn(48, 48, generator=draw) for name in NAMES}
    return step if weights is None else {name: weights[name] + step[name] for name in NAMES}


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Index]:
    """Models that lie so close together that their signatures are about equal, and casts of some of them."""
    folder = tmp_path_factory.mktemp("crowd")
    base = moved(None, 0, 1.0)
    save_model(folder / "models/base", base)
    for k in range(NEAR):
        near = moved(base, 1 + k, 1e-4)
        save_model(folder / f"models/near{k:02}", near)
        if k % 10 == 7:
            save_model(folder / f"models/cast{k:02}", {name: one.bfloat16() for name, one in near.items()})
    return folder, built(folder / "it", *(folder / "models").glob("*/"))


def test_a_cast_is_found_whatever_lies_nearer(crowd: tuple[Path, Index], tmp_path: Path) -> None:
    folder, index = crowd
    group = load_group(index, group_names(index)[0][0], 1e3, 0.01, "family")
    told = {group.ids[child]: [group.ids[one] for one in some] for child, some in group.casts.items()}
    assert told == {f"cast{k:02}": [f"near{k:02}"] for k in range(7, NEAR, 10)}
    found = index_graph(index, tmp_path / "work", Engine(), sizes=Sizes(whole=0, core=6, block=60))
    casts = {(edge.parent, edge.child) for edge in found.edges if edge.attributes["kind"] == "cast"}
    assert casts == {(f"near{k:02}", f"cast{k:02}") for k in range(7, NEAR, 10)}


def test_every_block_can_tell_its_casts(crowd: tuple[Path, Index]) -> None:
    index = crowd[1]
    group = load_group(index, group_names(index)[0][0], 1e3, 0.01, "family")
    blocks = cut(group.near, np.arange(len(group.ids)), 2, 24, group.casts)
    assert len(blocks) > 2 and any(set(group.casts) & set(block.models) - set(block.core) for block in blocks)
    for block in blocks:
        assert all(set(group.casts[one]) <= set(block.models) for one in group.casts if one in block.models)


def test_a_search_finds_what_a_cast_was_made_from(crowd: tuple[Path, Index], tmp_path: Path) -> None:
    folder, _ = crowd
    some = [place for place in (folder / "models").iterdir() if place.name != "cast07"]
    index = built(tmp_path / "it", *some)
    _, _, found = search_index(index, search([str(folder / "models/cast07")]).sources[0])
    assert (found[0].model, found[0].verdict, found[0].kind) == ("near07", "parent", "cast")
    index = built(tmp_path / "other", *(place for place in some if place.name != "near17"))
    _, _, found = search_index(index, search([str(folder / "models/near17")]).sources[0])
    told = {one.model: (one.verdict, one.kind) for one in found}
    assert told["cast17"] == ("child", "cast")


def test_what_digests_tell_is_in_a_block_however_far(rng: np.random.Generator) -> None:
    values = rng.normal(size=(1, 64)) + 0.01 * rng.normal(size=(200, 64))
    values[-1] += rng.normal(size=64)
    near = with_pairs(values, near_models(values), [(0, 199)], exact=True)
    near = with_pairs(values, near, [(3, 199)])
    ends = {(int(i), int(j)): bool(told) for i, j, told in zip(near.first, near.second, near.exact)}
    assert ends[0, 199] and not ends[3, 199] and sum(ends.values()) == 1
    again = with_pairs(values, near, [(0, 199)])
    assert again.exact.sum() == 1 and len(again.first) == len(near.first)
    for block in cut(near, np.arange(200), 8, 40):
        assert 199 in block.models or 0 not in block.core


def test_originals_have_or_would_have_every_part(rng: np.random.Generator) -> None:
    """Against all pairs of models."""
    for _ in range(50):
        n = 8
        parts = [set(rng.choice(6, 3, replace=False).tolist()) for _ in range(n)]
        casts = [set(rng.choice(6, 2, replace=False).tolist()) - own for own in parts]
        expected = {
            child: fitting
            for child in range(n)
            if (
                fitting := [
                    one
                    for one in range(n)
                    if one != child and parts[child] <= parts[one] | casts[one] and parts[child] & casts[one]
                ]
            )
        }
        flat = []
        for some in (parts, casts):
            flat.append(np.array([one for own in some for one in sorted(own)], dtype=np.uint64))
            flat.append(np.repeat(np.arange(n), [len(own) for own in some]))
        assert originals(*flat) == expected
    nothing = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    assert originals(*nothing, *nothing) == {}


def test_copies_may_lack_tensors() -> None:
    held = [[1, 2, 3], [1, 2], [1, 2, 4], [1, 2, 3], [5], [], [1, 2]]
    ids = ["d", "c", "b", "a", "e", "f", "g"]
    digests = np.array([one for some in held for one in some], dtype=np.uint64)
    owner = np.repeat(np.arange(len(held)), [len(some) for some in held])
    assert find_copies(ids, digests, owner, 0) == {0: 3, 6: 1}
    # Of those with most tensors the first by its id.
    assert find_copies(ids, digests, owner) == {0: 3, 1: 3, 6: 3}


def test_a_copy_that_lacks_a_head_is_one_in_every_block(tmp_path: Path) -> None:
    base = moved(None, 0, 1.0)
    head = {"classifier.weight": torch.ones(3, 48)}
    models = {"base": base | head, "bare": base, "bare again": base}
    models |= {f"tuned{k}": moved(base, 1 + k, 0.1) | head for k in range(6)}
    for name, weights in models.items():
        save_model(tmp_path / "models" / name, weights)
    index = built(tmp_path / "it", *(tmp_path / "models").glob("*/"))
    whole = index_graph(index, tmp_path / "work", Engine())
    by_blocks = index_graph(index, tmp_path / "work", Engine(), sizes=Sizes(whole=0, core=2))
    for found in (whole, by_blocks):
        assert sorted(found.nodes["base"]["aliases"]) == ["bare", "bare again"] and len(found.nodes) == 7
    assert neighbours(by_blocks) == neighbours(whole)


def test_blocks_may_tell_copies_one_after_the_other() -> None:
    """One block says that a is b, another one that b is c, a third one knows a child of a."""
    found = Found({one: {"tree": ""} for one in "abcd"})
    rows = [{"what": "alias", "parent": p, "child": c, "facts": "{}"} for p, c in ("bc", "ab")]
    rows = [rows[1] | {"parent": "c", "child": "b"}, rows[0] | {"parent": "b", "child": "a"}]
    told = {"weight": 1.0, "beside": -np.inf, "between": 0.0, "private": 0.0, "most": 0.0, "arrow": 0.0}
    facts = json.dumps({"kind": "fine-tune"})
    rows += [
        {"what": "offer", "parent": p, "child": c, "own": True, "facts": facts} | told for p, c in ("ad", "bd", "ab")
    ]
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in trace_schema().names}, trace_schema())
    _add_family(found, "group", list("abcd"), table, Sizes())
    assert found.nodes["c"]["aliases"] == ["a", "b"] and set(found.nodes) == {"c", "d"}
    assert [(edge.parent, edge.child) for edge in found.edges] == [("c", "d")]


def test_both_arrows_of_a_pair_hear_what_each_of_two_blocks_knows() -> None:
    """The block of a knows a model in the middle, that of b one that lacks what a has."""
    rows = [("a", "b", 2.0, 0.1, 0.7), ("b", "a", 3.0, 0.4, 0.2), ("b", "a", 9.0, 0.6, 0.1)]
    same = {"what": "offer", "beside": -np.inf, "most": 5.0, "arrow": 0.0, "facts": "{}"}
    told = [
        same | {"parent": p, "child": c, "weight": w, "between": b, "private": own, "own": w < 9}
        for p, c, w, b, own in rows
    ]
    table = pyarrow.table({name: [row.get(name) for row in told] for name in trace_schema().names}, trace_schema())
    worth = read_coefficients().structure[STRUCTURE.index("private")]
    found = read_offers(table, {"a": 0, "b": 1})
    assert found.as_parent == pytest.approx([2.0 + 0.7 * worth - 0.6, 3.0 + 0.7 * worth - 0.6])


def test_priors_know_of_exact_relations_and_not_of_what_cannot_be() -> None:
    """Model 1 is quantized from 0, 2 from 1, 3 is quantized, too."""
    parent, child = np.nonzero(~np.eye(4, dtype=bool))
    offers = Offers(4, parent, child, np.zeros(12), np.full(12, -5.0), np.zeros(12), np.arange(12))
    exact = {1: {0: {"kind": "quantize"}}, 2: {1: {"kind": "quantize"}}}

    def told(some: Offers) -> set[tuple[int, int]]:
        there = np.isfinite(some.as_parent)
        return set(zip(some.parent[there].tolist(), some.child[there].tolist()))

    before = by_exact(offers, exact)
    assert told(before) == {(0, 1), (1, 2), (2, 0), (3, 0), (0, 3), (1, 3), (2, 3)}
    after = without_ancestors(before, exact, [1, 2, 3])
    assert told(after) == {(0, 1), (1, 2), (3, 0), (0, 3)}
    # Two quantized models may have a parent that is not there.
    assert np.isfinite(after.beside[(after.parent == 1) & (after.child == 3)]).all()


def test_what_is_not_there_is_as_probable_as_among_all_pairs(rng: np.random.Generator) -> None:
    parent, child = np.nonzero(~np.eye(6, dtype=bool))
    values = rng.normal(size=(2, 6, 6))
    values[:, np.arange(6), np.arange(6)] = -np.inf
    weights = Weights(*values)
    expected = 1 - weights.parents(edge_marginals(weights.both)[0]).sum(axis=0)
    offers = Offers(6, parent, child, *values[:, parent, child], np.zeros(30), np.arange(30))
    assert likeliest_tree(offers).absent == pytest.approx(expected)
    local = likeliest_tree(offers, 0).absent
    assert ((local > 0) & (local < 1)).all() and np.abs(local - expected).mean() < 0.2


def test_blocks_tell_the_child_of_a_cast(tmp_path: Path) -> None:
    """By the rounding that it holds, though it is stored in full precision."""
    generator, root = torch.Generator().manual_seed(1), vit_weights(1, blocks=4, width=64)

    def trained(weights: Tensors) -> Tensors:
        """A little, by rows that learn faster and slower."""
        found = {}
        for name, weight in weights.items():
            update = torch.randn(weight.shape, generator=generator) * torch.rand(len(weight), 1, generator=generator)
            found[name] = weight.float() + 0.003 * weight.float().norm() / update.norm() * update
        return found

    cast = {name: weight.to(torch.float16) for name, weight in root.items()}
    models = {"root": root, "cast": cast, "child": trained(cast), "other": trained(root), "another": trained(cast)}
    for name, weights in models.items():
        save_model(tmp_path / "models" / name, weights)
    index = built(tmp_path / "index", tmp_path / "models")
    for sizes in (Sizes(), Sizes(whole=0, core=2)):
        found = index_graph(index, tmp_path / "work", Engine(), sizes=sizes)
        edges = {(edge.parent, edge.child) for edge in found.edges}
        assert edges >= {("root", "cast"), ("cast", "child"), ("root", "other"), ("cast", "another")}
