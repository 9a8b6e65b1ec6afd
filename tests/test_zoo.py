"""The zoo: what its plans hold, and that its models are what their recipes say."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset.forest import read_record
from dataset.weights import read_weights
from dataset.zoo import fuse_experts, split_experts
from dataset.zoo_data import draw_data, loss_of, tasks_of
from dataset.zoo_models import ARCHITECTURES, build
from dataset.zoo_plan import DISTANT, plan_distant, plan_small_zoo, plan_strangers, plan_zoo
from dataset.zoo_plots import PLOTS
from dataset.zoo_weights import is_weight
from mother.graph.manifest import Manifest, Node
from mother.graph.manifest_io import read_manifest
from tests.grown import grown

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def zoo() -> Manifest:
    return grown(plan_small_zoo(ROOT))[0]


def made_by(zoo: Manifest, kind: str | None, **recipe: object) -> list[Node]:
    return [node for node in zoo.nodes if node.kind == kind and recipe.items() <= node.recipe.items()]


def test_the_manifest_is_the_plan() -> None:
    planned, kept = plan_zoo(ROOT / "dataset"), read_manifest(ROOT / "dataset" / "mini_zoo.json")
    assert planned == kept


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_plot_is_played_by_several_architectures(tmp_path: Path, seed: int) -> None:
    plan = plan_zoo(tmp_path, seed)
    players = defaultdict(set)
    for node in plan.nodes:
        players[node.recipe["plot"]].add(node.recipe["architecture"])
    assert players.keys() == PLOTS.keys()
    assert min(map(len, players.values())) >= 4
    assert set().union(*players.values()) == set(ARCHITECTURES)
    assert 290 <= len(plan.nodes) <= 320
    roots = {node.tree for node in plan.nodes if not node.all_parents and not node.absent}
    assert all(8 <= size - 1 <= 14 for size in Counter(node.tree for node in plan.nodes if node.tree in roots).values())
    assert {len(node.all_parents) for node in plan.nodes if node.kind == "merge"} == {2, 3, 4, 5}
    moves = [node.recipe["move"] for node in plan.nodes if "move" in node.recipe]
    assert min(moves) == 0.002 and max(moves) == 0.6
    nodes = {node.id: node for node in plan.nodes}
    of_merges = {node.id for node in plan.nodes if node.parent and nodes[node.parent].kind == "merge"}
    assert len(of_merges) >= 4
    assert sum(node.parent in of_merges for node in plan.nodes) >= 2
    children = Counter(name for node in plan.nodes for name in node.all_parents)
    assert all(children[node.id] >= 2 for node in plan.nodes if node.absent)


def test_seeds_draw_other_weights_and_other_players(tmp_path: Path) -> None:
    first, second = plan_zoo(tmp_path, 0), plan_zoo(tmp_path, 1)
    played = [{(n.recipe["architecture"], n.recipe["plot"]) for n in plan.nodes} for plan in (first, second)]
    assert played[0] != played[1]
    seeds = [{n.recipe["seed"] for n in plan.nodes if "seed" in n.recipe} for plan in (first, second)]
    assert not seeds[0] & seeds[1]


def test_strangers_have_no_relatives(tmp_path: Path) -> None:
    plan = plan_strangers(tmp_path, 24)
    assert len(plan.nodes) == len({node.tree for node in plan.nodes}) == 24
    assert set(Counter(node.recipe["architecture"] for node in plan.nodes).values()) == {2}


def test_distant_relatives_are_children_of_snapshots(tmp_path: Path) -> None:
    nodes = plan_distant(tmp_path, 1).nodes
    roots = {node.id: node for node in nodes if node.parent is None}
    assert {node.recipe["schedule"] for node in roots.values()} == {"constant"}
    assert Counter(node.parent for node in nodes if node.parent) == dict.fromkeys(roots, len(DISTANT))
    assert len({node.recipe["seed"] for node in nodes}) == len(nodes)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_learns(architecture: str) -> None:
    torch.manual_seed(0)
    model, task = build(architecture), tasks_of(architecture)[0]
    data = draw_data(architecture, task, 12, np.random.default_rng(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = loss_of(architecture, model, data)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert 30_000 <= sum(weight.numel() for weight in model.parameters()) <= 250_000


def test_experts_come_apart_and_together() -> None:
    fused = build("moe").state_dict()
    apart = split_experts(fused)
    assert "model.layers.0.mlp.experts.3.w2.weight" in apart and max(t.ndim for t in apart.values()) == 2
    back = fuse_experts(apart)
    assert back.keys() == fused.keys() and all(torch.equal(back[name], fused[name]) for name in fused)


def test_models_move_as_planned(zoo: Manifest) -> None:
    for node in zoo.nodes:
        record = read_record(zoo.folder / node.source)
        if not node.all_parents:
            assert record["loss_after"] < record["loss_before"]
        if "move" in node.recipe:
            assert record["relative_change"] == pytest.approx(node.recipe["move"], rel=0.35)
        dtype = json.loads((zoo.folder / node.source / "config.json").read_text())["dtype"]
        assert dtype == node.recipe.get("dtype", dtype)


def test_lora_has_its_rank_and_dora_has_not(zoo: Manifest) -> None:
    nodes = {node.id: node for node in zoo.nodes}
    for node in made_by(zoo, "lora"):
        new, old = (read_weights(zoo.folder / each.source) for each in (node, nodes[node.parent]))
        changed = [name for name in new if not torch.equal(new[name], old[name])]
        assert changed and all(is_weight(name, new[name]) for name in changed)
        for name in changed:
            spectrum = torch.linalg.svdvals((new[name] - old[name]).double())
            low = bool(spectrum[node.recipe["rank"]] < 1e-4 * spectrum[0])
            assert low == (not node.recipe.get("dora"))


def test_a_small_step_rounds_to_its_parent_and_a_mask_is_kept(zoo: Manifest) -> None:
    nodes = {node.id: node for node in zoo.nodes}
    (steered,) = made_by(zoo, "fine-tune", dtype="bfloat16", learning_rate=3e-6)
    new, old = (read_weights(zoo.folder / each.source) for each in (steered, nodes[steered.parent]))
    equal = torch.cat([(new[name] == old[name]).flatten() for name in new]).double().mean()
    assert 0.5 < equal < 1
    (sparse,) = made_by(zoo, "fine-tune", keep_mask=True)
    new, old = (read_weights(zoo.folder / each.source) for each in (sparse, nodes[sparse.parent]))
    assert all((new[name][old[name] == 0] == 0).all() for name in new if is_weight(name, new[name]))
