"""The split of every operation: what the manifest says about a model is read off its weights again."""

import math
from dataclasses import replace
from pathlib import Path

import networkx as nx
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from dataset.forest import GrowError, Job, grow, is_intact, read_record
from dataset.grow import jobs_of
from dataset.weights import BLOCK, DTYPES, Weights, block_weights, normal_codebook, quantized, read_weights
from dataset.wild_plan import WILD, plan_wild
from mother.graph.collection import known_trees, open_models
from mother.graph.manifest import NODE_KINDS, Manifest, Node
from mother.graph.manifest_io import read_manifest
from mother.io.layers import Layer


def of(wild: Manifest, kind: str, **recipe: object) -> list[Node]:
    """The nodes of a kind whose recipe says so; at least one."""
    found = [
        node
        for node in wild.nodes
        if node.kind == kind and recipe.items() <= {k: node.recipe.get(k) for k in recipe}.items()
    ]
    assert found
    return found


def parent_of(wild: Manifest, node: Node) -> Node:
    return next(other for other in wild.nodes if other.id == node.parent)


def files(wild: Manifest, node: Node) -> Weights:
    return read_weights(wild.folder / node.source)


def blocks(wild: Manifest, node: Node) -> dict[Layer, torch.Tensor]:
    return block_weights(wild.folder / node.source)


# The plan


def test_manifest_in_the_repository_is_that_of_the_plan() -> None:
    assert read_manifest(ROOT / "dataset" / f"{WILD}.json") == plan_wild(ROOT / "dataset")


def test_structure_of_the_plan() -> None:
    manifest = plan_wild(Path("dataset"))
    nodes = {node.id: node for node in manifest.nodes}
    graph = nx.DiGraph(list(manifest.edges))
    graph.add_nodes_from(nodes)
    assert nx.is_directed_acyclic_graph(graph)
    for component in nx.weakly_connected_components(graph):
        assert len({nodes[name].tree for name in component}) == 1
    assert len({node.tree for node in manifest.nodes}) == nx.number_weakly_connected_components(graph)
    assert sum(1 for _ in nx.isolates(graph)) == 3
    found = {node.kind for node in manifest.nodes if node.all_parents}
    assert found == set(NODE_KINDS) - {"adapter"}  # here they are merged into their bases
    assert all(node.kind is None for node in manifest.nodes if not node.all_parents)
    roots = [name for name, degree in graph.in_degree if degree == 0]
    depths = [max(nx.single_source_shortest_path_length(graph, root).values()) for root in roots]
    assert sum(depth >= 4 for depth in depths) >= 2
    absent = [node for node in manifest.nodes if node.absent]
    assert [sum(not nodes[child].absent for child in graph.successors(node.id)) >= 3 for node in absent] == [True] * 3
    assert sum(node.parent is None for node in absent) == 1
    assert {node.rank for node in manifest.nodes} >= {1, 2, 4, 8, 16}


def test_absent_models_are_grown_but_not_given_to_recovery(wild: Manifest) -> None:
    absent = [node for node in wild.nodes if node.absent]
    assert absent and all(is_intact(job) for job in jobs_of(wild))
    assert {node.id for node in wild.present} == {node.id for node in wild.nodes} - {node.id for node in absent}
    opened, left_out = open_models(wild)
    assert [checkpoint.model for checkpoint in opened] == [node.id for node in wild.present] and not left_out
    assert sum(known_trees(wild).values(), []).count(absent[0].id) == 0


def test_a_merge_remembers_all_it_was_made_from(wild: Manifest) -> None:
    jobs = {job.id: job for job in jobs_of(wild)}
    merge = of(wild, "merge", method="ties")[0]
    assert jobs[merge.id].parents == (*merge.parents, merge.recipe["base"])
    record = read_record(wild.folder / merge.source)
    assert len(record["parent_digests"]) == 3 and len(record["relative_changes"]) == 2


# What is trained


def test_changes_are_as_planned(wild: Manifest) -> None:
    for node in of(wild, "fine-tune") + of(wild, "lora"):
        record = read_record(wild.folder / node.source)
        low, high = node.recipe["change"]
        old, new = blocks(wild, parent_of(wild, node)), blocks(wild, node)
        assert old.keys() == new.keys()
        moved = sum((new[layer] - old[layer]).square().sum() for layer in old)
        change = math.sqrt(moved / sum(weight.square().sum() for weight in old.values()))
        assert low <= change <= high and change == pytest.approx(record["relative_change"])
        if "task" in node.recipe and not node.recipe.get("exempt"):
            assert record["accuracy_after"] > record["accuracy_before"] + 0.05


def test_frozen_layers_do_not_move(wild: Manifest) -> None:
    node = of(wild, "fine-tune", trains="last-2")[0]
    old, new = blocks(wild, parent_of(wild, node)), blocks(wild, node)
    assert {int(layer.block) for layer in old if not torch.equal(old[layer], new[layer])} == {2, 3}


def test_types_in_the_files(wild: Manifest) -> None:
    for node in wild.nodes:
        stored = {tensor.dtype for tensor in files(wild, node).values()}
        expected = node.recipe.get("dtype")
        assert stored == {DTYPES[expected]} if expected else len(stored) == 1, node


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rank_of_lora(dtype: str, wild: Manifest) -> None:
    """Exactly `rank` singular values of child - parent lie above what rounding can explain."""
    kinds = {"qv": 2, "linear": 6}
    for node in of(wild, "lora", dtype=dtype):
        if node.rank is None:
            continue
        old, new = blocks(wild, parent_of(wild, node)), blocks(wild, node)
        moved = {layer: new[layer] - old[layer] for layer in old if not torch.equal(old[layer], new[layer])}
        assert len(moved) == 4 * kinds[node.recipe["targets"]]
        epsilon = torch.finfo(DTYPES[dtype]).eps
        for layer, update in moved.items():
            noise = torch.linalg.matrix_norm(new[layer].abs(), 2) * epsilon  # bounds every entry's half unit
            assert int((torch.linalg.svdvals(update) > noise).sum()) == node.rank


def test_dora_has_no_rank(wild: Manifest) -> None:
    node = of(wild, "lora", dora=True)[0]
    old, new = blocks(wild, parent_of(wild, node)), blocks(wild, node)
    layer = Layer("0", "query")
    values = torch.linalg.svdvals(new[layer] - old[layer])
    assert node.rank is None and int((values > 1e-5 * values[0]).sum()) > 90


def test_snapshots_are_one_run(wild: Manifest) -> None:
    """The second goes on with the optimizer's state of the first, and sees other data."""
    node = of(wild, "fine-tune", grower="wild:pretrain_snapshot")[0]
    first, second = (
        load_file(wild.folder / which.source / "optimizer.safetensors") for which in (parent_of(wild, node), node)
    )
    step = next(name for name in first if name.startswith("step."))
    assert (first[step], second[step]) == (20, 40)


# What is computed


def test_casts_are_casts_of_the_parent(wild: Manifest) -> None:
    for node in of(wild, "cast"):
        through, stored = DTYPES[node.recipe["through"]], DTYPES[node.recipe["dtype"]]
        old, new = files(wild, parent_of(wild, node)), files(wild, node)
        assert old.keys() == new.keys()
        assert all(
            new[name].dtype == stored and torch.equal(new[name], old[name].to(through).to(stored)) for name in old
        )


def test_copies_are_equal(wild: Manifest) -> None:
    for node in of(wild, "copy"):
        old, new = files(wild, parent_of(wild, node)), files(wild, node)
        assert {name.removeprefix("vit.") for name in old} == {name.removeprefix("vit.") for name in new}
        assert (old.keys() != new.keys()) == (node.recipe["form"] == "prefix")
        short = {name.removeprefix("vit."): tensor for name, tensor in new.items()}
        assert all(
            torch.equal(tensor.float(), short[name.removeprefix("vit.")].float()) for name, tensor in old.items()
        )
    sharded = of(wild, "copy", form="shards")[0]
    assert len(list((wild.folder / sharded.source).glob("*.safetensors"))) > 1


def test_pruned_models_differ_where_they_are_zero(wild: Manifest) -> None:
    for node in of(wild, "prune"):
        old, new = blocks(wild, parent_of(wild, node)), blocks(wild, node)
        for layer, weight in new.items():
            zero = weight == 0
            assert torch.equal(weight[~zero], old[layer][~zero])
            assert old[layer][zero].abs().mean() < old[layer][~zero].abs().mean()
            assert zero.double().mean() == pytest.approx(node.recipe.get("share", 0.5), abs=1e-3)
            if "pattern" in node.recipe:
                assert (zero.reshape(-1, 4).sum(1) == 2).all()


# Scheme -> the rows that share a scale, the levels there are, and the widest gap between them in units of the scale.
GRIDS = {
    "int8-tensor": ((1, -1), 255, 1 / 127),
    "int8-row": (None, 255, 1 / 127),
    "uint8-row": (None, 256, 2 / 255),
    "int4-block": ((-1, BLOCK), 15, 1 / 7),
    "nf4-block": ((-1, BLOCK), 16, 1 - 0.6962),
}


def test_quantized_models_lie_on_their_grid(wild: Manifest) -> None:
    for node in of(wild, "quantize"):
        rows, levels, gap = GRIDS[node.recipe["scheme"]]
        old, new = blocks(wild, parent_of(wild, node)), blocks(wild, node)
        for layer, weight in new.items():
            before, after = (w.reshape(rows or w.shape) for w in (old[layer], weight))
            assert 4 < max(len(row.unique()) for row in after) <= levels
            largest = before.abs().amax(1)
            slack = largest * (2.0**-8 if node.recipe["dtype"] == "bfloat16" else 1e-5)
            assert ((after - before).abs().amax(1) <= gap / 2 * largest + slack).all()
            expected = quantized(old[layer].float(), node.recipe["scheme"]).to(DTYPES[node.recipe["dtype"]])
            assert torch.equal(weight, expected.double())


def test_levels_of_the_normal_codebook() -> None:
    """The published NF4 table, to its four digits."""
    published = [-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0]
    published += [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1]
    assert normal_codebook().tolist() == pytest.approx(published, abs=6e-5)


def affine_residual(parents: list[torch.Tensor], weight: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Coefficients of the best affine combination of the parents, and the rest relative to their differences."""
    differences = torch.stack([(parent - parents[0]).flatten() for parent in parents[1:]], dim=1)
    target = (weight - parents[0]).flatten()
    solution = torch.linalg.lstsq(differences, target[:, None]).solution[:, 0]
    rest = (differences @ solution - target).norm() / differences.norm()
    return torch.cat([1 - solution.sum().reshape(1), solution]), float(rest)


def test_merges(wild: Manifest) -> None:
    nodes = {node.id: node for node in wild.nodes}
    for node in of(wild, "merge"):
        parents, new = [blocks(wild, nodes[name]) for name in node.parents], blocks(wild, node)
        assert node.parent is None and all(parent.keys() == new.keys() for parent in parents)
        # The first two blocks of one parent are frozen: it is the base there.
        for layer in (layer for layer in new if layer.block == "3"):
            found, rest = affine_residual([parent[layer] for parent in parents], new[layer])
            if node.recipe["method"] == "linear":
                assert rest < 1e-5 and found.tolist() == pytest.approx(node.coefficients, abs=1e-4)
            elif node.recipe["method"] == "slerp":
                span = torch.stack([parent[layer].flatten() for parent in parents], dim=1)
                rest = span @ torch.linalg.lstsq(span, new[layer].reshape(-1, 1)).solution - new[layer].reshape(-1, 1)
                assert rest.norm() < 1e-6 * new[layer].norm()
                lengths = [parent[layer].norm() for parent in parents]
                assert min(lengths) * 0.99 < new[layer].norm() < max(lengths) * 1.01
            else:
                assert node.coefficients is None and rest > 0.05


def test_ties_and_dare_change_the_base_where_their_parents_do(wild: Manifest) -> None:
    nodes = {node.id: node for node in wild.nodes}
    layer = Layer("3", "query")
    for method in ("ties", "dare"):
        node = of(wild, "merge", method=method)[0]
        base = blocks(wild, nodes[node.recipe["base"]])[layer]
        updates = torch.stack([blocks(wild, nodes[name])[layer] - base for name in node.parents])
        update = blocks(wild, node)[layer] - base
        moved = (updates.abs() > 1e-5).all(0)  # sign updates may come back to where they were
        untouched = float((update.abs() < 1e-7)[moved].double().mean())
        if method == "dare":  # both dropped: one in four
            assert untouched == pytest.approx(0.25, abs=0.03)
        else:
            assert 0.05 < untouched < 0.5
            assert (update.abs() <= updates.abs().amax(0) + 1e-6).all()
            assert (update * updates.sum(0) >= -1e-9).double().mean() > 0.85


def test_a_merge_is_outdated_when_any_parent_changes(wild: Manifest) -> None:
    job = next(job for job in jobs_of(wild) if len(job.parents) == 2)
    assert is_intact(job)
    assert not is_intact(replace(job, parent_folders=job.parent_folders[::-1]))
    assert not is_intact(replace(job, parent_folders=(job.parent_folders[0], wild.folder / "nowhere")))


def test_a_merge_fails_with_any_of_its_parents(wild: Manifest, tmp_path: Path) -> None:
    merge = next(job for job in jobs_of(wild) if len(job.parents) == 2)
    broken = Job(merge.parents[1], tmp_path / "broken", {"grower": "weights:copy", "form": "none"}, "x", merge.folder)
    outcome = {job.id: result for job, result in grow([replace(merge, folder=tmp_path / "merge"), broken], workers=1)}
    assert all(isinstance(result, GrowError) for result in outcome.values())
    assert f"its parent {broken.id} could not be grown" in str(outcome[merge.id])
