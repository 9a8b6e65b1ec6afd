"""Growing: the plan, the tasks, and a forest that survives being killed, truncated and thinned out."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from grown import copied

from dataset.forest import GrowError, Job, grow, is_intact, read_record
from dataset.grow import jobs_of
from dataset.plan import FAMILIES, QUICK, RANKS, SPLITS, Size, plan, plan_family
from dataset.tasks import FACTORS, IMAGE_SIZE, TASKS, draw, scenes
from mother.graph.manifest import Manifest
from mother.graph.manifest_io import read_manifest
from mother.io.files import sha256


@pytest.mark.parametrize("split", SPLITS)
def test_manifests_in_the_repository_are_those_of_the_plan(split: str) -> None:
    assert read_manifest(ROOT / "dataset" / f"{split}.json") == plan(split, ROOT / "dataset")


@pytest.mark.parametrize("family", FAMILIES)
def test_manifests_of_the_families(family: str) -> None:
    manifest = read_manifest(ROOT / "dataset" / f"{family}.json")
    assert manifest.nodes == plan_family(family, ROOT / "dataset").nodes
    assert len(manifest.edges) == 4


@pytest.mark.parametrize("split", SPLITS)
def test_structure_of_a_split(split: str) -> None:
    manifest = plan(split, Path("dataset"))
    nodes = {node.id: node for node in manifest.nodes}
    roots = [node for node in manifest.nodes if node.parent is None]
    children = [node for node in manifest.nodes if node.parent and nodes[node.parent].parent is None]
    grandchildren = [node for node in manifest.nodes if node.parent and nodes[node.parent].parent]
    assert (len(nodes), len(roots), len(children), len(grandchildren)) == (105, 5, 20, 80)
    assert {root.task for root in roots} == {"supervised", "contrastive"}
    assert all(node.tree == nodes[node.parent].tree for node in children + grandchildren)
    assert {node.task for node in children + grandchildren} == set(TASKS)
    ranks = {node.rank for node in children + grandchildren}
    assert ranks == {"mini_ft": {None}, "mini_lora_v": set(RANKS), "mini_lora_f": {8}}[split]
    assert len({node.recipe["learning_rate"] for node in children}) == 20


@pytest.mark.parametrize("task", TASKS)
def test_tasks(task: str) -> None:
    images, labels = draw(task, 300, np.random.default_rng(0))
    assert images.shape == (300, 3, IMAGE_SIZE, IMAGE_SIZE) and images.dtype == np.float32
    assert np.isfinite(images).all() and 0.3 < images.std() < 1.5
    assert set(labels.tolist()) == set(range(TASKS[task]))
    again, same = draw(task, 300, np.random.default_rng(0))
    assert np.array_equal(images, again) and np.array_equal(labels, same)


def test_factors_are_independent() -> None:
    labels = scenes(4000, np.random.default_rng(0)).labels
    names = [name for name in FACTORS if name != "count"]
    table = np.corrcoef([labels[name] for name in names])
    assert np.abs(table - np.eye(len(names))).max() < 0.08


def test_held_out_digits_are_not_trained_on() -> None:
    from dataset.tasks import _digits

    train, test = (
        set(np.flatnonzero((np.arange(len(_digits()[1])) % 5 == 0) == held_out)) for held_out in (False, True)
    )
    assert not train & test and len(test) > 300


def test_every_child_learned_its_task(forest: dict[str, Manifest]) -> None:
    for manifest in forest.values():
        for node in manifest.nodes:
            record = read_record(manifest.folder / node.source)
            assert record["accuracy_after"] > record["accuracy_before"] + 0.05, node
            assert (manifest.folder / node.source / "config.json").exists()
            if node.parent is not None:
                assert 1e-3 < record["relative_change"] < 2, node


def snapshot(manifest: Manifest) -> dict[str, str]:
    return {node.id: sha256(manifest.folder / node.source / "model.safetensors") for node in manifest.nodes}


def test_deleted_and_truncated_models_are_grown_again_to_the_same_bytes(
    forest: dict[str, Manifest], tmp_path: Path
) -> None:
    manifest = copied(forest["mini_lora_v"], tmp_path / "forest")
    before = snapshot(manifest)
    jobs = jobs_of(manifest)
    assert all(is_intact(job) for job in jobs)
    child = next(job for job in jobs if job.parent is not None)
    grandchild = next(job for job in jobs if job.parent == child.id)
    other = jobs[-1]
    (child.folder / "model.safetensors").unlink()
    os.truncate(grandchild.folder / "model.safetensors", 1000)
    (other.folder / "training.json").write_text("{")
    (other.folder.parent / ".half.tmp").mkdir()
    assert [job for job in jobs if not is_intact(job)] == [child, grandchild, other]
    seconds = {job.id: outcome for job, outcome in grow(jobs)}
    assert {name for name, outcome in seconds.items() if outcome} == {child.id, grandchild.id, other.id}
    assert snapshot(manifest) == before
    assert not list(other.folder.parent.glob(".*.tmp"))


@pytest.mark.parametrize("content", ["[]", "1", '{"digests": []}'])
def test_a_record_that_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(content)
    assert read_record(tmp_path) is None
    assert not is_intact(Job("a", tmp_path, {}))


def test_another_recipe_grows_again(forest: dict[str, Manifest]) -> None:
    job = jobs_of(forest["mini_ft"])[-1]
    assert is_intact(job)
    assert not is_intact(Job(job.id, job.folder, job.recipe | {"steps": 1}, job.parent, job.parent_folder))


def test_a_failure_stops_its_descendants_only(tmp_path: Path) -> None:
    """A root that cannot solve its task in two steps, and its child; both are named, nothing is left behind."""
    manifest = plan("mini_ft", tmp_path, Size(trees=1, children=1, grandchildren=0, root_steps=20, solved=1.07))
    outcome = {job.id: result for job, result in grow(jobs_of(manifest), workers=1)}
    root, child = manifest.nodes
    assert isinstance(outcome[root.id], GrowError) and "0.995 asked for" in str(outcome[root.id])
    assert isinstance(outcome[child.id], GrowError) and root.id in str(outcome[child.id])
    assert [path for path in (tmp_path / "models").rglob("*") if path.is_file() and path.name != ".lock"] == []


@pytest.mark.slow
@pytest.mark.timeout(900)  # it grows a split twice, after the shared ones
def test_a_killed_run_goes_on(tmp_path: Path, forest: dict[str, Manifest]) -> None:
    """SIGKILL while it grows; the next run finishes, and every model is that of an undisturbed run."""
    code = (
        "from pathlib import Path; from dataset.grow import grow_manifest; from dataset.plan import QUICK, plan\n"
        f"if __name__ == '__main__': assert not grow_manifest(plan('mini_ft', Path({str(tmp_path)!r}), QUICK))"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, script], env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while len(list(tmp_path.glob("models/*/*/training.json"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = len(list(tmp_path.glob("models/*/*/training.json")))
    assert 4 <= done < 14
    subprocess.run([sys.executable, script], env=environment, check=True, capture_output=True)
    manifest = plan("mini_ft", tmp_path, QUICK)
    assert snapshot(manifest) == snapshot(forest["mini_ft"])
    assert json.loads((tmp_path / "mini_ft.json").read_text())["name"] == "mini_ft"
