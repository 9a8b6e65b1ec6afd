"""Method "map" from files to a typed Model Graph: grown families, and every odd collection."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_family, save_model, vit_weights
from safetensors.torch import load_file
from test_marginals import all_trees

from mother.errors import CheckpointError
from mother.evidence import sketch as sketches
from mother.evidence.direction import shrunk_rows
from mother.evidence.edges import pooled_newness
from mother.evidence.first_pass import take_first_pass
from mother.evidence.low_rank import LORA_GAP, SCATTERED, is_lora, own_ranks
from mother.evidence.relatedness import layer_cosine, related_components
from mother.evidence.second_pass import SecondPass
from mother.evidence.sketch import sketch_models
from mother.graph.arborescence import edge_marginals
from mother.graph.collection import open_models
from mother.graph.manifest import Manifest
from mother.graph.model_graph import HIDDEN_EDGE, Edge, ModelGraph, above_hidden
from mother.graph.pictures import RIGHT, WRONG, draw_trees, through_hidden
from mother.graph.scores import score_graph, visible_edges
from mother.graph.text import graph_text
from mother.heritage.absent import chances_of
from mother.heritage.calibration import Weights
from mother.heritage.trace import trace
from mother.heritage.trees import Hidden, below_first, likeliest_edges, read_tree
from mother.heritage.typed_graph import build_graph
from mother.io.checkpoint import Checkpoint
from mother.io.open import open_checkpoint
from mother.numeric.floats import MANTISSA, cast, ulp

CPU = torch.device("cpu")
WIDTH, BLOCKS = 32, 4


def recover(checkpoints: list[Checkpoint], **options: object) -> ModelGraph:
    return build_graph("test", trace(checkpoints, CPU, **options))


def models(folder: Path, **weights: dict[str, torch.Tensor]) -> list[Checkpoint]:
    return [open_checkpoint(name, save_model(folder / name, content)) for name, content in weights.items()]


def base(seed: int) -> dict[str, torch.Tensor]:
    return {name: weight * 0.1 for name, weight in vit_weights(seed, BLOCKS, WIDTH).items()}


def moved(weights: dict[str, torch.Tensor], seed: int, size: float = 0.1, rank: int | None = None) -> dict:
    """A step from weights: full, or of low rank; it is not along what is there."""
    generator = torch.Generator().manual_seed(seed)
    result = dict(weights)
    for name, weight in weights.items():
        if weight.ndim == 2:
            rows, columns = weight.shape
            # Steps of training have a few strong directions.
            inner = rank or 6
            step = torch.randn(rows, inner, generator=generator) @ torch.randn(inner, columns, generator=generator)
            if rank is None:
                step = step + 0.2 * inner**0.5 * torch.randn(rows, columns, generator=generator)
            result[name] = weight + size * 0.1 * step / inner**0.5
    return result


def halved(weights: dict[str, torch.Tensor], name: str = "bfloat16") -> dict[str, torch.Tensor]:
    return {key: cast(weight, name) for key, weight in weights.items()}


def edges(graph: ModelGraph) -> dict[tuple[str, str], dict]:
    return {(edge.parent, edge.child): edge.attributes for edge in graph.edges}


# Grown families


def test_grown_splits_are_recovered(forest: dict[str, Manifest]) -> None:
    for name, manifest in forest.items():
        checkpoints, _ = open_models(manifest)
        graph = recover(checkpoints)
        scores = score_graph(graph, manifest)
        assert scores["clusters"] == 1 and scores["undirected"] == 1 and scores["kinds"] == 1
        if name == "mini_lora_v":
            assert scores["directed"] == 1 and scores["ranks"] == 1
        else:
            assert scores["directed"] >= 0.75


def test_every_operation_is_named(wild: Manifest) -> None:
    checkpoints, _ = open_models(wild)
    scores = score_graph(recover(checkpoints), wild)
    assert scores["clusters"] == 1
    assert scores["kinds"] >= 0.9 and scores["undirected"] >= 0.85 and scores["ranks"] == 1


def test_order_and_subsets_change_nothing(forest: dict[str, Manifest]) -> None:
    checkpoints, _ = open_models(forest["mini_lora_v"])
    whole = edges(recover(checkpoints))
    shuffled = [checkpoints[k] for k in np.random.default_rng(3).permutation(len(checkpoints))]
    assert edges(recover(shuffled)) == whole
    # Subsets that keep the parents of their members: leaves go one after the other.
    rng = np.random.default_rng(4)
    kept = set(whole)
    while len(kept) > 2:
        leaves = sorted({child for _, child in kept} - {parent for parent, _ in kept})
        gone = {str(leaf) for leaf in rng.choice(leaves, size=min(2, len(leaves)), replace=False)}
        kept = {edge for edge in kept if edge[1] not in gone}
        names = {model for edge in kept for model in edge}
        rest = edges(recover([checkpoint for checkpoint in checkpoints if checkpoint.model in names]))
        assert set(rest) == kept


# Single relations


def test_chain_of_relations(tmp_path: Path) -> None:
    root = base(0)
    tuned = moved(root, 1)
    pruned = {k: w * (w.abs() > w.abs().median()) if w.ndim == 2 else w for k, w in tuned.items()}
    lora = moved(tuned, 2, rank=2)
    merged = {k: (0.6 * tuned[k] + 0.4 * other).float() for k, other in moved(root, 3).items()}
    found = recover(
        models(
            tmp_path,
            root=root,
            tuned=tuned,
            other=moved(root, 3),
            pruned=pruned,
            half=halved(tuned),
            lora=lora,
            merged=merged,
            copied=dict(lora),
            stranger=base(50),
        )
    )
    found_edges = edges(found)
    assert found_edges[("tuned", "pruned")]["kind"] == "prune"
    assert found_edges[("tuned", "half")]["kind"] == "cast" and found_edges[("tuned", "half")]["dtype"] == "bfloat16"
    assert found.nodes["copied"]["aliases"] == ["lora"]  # whichever comes first in the alphabet
    assert found_edges[("tuned", "copied")]["kind"] == "lora" and found_edges[("tuned", "copied")]["rank"] == 2
    for parent, coefficient in (("tuned", 0.6), ("other", 0.4)):
        facts = found_edges[(parent, "merged")]
        assert facts["kind"] == "merge" and facts["coefficient"] == pytest.approx(coefficient, abs=0.001)
    pairs = {frozenset(edge) for edge in found_edges}  # arrows of noise say little
    assert {frozenset(("root", "tuned")), frozenset(("root", "other"))} <= pairs
    assert not any("stranger" in edge for edge in found_edges)
    for attributes in found_edges.values():
        assert 0 <= attributes["adjacency"] <= 1 and 0 <= attributes["arrow"] <= 1 and attributes["compared"] == 1


def test_lora_merged_in_half_precision_points_from_its_parent(tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16", "float16"):
        root = halved(base(0), dtype) if dtype != "float32" else base(0)
        child = {k: cast(w, dtype) for k, w in moved(root, 1, 0.3, rank=3).items()}
        for names in (("a", "b"), ("b", "a")):
            found = edges(recover(models(tmp_path / dtype / names[0], **dict(zip(names, (root, child))))))
            facts = found[names]
            assert facts["kind"] == "lora" and facts["rank"] == 3 and facts["arrow"] > 0.999


@pytest.mark.parametrize(
    "before, after",
    [("float32", "bfloat16"), ("bfloat16", "float32"), ("bfloat16", "float16"), ("float16", "bfloat16")],
)
def test_types_tell_the_child_of_a_lora_merge(before: str, after: str, tmp_path: Path) -> None:
    parent = halved(base(0), before)
    child = halved(moved(parent, 1, 0.3, rank=3), after)
    for names in (("a", "b"), ("b", "a")):
        facts = edges(recover(models(tmp_path / names[0], **dict(zip(names, (parent, child))))))[names]
        assert facts["kind"] == "lora" and facts["rank"] == 3 and "ranks" not in facts and facts["arrow"] > 0.999


def test_siblings_of_an_absent_parent_hang_under_a_hidden_ancestor(tmp_path: Path) -> None:
    absent = base(0)
    siblings = {f"s{k}": moved(absent, k + 1, 0.2 + 0.1 * k) for k in range(4)}
    grandchild = moved(siblings["s3"], 9, 0.1)
    found = recover(models(tmp_path, **siblings, grandchild=grandchild))
    hidden = [model for model, facts in found.nodes.items() if facts.get("hidden")]
    assert len(hidden) == 1
    assert {child for parent, child in edges(found) if parent == hidden[0]} == set(siblings)
    assert visible_edges(found) == {("s3", "grandchild")}
    # Each edge of a graph has its probabilities, those from models that are not there, too.
    from_it = [facts for (parent, _), facts in edges(found).items() if parent == hidden[0]]
    assert all(0 < facts["adjacency"] <= 1 and facts["arrow"] == 1 for facts in from_it)
    assert edges(found)["s3", "grandchild"].keys() >= {"adjacency", "arrow"}


def test_how_sure_it_is_that_a_model_is_not_there() -> None:
    """The first of its children has no parent whether or not one stood above it; the others tell."""
    absent = {4: 0.99, 5: 0.6, 6: 0.7}
    assert chances_of(Hidden((4, 5, 6), None, first=4), absent) == (0.7, {4: 0.7, 5: 0.6, 6: 0.7})
    assert chances_of(Hidden((5,), 3, first=4), absent) == (0.6, {5: 0.6})
    above = above_hidden(0.9, 0.7, 0.5)
    assert above == {"kind": None, "hidden": True, "adjacency": 0.45, "arrow": 0.7, "direction": "unknown"}


@pytest.mark.parametrize("seed", range(3))
def test_low_ranks_tell_siblings_of_an_absent_parent(seed: int, tmp_path: Path) -> None:
    """However little one of them moved; with their parent there they are its children."""
    root = base(seed)
    children = {f"child{k}": moved(root, 10 * seed + k + 1, 0.02 + 0.05 * k, rank=4) for k in range(4)}
    alone = recover(models(tmp_path / "alone", **children))
    assert not visible_edges(alone) and len([node for node in alone.nodes.values() if node.get("hidden")]) == 1
    whole = recover(models(tmp_path / "whole", root=root, **children))
    assert visible_edges(whole) == {("root", child) for child in children}


def test_ranks_on_both_sides_of_where_a_third_model_joins() -> None:
    """Updates of rank 2 from an absent root, and a child of rank 1 of the first model, in two matrices."""
    ways = {(0, 1): 4, (0, 2): 4, (0, 3): 1, (1, 2): 4, (1, 3): 5, (2, 3): 5}
    first, second = np.array(list(ways)).T
    rank = np.array([[*ways.values()], [2 * way for way in ways.values()]])
    full = np.zeros_like(rank)
    full[1, 4] = 1  # a matrix of which a rank is not told does not count
    arrays = {"energy": np.ones_like(rank), "rank": rank, "full": full}

    def own(pair: tuple[int, int], thirds: list[int], high: set[int]) -> list[float]:
        second_pass = SecondPass(first, second, [], arrays, np.zeros((4, 6, 4)), [], [])
        second_pass.low.update({p: p not in high for p in range(6)})
        return own_ranks(second_pass, second_pass.index[pair], np.array(thirds)).tolist()

    assert own((0, 1), [2, 3], set()) == [0.5, 0]
    assert own((1, 2), [3, 0], set()) == [0.5, 0.5]
    assert own((0, 3), [1, 2], set()) == [0, 0]
    assert own((0, 1), [2, 3], {1}) == [0, 0]


def test_the_first_of_a_tree_may_be_a_sibling_of_what_hangs_from_it(tmp_path: Path) -> None:
    """Of children of an absent model the one that moved least looks much like their parent: no such edge is sure."""
    root = base(0)
    least = moved(root, 1, 0.03)
    children = {f"child{k}": moved(root, 2 + k, 0.15 + 0.02 * k) for k in range(6)}
    last = {"last": moved(children["child0"], 20, 0.2), "own": moved(least, 21, 0.2)}
    graph = recover(models(tmp_path, least=least, **children, **last))
    found = {pair: facts for pair, facts in edges(graph).items() if not facts.get("hidden")}
    assert ("child0", "last") in found and ("least", "child0") in found
    wrong = [facts for pair, facts in found.items() if pair not in {("child0", "last"), ("least", "own")}]
    assert wrong and all(facts["adjacency"] <= 0.9 for facts in wrong)


def test_below_the_first_of_each_tree() -> None:
    """1 is a cast of 0, 3 a merge, 7 and 8 hang under a model that is not there, whose parent is 5."""
    parents = {1: 0, 2: 1, 3: 2, 4: 3, 5: 0, 6: 5, 9: 7, 12: 10}
    hidden = [Hidden((7, 8), 5), Hidden((10, 11), None)]
    exact, sure = {1: (0,), 3: (2, 6)}, dict.fromkeys(range(13), 0.8)
    assert below_first(parents, hidden, exact, sure) == [(1, 2), (0, 5), (10, 12)]
    # Which of 0 and 5 is the first is open, and of a merge and its parents it is not; 7 hangs where nobody doubts it.
    assert below_first(parents, hidden, exact, sure | {2: 0.7, 3: 0.1, 5: 0.7}) == [(1, 2), (0, 5), (5, 6), (10, 12)]


def test_models_beside_one_another_hang_from_one_that_is_not_there() -> None:
    """Of 0 -> 1 -> 2 and models beside 1, 3 and (through it) 4, and of a root with one beside it."""
    apart = np.where(np.eye(7, dtype=bool), -np.inf, 0.0)
    weights = Weights(apart, np.where(np.eye(7, dtype=bool), -np.inf, -1.0))
    for at, child in ((1, 3), (3, 4), (0, 6)):
        weights.beside[at, child] = 1
    tree = {1: 0, 2: 1, 3: 1, 4: 3, 5: 4, 6: 0}
    members = [10, 11, 12, 13, 14, 15, 16]
    parents, hidden = read_tree({child: at for child, at in tree.items() if child != 6}, weights, members)
    assert parents == {11: 10, 12: 11, 15: 14} and hidden == [Hidden((13, 14), 10)]
    parents, hidden = read_tree(tree, weights, members)
    assert parents == {11: 10, 12: 11, 15: 14} and hidden == [Hidden((10, 16), None), Hidden((13, 14), 10)]


@pytest.mark.parametrize("seed", range(5))
def test_the_tree_has_as_many_right_edges_as_can_be_expected(seed: int) -> None:
    log_weight = 2 * np.random.default_rng(seed).normal(size=(5, 5))
    marginals, roots, _ = edge_marginals(log_weight)

    def expected(tree: dict[int, int]) -> float:
        root = next(place for place in range(5) if place not in tree)
        return float(roots[root] + sum(marginals[parent, child] for child, parent in tree.items()))

    found = likeliest_edges(marginals, roots, {}, list(range(5)), [])
    assert expected(found) == pytest.approx(max(map(expected, all_trees(5))))
    # An edge of a merge that this tree would close a circle with: the one that is known to close none.
    child, parent = next(iter(found.items()))
    assert likeliest_edges(marginals, roots, {1: 0}, list(range(5)), [(child, parent)]) == {1: 0}


def test_low_rank_outweighs_a_sibling_that_hardly_moved(tmp_path: Path) -> None:
    """All distances from a near copy of the base are those from the base; only the rank says whose the LoRA is."""
    root = base(0)
    content = {"a": moved(root, 1, 0.002), "b": root, "lora": moved(root, 2, 0.3, rank=3)}
    found = edges(recover(models(tmp_path, **content, other=moved(root, 3, 0.2))))
    assert found["b", "lora"]["kind"] == "lora" and found["b", "lora"]["adjacency"] > 0.8


def test_grids_are_found_where_no_name_has_a_block(tmp_path: Path) -> None:
    def plain(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = [weight for name, weight in weights.items() if weight.ndim == 2]
        return {f"conv{number}.weight": weight for number, weight in enumerate(found)}

    def by_row(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        steps = {name: weight.abs().amax(dim=1, keepdim=True) / 127 for name, weight in weights.items()}
        return {name: (weight / steps[name]).round() * steps[name] for name, weight in weights.items()}

    root = plain(base(0))
    child = plain(moved(base(0), 1))
    found = edges(recover(models(tmp_path, child=child, grid=by_row(child), root=root)))
    assert found["child", "grid"]["kind"] == "quantize"
    assert ("root", "child") in found or ("child", "root") in found  # the arrow of noise says little


# Odd collections


def relative_change(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> float:
    """Length of the step between two models over that of the first, of all their matrices."""
    names = [name for name, weight in old.items() if weight.ndim == 2]
    step = sum((new[name] - old[name]).double().square().sum() for name in names)
    return float((step / sum(old[name].double().square().sum() for name in names)).sqrt())


def test_two_models_that_differ_by_nothing_told(tmp_path: Path) -> None:
    """Neither their names nor their order: the weights alone say which came first, and how far the other moved."""
    first = base(0)
    second = moved(first, 1)
    seen = []
    for names in (("a", "b"), ("b", "a")):
        content = dict(sorted(zip(names, (first, second))))
        found = recover(models(tmp_path / names[0], **content))
        assert found.nodes.keys() == {"a", "b"} and edges(found).keys() == {names}
        seen.append(edges(found)[names])
    assert seen[0] == seen[1]
    assert seen[0]["kind"] == "fine-tune" and seen[0]["compared"] == 1
    assert seen[0]["adjacency"] > 0.5  # two models alone may be siblings
    assert seen[0]["direction"] == "known" and seen[0]["arrow"] > 0.9
    assert seen[0]["relative_change"] == pytest.approx(relative_change(first, second), abs=1e-4)


def test_identical_models_are_one_node(tmp_path: Path) -> None:
    found = recover(models(tmp_path, b=base(0), a=base(0), c=base(0)))
    assert found.nodes["a"]["aliases"] == ["b", "c"] and not found.edges


def test_models_too_small_to_be_called_related_keep_apart(tmp_path: Path) -> None:
    tiny = {"encoder.layer.0.attention.attention.query.weight": torch.randn(2, 2)}
    found = recover(models(tmp_path, tiny=tiny, half=halved(tiny)))
    assert set(found.nodes) == {"tiny", "half"} and not found.edges


def test_a_model_may_be_called_hidden(tmp_path: Path) -> None:
    figure = draw_trees("test", ["hidden gem", "b"], {("hidden gem", "b")}, {("hidden gem", "b")})
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["hidden gem", "b"] * 2


def test_one_model(tmp_path: Path) -> None:
    found = recover(models(tmp_path, only=base(0)))
    assert list(found.nodes) == ["only"] and not found.edges


def test_unrelated_models_stand_alone(tmp_path: Path) -> None:
    found = recover(models(tmp_path, **{f"m{k}": base(k) for k in range(40)}))
    assert len({facts["tree"] for facts in found.nodes.values()}) == 40 and not found.edges


@pytest.mark.slow
def test_a_thousand_models_of_which_none_is_related(tmp_path: Path) -> None:
    strangers = {f"m{k}": vit_weights(k, 1, 12) for k in range(1000)}
    heritage = trace(models(tmp_path, **strangers), CPU)
    assert len(heritage.clusters) == 1000 and len(heritage.second_pass.first) == 0


def test_one_collection_of_every_oddity(tmp_path: Path) -> None:
    """Mixed precisions, rank 0 and full rank, frozen and missing layers, copies and a stranger, all at once."""
    root = base(0)
    full = moved(root, 1)
    frozen = {name: moved(root, 4)[name] if "layer.0" in name else weight for name, weight in root.items()}
    lacking = {name: weight for name, weight in moved(full, 2).items() if "layer.3" not in name}
    found = recover(
        models(
            tmp_path,
            root=root,
            full=full,
            frozen=frozen,
            lacking=lacking,
            root_bf16=halved(root),
            full_fp16=halved(full, "float16"),
            lora_bf16=halved(moved(halved(full), 3, rank=2)),
            copy=dict(root),
            stranger=base(60),
            stranger_bf16=halved(base(60)),
        )
    )
    kinds = {edge: facts["kind"] for edge, facts in edges(found).items()}
    assert found.nodes["copy"]["aliases"] == ["root"]
    assert kinds["copy", "root_bf16"] == kinds["full", "full_fp16"] == kinds["stranger", "stranger_bf16"] == "cast"
    related = {frozenset(edge) for edge, kind in kinds.items() if kind == "fine-tune"}
    assert related == {frozenset(pair) for pair in (("copy", "full"), ("copy", "frozen"), ("full", "lacking"))}
    # What tells the original from its cast to float16 is lost in bfloat16: the other of the two is named as possible.
    (parent, facts), *others = ((edge[0], one) for edge, one in edges(found).items() if edge[1] == "lora_bf16")
    assert not others and facts["rank"] == 2 and {parent, *facts["or"]} == {"full", "full_fp16"}
    assert next(facts["compared"] for edge, facts in edges(found).items() if "lacking" in edge) == 0.75
    assert len({facts["tree"] for facts in found.nodes.values()}) == 2


def test_rows_that_decay_shrank_tell_the_child(tmp_path: Path) -> None:
    """Tokens that a fine-tune never sees get no gradient: AdamW only shrinks their embeddings, each step rounded."""
    generator = torch.Generator().manual_seed(5)
    table = torch.randn(3000, 48, generator=generator)
    shrunk = table.clone()
    for _ in range(200):
        shrunk *= 1 - 1e-5
    seen = torch.rand(3000, generator=generator) < 0.5
    shrunk[seen] += 0.05 * torch.randn(int(seen.sum()), 48, generator=generator)
    factor, count = shrunk_rows(table, shrunk)
    assert count == int((~seen).sum()) and factor == pytest.approx((1 - 1e-5) ** 200, rel=1e-5)
    back, again = shrunk_rows(shrunk, table)
    assert again == count and back == pytest.approx(1 / factor, rel=1e-5)
    for other in (table, table + 0.01 * torch.randn(3000, 48, generator=generator)):
        assert shrunk_rows(table, other) == (1.0, 0)
    assert shrunk_rows(table[:, :8], shrunk[:, :8]) == (1.0, 0)

    # Both directions of a step that newness cannot tell: the table decides, resized or not.
    name = "embeddings.word_embeddings.weight"
    first, second = base(0), moved(base(0), 1)
    for number, (old, new) in enumerate(((first, second), (second, first))):
        longer = torch.cat([shrunk, torch.zeros(9, 48)])
        graph = recover(models(tmp_path / str(number), old=old | {name: table}, new=new | {name: longer}))
        (facts,) = edges(graph).values()
        assert ("old", "new") in edges(graph) and facts["arrow"] > 0.95


COUNTERS = [f"bn{k}.num_batches_tracked" for k in range(6)]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ([100] * 6, [150] * 6, 1),
        ([100] * 6, [100] * 5 + [150], 1),  # all norms but the last are frozen
        ([0] * 6, [50] * 6, 0),  # from another framework, or counted anew
        ([100] * 6, [100] * 6, 0),
        ([100] * 5 + [150], [150] + [100] * 5, 0),  # a combination
        ([], [150] * 6, 0),
    ],
)
def test_batches_that_norms_counted_tell_the_child(old: list[int], new: list[int], told: int, tmp_path: Path) -> None:
    """Who loads a model goes on counting from there; noise alone says nothing of the arrow."""
    generator = torch.Generator().manual_seed(3)
    first = base(0)
    second = {
        name: weight + 0.02 * torch.randn(weight.shape, generator=generator) if weight.ndim == 2 else weight
        for name, weight in first.items()
    }
    plain = edges(recover(models(tmp_path / "plain", old=first, new=second)))
    assert all(facts["direction"] == "unknown" for facts in plain.values())
    for place, (one, other) in enumerate(((first, second), (second, first))):
        counted = [
            weights | {name: torch.tensor(count) for name, count in zip(COUNTERS, counts)}
            for weights, counts in ((one, old), (other, new))
        ]
        found = edges(recover(models(tmp_path / str(place), old=counted[0], new=counted[1])))
        (ends,), (facts,) = found.keys(), found.values()
        assert facts["direction"] == ("known" if told else "unknown") and (not told or ends == ("old", "new"))
        assert facts["arrow"] < 0.95  # a number that anybody can write makes nothing sure


def test_a_copy_that_lacks_a_head_and_a_model_that_differs_in_its_head_only(tmp_path: Path) -> None:
    whole = base(0) | {"classifier.weight": torch.ones(3, WIDTH)}
    other_head = whole | {"classifier.weight": torch.full((3, WIDTH), 2.0)}
    found = recover(models(tmp_path, whole=whole, bare=base(0), other=other_head))
    # Which of the two the copy without a head is counted with cannot be told.
    assert [facts["aliases"] for facts in found.nodes.values() if "aliases" in facts] == [["bare"]]
    ((ends, facts),) = edges(found).items()
    assert set(ends) == {"whole", "other"} and facts["direction"] == "unknown" and facts["relative_change"] == 0
    assert facts["kind"] == "fine-tune" and "outside" in facts["note"]


def test_missing_tensors_are_passed_over_and_counted(tmp_path: Path) -> None:
    first = base(0)
    second = {k: w for k, w in moved(first, 1).items() if "layer.3" not in k}
    third = {k: (torch.ones(7, 9) if "layer.2.output.dense.weight" in k else w) for k, w in moved(first, 2).items()}
    facts = edges(recover(models(tmp_path, first=first, second=second, third=third)))
    assert set(facts) == {("first", "second"), ("first", "third")}
    # A block has four square matrices and one of twice their size: a block of four is missing, and a large matrix.
    assert facts[("first", "second")]["compared"] == 0.75
    assert facts[("first", "third")]["compared"] == pytest.approx(22 / 24, abs=1e-4)


def test_broken_models_are_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    first = base(0)
    broken = moved(first, 2)
    name = next(name for name, weight in broken.items() if weight.ndim == 2)
    broken[name] = broken[name].clone()
    broken[name][0, 0] = torch.nan
    only_norms = {"encoder.layer.0.layernorm.weight": torch.ones(4)}
    found = recover(models(tmp_path, a=first, b=moved(first, 1), broken=broken, empty=only_norms))
    assert set(found.nodes) == {"a", "b"}
    assert "NaN" in found.left_out["broken"] and name in found.left_out["broken"]
    assert "no weight matrix" in found.left_out["empty"]


def test_a_model_that_vanishes_while_it_is_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketches, "AT_ONCE", 1)  # one tensor at a time
    checkpoints = models(tmp_path, a=base(0), b=moved(base(0), 1), c=moved(base(0), 2))

    class Vanishing(Checkpoint):
        reads = 0

        def read_tensors(self, names: Sequence[str], *into: Mapping) -> dict[str, torch.Tensor]:
            Vanishing.reads += 1
            if Vanishing.reads > 1:
                raise CheckpointError(self.model, "file", "has gone", "Fetch it again.")
            return super().read_tensors(names, *into)

    checkpoints[1] = Vanishing(**{name: getattr(checkpoints[1], name) for name in ("model", "tensors", "layers")})
    graph = recover(checkpoints)
    assert set(graph.nodes) == {"a", "c"} and "has gone" in graph.left_out["b"]


def test_zero_difference_layers_and_frozen_blocks(tmp_path: Path) -> None:
    first = base(0)
    step = moved(first, 1)
    second = {name: step[name] if "layer.1" in name else weight for name, weight in first.items()}
    ((ends, facts),) = edges(recover(models(tmp_path, first=first, second=second))).items()
    assert ends == ("first", "second") and facts["kind"] == "fine-tune"
    assert facts["compared"] == 1  # what is equal was compared, too
    assert facts["relative_change"] == pytest.approx(relative_change(first, second), abs=1e-4)


def test_chain_is_recovered_whatever_its_prefix(tmp_path: Path) -> None:
    manifest = save_family(tmp_path, 4)
    plain = edges(recover(open_models(manifest)[0]))
    chain = {(f"m{k}", f"m{k + 1}") for k in range(3)}
    assert {frozenset(edge) for edge in plain} == {frozenset(edge) for edge in chain}
    # Steps of noise tell no arrow; the shape alone, by which the middle is the elder, makes none sure.
    assert all(facts["arrow"] < 0.9 for edge, facts in plain.items() if edge not in chain)
    for name in ("m1", "m3"):
        weights = load_file(tmp_path / name / "model.safetensors")
        save_model(tmp_path / name, {f"vit.{key}": weight for key, weight in weights.items()})
    assert edges(recover(open_models(manifest)[0])) == plain


# Pieces


def test_false_relations_stay_below_the_level() -> None:
    rng = np.random.default_rng(0)
    level, false = 0.05, 0
    for _ in range(200):
        scores = rng.normal(size=(40, 40))
        scores = (scores + scores.T) / 2**0.5
        false += related_components(scores, level).max() < 39
    assert false <= 20  # 10 expected; 21 or more has a chance of 0.1 %
    scores[3, 17] = scores[17, 3] = scores[5, 17] = scores[17, 5] = 6.0
    labels = related_components(scores, level)
    assert labels[3] == labels[5] == labels[17] and labels.max() == 37
    with pytest.raises(ValueError, match="between 0 and 1"):
        related_components(np.zeros((2, 2)), 1.0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_relatedness_does_not_depend_on_the_scale(scale: float) -> None:
    weights = torch.randn(4, 40, 50, generator=torch.Generator().manual_seed(0))
    weights[1] += weights[0]
    weights[3] = 0.1  # a constant has no cosine
    (z, valid), (expected, _) = layer_cosine(weights * scale), layer_cosine(weights)
    assert torch.allclose(z, expected, rtol=1e-4, atol=1e-4) and z[0, 1] > 19
    assert valid.tolist() == [[k != 3 and j != 3 for j in range(4)] for k in range(4)]


def test_relatedness_is_standard_normal_for_anisotropic_independent_models(tmp_path: Path) -> None:
    # All models prefer the same inputs: the naive null, 1/P, would call many of them related.
    scale = torch.exp(torch.linspace(0, 4, WIDTH))
    collection = {}
    for k in range(30):
        weights = base(k)
        collection[f"m{k}"] = {
            n: w * scale[: w.shape[1]].repeat(w.shape[1] // WIDTH) if w.ndim == 2 and w.shape[1] == WIDTH else w
            for n, w in weights.items()
        }
    collection["child"] = moved(collection["m7"], 99)  # one that is related to one of them
    found = take_first_pass(sketch_models(models(tmp_path, **collection), tmp_path / "sketches").sketches, CPU)
    assert found.models[30] == "child"
    scores = found.relatedness[:30, :30][np.triu_indices(30, 1)]
    assert 0.5 < scores.std() < 1.3 and np.abs(scores).max() < 5
    labels = related_components(found.relatedness)
    assert labels[30] == labels[7] and labels.max() == 29
    # The naive scores of one layer.
    name = "encoder.layer.0.attention.attention.query.weight"
    flat = torch.stack([collection[f"m{k}"][name].flatten() for k in range(30)])
    naive = torch.corrcoef(flat).numpy() * flat.shape[1] ** 0.5
    assert naive[np.triu_indices(30, 1)].std() > 2


def test_figures_count_edges_through_hidden_ancestors() -> None:
    recovered = {("a", "h"), ("h", "b"), ("h", "c"), ("g", "d"), ("g", "e"), ("b", "x")}
    truth = {("a", "b"), ("b", "x"), ("d", "e")}
    visible, right = through_hidden(recovered, truth, {"h": "a", "g": None})
    assert visible == {("a", "b"), ("a", "c"), ("b", "x")}
    assert right == {("a", "h"), ("h", "b"), ("g", "d")}
    figure = draw_trees("test", ["a", "b", "c", "d", "e", "x"], truth, recovered, {"h": "a", "g": None})
    drawn = figure.axes[1]
    assert drawn.get_title("left") == "recovered: 2 of 3 edges right"
    colours = Counter(line.get_color() for line in drawn.lines)
    assert colours == {RIGHT[0]: len(right | {("b", "x")}), WRONG[0]: 2}
    assert sorted(text.get_text() for text in drawn.texts) == ["a", "b", "c", "d", "e", "hidden", "hidden", "x"]


def test_pooled_newness() -> None:
    assert pooled_newness(np.array([0.5, -1.0]), np.array([1.0, 0.0]))[0] == 0.5
    mean, t = pooled_newness(np.array([0.2, 0.3, 0.4]), np.ones(3))
    assert mean == pytest.approx(0.3) and t == pytest.approx(0.3 / np.sqrt(0.02 / 9))
    assert pooled_newness(np.zeros(0), np.zeros(0)) == (0.0, 0.0)


def test_lora_needs_low_rank_everywhere(tmp_path: Path) -> None:
    first = base(0)
    step = moved(first, 1, rank=2)
    name = next(name for name, weight in first.items() if weight.ndim == 2)
    mixed = step | {name: moved(first, 2)[name]}
    heritage = trace(models(tmp_path, first=first, low=step, mixed=mixed), CPU)
    low = heritage.second_pass.index[(0, 1)]
    assert is_lora(heritage.second_pass, low) and not is_lora(heritage.second_pass, heritage.second_pass.index[(0, 2)])
    for other, kind, rank in ((step, "lora", 2), (mixed, "fine-tune", None)):
        (facts,) = edges(recover(models(tmp_path / kind, first=first, other=other))).values()
        assert facts["kind"] == kind and facts.get("rank") == rank


def test_a_matrix_that_is_too_small_for_the_rank_is_no_fine_tune(tmp_path: Path) -> None:
    """A router of four experts has full rank after any update, that of a LoRA of rank 8 as well."""
    first = base(0) | {"blocks.0.router.weight": torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(9))}
    for name, rank, kind in (("low", 8, "lora"), ("full", None, "fine-tune")):
        (facts,) = edges(recover(models(tmp_path / name, first=first, other=moved(first, 1, rank=rank)))).values()
        assert facts["kind"] == kind and facts.get("rank") == rank


def test_few_steps_of_one_unit_are_no_lora(tmp_path: Path) -> None:
    """What few jumps by a unit leave above rounding noise has a low rank, which explains none of them."""
    first, generator = halved(base(0)), torch.Generator().manual_seed(3)
    jumped = dict(first)
    for name, weight in first.items():
        if weight.ndim == 2:
            chance = torch.full(weight.shape, 0.15)
            chance[:2] = 0.9  # some rows get more, so that the spectrum falls off
            some = torch.rand(weight.shape, generator=generator) < chance
            jumped[name] = cast(weight + ulp(weight, MANTISSA["bfloat16"]) * some, "bfloat16")
    heritage = trace(models(tmp_path, first=first, jumped=jumped), CPU)
    arrays, p = heritage.second_pass.arrays, heritage.second_pass.index[(0, 1)]
    low = arrays["rank"][:, p] > 0
    assert low.all() and not arrays["full"][:, p].any()
    assert np.median(arrays["gap"][low, p]) > LORA_GAP and np.median(arrays["scattered"][low, p]) > 2 * SCATTERED
    assert not is_lora(heritage.second_pass, p)
    (facts,) = edges(build_graph("test", heritage)).values()
    assert facts["kind"] == "fine-tune"


def test_hidden_ancestors_are_shown_with_how_sure_they_are() -> None:
    nodes: dict[str, dict] = {name: {"tree": "0"} for name in ("root", "hidden parent of x", "x")}
    above, below = above_hidden(0.9, 1.0, 0.8), HIDDEN_EDGE | {"adjacency": 0.8}
    edges = (Edge("root", "hidden parent of x", above), Edge("hidden parent of x", "x", below))
    shown = graph_text(ModelGraph("test", nodes, edges)).splitlines()
    assert "parent and child: open (72 %)" in shown[1] and "parent and child: likely (80 %)" in shown[2]
