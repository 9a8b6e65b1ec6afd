"""What the benchmarks of method "map" share: trace the grown splits once, and examples of known truth."""

import pickle
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from dataset.grow import grow_manifest
from dataset.zoo_plan import plan_zoo
from mother.cli.progress import progress
from mother.graph.acyclic import descents
from mother.graph.collection import find_manifest, open_models, read_digest
from mother.graph.manifest import Manifest
from mother.graph.scores import present_parents
from mother.heritage.fitting import Example
from mother.heritage.trace import trace
from mother.heritage.trees import Cluster, Heritage, cast_twins, known_pairs
from mother.io.runtime import code_digest

SPLITS = ("mini_ft", "mini_lora_v", "mini_lora_f", "mini_wild")
ZOOS = ("mini_zoo", "mini_zoo_1", "mini_zoo_2")  # of seeds 0, 1, 2: other weights, tasks and casts of the plots
FOLDER = Path(__file__).parent.parent / "dataset"


@dataclass
class Case:
    """A cluster of a traced split: its true tree, and to which group of a cross-validation it belongs."""

    split: str
    root: str  # folder name of the root, shared by splits
    architecture: str
    example: Example
    members: list[int]
    group: dict[str, str] = field(default_factory=dict)  # of the zoo: architecture and plot


def traced(split: str) -> tuple[Manifest, Heritage]:
    """Trace a grown split, or a zoo, which is grown where it is missing; see `traced_manifest`."""
    manifest = grown(ZOOS.index(split)) if split in ZOOS else find_manifest(split)
    return manifest, traced_manifest(manifest)


def grown(seed: int) -> Manifest:
    """The zoo of a seed, grown where it is missing."""
    manifest = plan_zoo(FOLDER, seed)
    if errors := grow_manifest(manifest):
        sys.exit(f"{len(errors)} models could not be grown; see above")
    return manifest


def traced_manifest(manifest: Manifest) -> Heritage:
    """Trace grown models. Kept in a scratch folder of this user while the models and our code stay the same."""
    split = manifest.name
    checkpoints, _ = open_models(manifest)
    digest = f"{read_digest(checkpoints)}-{code_digest()}"
    path = Path(tempfile.gettempdir()) / f"mother-traced-{torch.__version__}" / f"{split}-{digest}.pickle"
    if path.exists():
        return pickle.loads(path.read_bytes())
    heritage = trace(checkpoints, torch.device("cpu"), progress=lambda title: progress(f"{split} {title}"))
    path.parent.mkdir(exist_ok=True, mode=0o700)
    path.write_bytes(pickle.dumps(heritage))
    return heritage


def cases(manifest: Manifest, heritage: Heritage) -> list[Case]:
    """The clusters of related models, with the true parents of all whose parent is there."""
    nodes = {node.id: node for node in manifest.nodes}
    ancestors = present_parents(manifest)
    models = heritage.first_pass.models
    place = {model: heritage.aliases.get(at, at) for at, model in enumerate(models)}
    found = []
    for cluster in heritage.clusters:
        at = {member: row for row, member in enumerate(cluster.members)}
        parents: dict[int, int] = {}
        for model in models:
            child, node = place[model], nodes[model]
            if (node.kind == "copy" and not nodes[node.parent].absent) or child not in at:
                continue
            true = [place.get(parent) for parent in ancestors[model]]
            if true and true[0] in at and true[0] != child:
                parents[at[child]] = cluster.forced.get(at[child], at[true[0]])
        orphans = [at[child] for child in cluster.members if at[child] not in parents]
        if len(cluster.members) < 2 or _circle(parents):
            continue
        line = models[cluster.members[0]]
        while nodes[line].all_parents:
            line = nodes[line].all_parents[0]
        has = heritage.first_pass.facts[cluster.members[0]].digests
        gated = any(str(layer) in has for layer in heritage.first_pass.layers if layer.kind == "mlp_gate")
        recipe = nodes[line].recipe or {}
        group = {key: str(recipe[key]) for key in ("architecture", "plot") if key in recipe}
        root = Path(nodes[line].source).name
        architecture = group.get("architecture", "llama" if gated else "vit")
        absent = dict.fromkeys(orphans, "the root") if len(orphans) > 1 else {}
        absent |= {
            at[place[node.id]]: node.parent
            for node in manifest.present
            if node.parent is not None and nodes[node.parent].absent and place.get(node.id) in at
            if at[place[node.id]] not in absent
        }
        absent = {child: name for child, name in absent.items() if child not in cluster.forced}
        twins = _twins(heritage, cluster, parents)
        above = descents(known_pairs(heritage, cluster.members))
        # A relation that was read wrong must not exclude the truth.
        ways = [(at[descendant], at[ancestor]) for ancestor, descendant in above]
        excluded = [(parent, child) for parent, child in ways if parents.get(child) != parent]
        example = Example(cluster.evidence, parents, cluster.forced, absent, twins=twins, excluded=excluded)
        found.append(Case(manifest.name, root, architecture, example, cluster.members, group))
    return found


def _twins(heritage: Heritage, cluster: Cluster, parents: dict[int, int]) -> dict[int, int]:
    """Of models whose parent is a cast, or was cast, the other of the two: no coefficient tells which it is."""
    found = {}
    for pair in cast_twins(heritage, cluster.members):
        for own, other in (pair, pair[::-1]):
            children = [child for child, parent in parents.items() if parent == own and child != other]
            found |= dict.fromkeys((child for child in children if child not in cluster.forced), other)
    return found


def _circle(parents: dict[int, int]) -> bool:
    """Whether the parents close a circle: an exact relation may have been read the wrong way."""
    for child in parents:
        line, seen = child, set()
        while line in parents and line not in seen:
            seen.add(line)
            line = parents[line]
        if line in seen:
            return True
    return False


def expected_calibration_error(probability: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Mean over bins of |mean probability - share right|, weighted by how many fall into each."""
    number = np.minimum((probability * bins).astype(int), bins - 1)
    errors = [
        (number == k).mean() * abs(probability[number == k].mean() - right[number == k].mean())
        for k in range(bins)
        if (number == k).any()
    ]
    return float(sum(errors))


def error_of_calibrated(probability: np.ndarray, draws: int = 500) -> float:
    """The error above that a forecaster has on average whose probabilities are true: of few edges it is not 0."""
    rng = np.random.default_rng(0)
    return float(
        np.mean(
            [expected_calibration_error(probability, rng.random(len(probability)) < probability) for _ in range(draws)]
        )
    )
