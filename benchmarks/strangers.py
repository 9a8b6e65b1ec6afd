"""Unrelated trained models of twelve architectures: how often a relation is seen where there is none.

    python -m benchmarks.strangers                            grows 504 models once, then compares
    python -m benchmarks.strangers --models 180 --zoo 3000    fewer and other strangers

The strangers are grown by the zoo's recipes of roots with other seeds, and kept in .cache/. All pairs of one
architecture are compared. Fails where the share of collections with a false relation is larger than the level, by more
than its interval allows, or where relatives are lost that an early snapshot is the parent of.
"""

import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import tyro
from jaxtyping import Float
from scipy.stats import binomtest

from dataset.forest import read_record
from dataset.grow import grow_manifest
from dataset.zoo_plan import DISTANT, plan_distant, plan_strangers
from mother.evidence.alignment import align
from mother.evidence.first_pass import groups, of_both, take_first_pass
from mother.evidence.permutation import Permuted, permuted
from mother.evidence.relatedness import layer_cosine, near_threshold, related_components
from mother.evidence.sketch import Sketch, sketch_models
from mother.graph.collection import open_models
from mother.graph.manifest import Manifest, Node
from mother.graph.text import format_table

FOLDER = Path(__file__).parent.parent / ".cache" / "strangers"
LEVELS = (0.01, 0.05, 0.2)
COLLECTION = 10  # strangers in each of the collections whose false relations are counted
CPU = torch.device("cpu")


@dataclass
class Args:
    """Compare strangers, and relatives that hardly resemble one another."""

    models: int = 360
    """strangers, equally many of every architecture"""
    draws: int = 100
    """times that the strangers of an architecture are dealt out into collections of ten"""
    seed: int = 0
    """of the dealing"""
    zoo: int = 1000
    """seed of the strangers"""


@dataclass
class Compared:
    """All pairs of the strangers of one architecture. Matrices are [i, j]."""

    mean_off: Float[np.ndarray, "models models"]  # z of matrices of which only the mean is taken off
    z: Float[np.ndarray, "models models"]
    tested: Float[np.ndarray, "models models"]
    tests: dict[tuple[int, int], Permuted] = field(default_factory=dict)

    def test(self, members: np.ndarray, i: int, j: int) -> Permuted:
        """The test of two of these members."""
        one, other = sorted((int(members[i]), int(members[j])))
        return self.tests[one, other]

    def labels(self, members: np.ndarray, level: float) -> np.ndarray:
        """The clusters of a collection of some of them, as `take_first_pass` and `related_components` see it."""
        chosen = np.ix_(members, members)
        scores, _ = near_threshold(self.z[chosen], self.tested[chosen], lambda i, j: self.test(members, i, j))
        return related_components(scores, level)


def sketched(manifest: Manifest) -> dict[str, list[tuple[Node, Sketch]]]:
    """The models of a manifest by architecture, grown where they are missing."""
    if errors := grow_manifest(manifest, 1):
        sys.exit(f"{len(errors)} models could not be grown; see above")
    taken = sketch_models(open_models(manifest)[0], manifest.folder / "sketches")
    nodes = {node.id: node for node in manifest.nodes}
    found: dict[str, list[tuple[Node, Sketch]]] = defaultdict(list)
    for sketch in taken.sketches:
        node = nodes[sketch.model]
        found[node.recipe["architecture"]].append((node, sketch))
    return found


def with_the_mean_off(weights: Float[torch.Tensor, "models rows columns"]) -> np.ndarray:
    """Cosines over their deviation, of centred matrices that keep their profiles: the test without permutations."""
    rest = weights[:, :256, :256]
    rest = rest - rest.mean(dim=(1, 2), keepdim=True)
    rest = rest / torch.linalg.vector_norm(rest, dim=(1, 2), keepdim=True)
    flat, turned = rest.flatten(1), rest.transpose(1, 2)
    rows, columns = (rest @ turned).flatten(1), (turned @ rest).flatten(1)
    variance = ((rows @ rows.T) * (columns @ columns.T)).clamp(min=1 / flat.shape[1])
    return ((flat @ flat.T) / variance.sqrt()).numpy()


def compared(sketches: list[Sketch]) -> Compared:
    """Everything about the pairs of one architecture."""
    aligned = align(sketches).sketches
    before, z, tested = (np.zeros((len(aligned), len(aligned))) for _ in range(3))
    for layer, _, members in groups(aligned):
        chosen = np.ix_(members, members)
        weights = torch.stack([aligned[place].read(layer).float() for place in members])
        cosine, valid = layer_cosine(weights)
        before[chosen] += with_the_mean_off(weights)
        z[chosen] += np.where(valid, cosine, 0)
        tested[chosen] += valid.numpy()
    layers = np.sqrt(tested.clip(min=1))
    pairs = zip(*np.triu_indices(len(aligned), 1))
    tests = {(int(i), int(j)): permuted(of_both(aligned[i], aligned[j])) for i, j in pairs}
    return Compared(before / layers, z / layers, tested, tests)


def collections(count: int, draws: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Places of the strangers of one architecture, dealt out into collections of COLLECTION, `draws` times."""
    dealt = (rng.permutation(count)[: count - count % COLLECTION].reshape(-1, COLLECTION) for _ in range(draws))
    return [np.sort(members) for deal in dealt for members in deal]


def row(name: str, one: Compared) -> list:
    """What the scores of one architecture look like."""
    upper = np.triu_indices(len(one.z), 1)
    before, z = one.mean_off[upper], one.z[upper]
    scores, p = (np.array([getattr(test, name) for test in one.tests.values()]) for name in ("score", "p"))
    everyone = np.arange(len(one.z))
    false = len(everyone) - 1 - one.labels(everyone, LEVELS[0]).max()
    kept = [before.std(), np.abs(before).max(), z.std(), np.abs(z).max(), scores.std(), np.abs(scores).max()]
    left_out = sorted({str(layer) for test in one.tests.values() for layer in test.left_out})
    return [name, len(z), *kept, float((p <= 0.05).mean()), int(false), ", ".join(left_out) or "none"]


def family_wise(found: dict[str, Compared], args: Args) -> list[str]:
    """Print how many collections have a false relation at each level; returns what is above its level."""
    rng = np.random.default_rng(args.seed)
    dealt = {name: collections(len(one.z), args.draws, rng) for name, one in found.items()}
    rows, missed = [], []
    # Collections share pairs: the interval is that of as many as there are pairs for.
    distinct = sum(len(one.tests) for one in found.values()) // (COLLECTION * (COLLECTION - 1) // 2)
    for level in LEVELS:
        false = {
            name: [one.labels(members, level).max() < COLLECTION - 1 for members in dealt[name]]
            for name, one in found.items()
        }
        rate = float(np.mean([hit for hits in false.values() for hit in hits]))
        low, high = binomtest(round(rate * distinct), distinct).proportion_ci()
        naive = [before_permutations(one, members, level) for name, one in found.items() for members in dealt[name]]
        worst = max(false, key=lambda name: np.mean(false[name]))
        rows.append(
            [level, sum(map(len, false.values())), float(np.mean(naive)), rate, f"{low:.3f} to {high:.3f}"]
            + [f"{worst} {np.mean(false[worst]):.3f}"]
        )
        missed += [f"{rate:.3f} of collections at level {level}"] if low > level else []
    head = ("level", "collections", "before", "with a false relation", f"interval of {distinct}", "worst architecture")
    print(f"\nCollections of {COLLECTION} strangers of one architecture\n{format_table(head, rows)}")
    return missed


def before_permutations(one: Compared, members: np.ndarray, level: float) -> bool:
    """Whether a collection has a false relation by the test without permutations."""
    return bool(related_components(one.mean_off[np.ix_(members, members)], level).max() < COLLECTION - 1)


def relatives(strangers: dict[str, list[Sketch]]) -> list[str]:
    """Print which distant relatives are found among strangers of their architecture; returns what is missed."""
    strengths = {(rate, decay): name for name, (rate, decay, _) in DISTANT.items()}
    found: dict[str, list[tuple[float, float, bool]]] = defaultdict(list)
    moves: dict[str, list[float]] = defaultdict(list)
    for architecture, family in sketched(plan_distant(FOLDER)).items():
        among = strangers[architecture][:COLLECTION]
        first = take_first_pass(align([sketch for _, sketch in family] + among).sketches, CPU)
        labels = related_components(first.relatedness, LEVELS[0])
        place = {node.id: at for at, (node, _) in enumerate(family)}
        for node, _ in family:
            if node.parent is None:
                continue
            i, j = place[node.parent], place[node.id]
            name = strengths[node.recipe["learning_rate"], node.recipe["decay"]]
            found[name].append((float(first.relatedness[i, j]), float(labels[i] == labels[j]), first.compared(i, j)))
            moves[name].append(read_record(FOLDER / node.source)["relative_change"])
    rows = [
        [f"{name}: rate {rate:g}, decay {decay:g}, {steps} steps", len(found[name]), float(np.median(moves[name]))]
        + [min(one[0] for one in found[name]), float(np.median([one[0] for one in found[name]]))]
        + [float(np.mean([one[1] for one in found[name]]))]
        for name, (rate, decay, steps) in DISTANT.items()
    ]
    head = ("children of a snapshot of 20 steps", "pairs", "relative change", "least z", "median z", "found at 0.01")
    print(f"\nRelatives among {COLLECTION} strangers\n{format_table(head, rows)}")
    return [f"{one[0]}: found {one[-1]:.2f}" for one in rows[:1] if one[-1] < 1]


def main(args: Args) -> None:
    """Print the three tables."""
    planned = plan_strangers(FOLDER.with_name(f"strangers_{args.zoo}"), args.models, args.zoo)
    strangers = {name: [sketch for _, sketch in models] for name, models in sketched(planned).items()}
    found = {name: compared(sketches) for name, sketches in strangers.items()}
    head = ("architecture", "pairs", "before: sd", "largest", "z: sd", "largest", "permuted: sd", "largest")
    rows = [row(name, one) for name, one in found.items()]
    print(format_table((*head, "p <= 0.05", "false at 0.01", "left out"), rows))
    missed = family_wise(found, args)
    whole = take_first_pass(align([one for models in strangers.values() for one in models]).sketches, CPU)
    clusters = [int(related_components(whole.relatedness, level).max()) + 1 for level in LEVELS]
    print(
        f"\nAll {len(whole.models)} strangers as one collection: {len(whole.permuted)} pairs tested by permutations; "
        f"{', '.join(f'{len(whole.models) - n} false relations at {level}' for n, level in zip(clusters, LEVELS))}"
    )
    missed += relatives(strangers)
    if missed:
        sys.exit(f"missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main(tyro.cli(Args))
