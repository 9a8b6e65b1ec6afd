"""Adapters without their base: is the family named, and the base within it, from the update alone?

python -m benchmarks.adapters [--folder FOLDER]

Families of five architectures with trees that are drawn, and PEFT adapters of drawn members, are grown (in
.cache/adapters, about ten minutes) where they are missing. Candidates of each adapter are its family of ten, an
unrelated root of the same architecture, and the roots of the other architectures. Base coefficients are fitted on the
other architectures than the one at hand. The method was chosen on these families. A second table is of fresh ones
(another tree, other weights, tasks and bases of each architecture, and two more architectures), with the coefficients
that are kept, and a third of a second fresh draw, since the statistic was changed after the first one was seen.
"By chance" is the calibration error that so few adapters would have if the probabilities were true.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import ndtri

from benchmarks.traced import error_of_calibrated, expected_calibration_error
from dataset.lone_adapters import DRAWS, LINEAR, Lone, grow_adapters, grow_models, grow_roots
from mother.collection.find import Source
from mother.collection.whose import ERROR, Candidates
from mother.errors import CheckpointError
from mother.evidence.adapter_base import fit
from mother.evidence.adapter_reads import updates_on
from mother.evidence.adapter_within import COEFFICIENTS, figures, softmax
from mother.graph.text import format_table
from mother.io.open import open_checkpoint

CACHE = Path(__file__).parent.parent / ".cache" / "adapters"
FRESH_FOLDERS = ("fresh", "fresh 2")
FAMILY, BASE, ECE = 0.99, 0.8, 0.1  # thresholds: family right, base right, calibration error of the base
ALIKE, ROOTS = ("bert", "vit"), 12  # architectures of the same names and shapes, and strangers that are grown of each
PRIOR = 1e-3  # weight of squared coefficients in the fit


@dataclass(frozen=True)
class Case:
    """An adapter, and what was measured of it and its candidates."""

    architecture: str
    lone: Lone
    family: tuple[str, ...]
    related: dict[str, bool]  # the base, and strangers that it fits: whether each is named as family
    strangers: dict[str, float]  # scores of the roots of other families that it fits; "other" is of its architecture
    figures: Float[np.ndarray, "models two"]

    @property
    def truth(self) -> int:
        """Place of the base in the family."""
        return self.family.index(self.lone.base)

    @property
    def right(self) -> bool:
        """Whether the base is named as family, and no stranger is."""
        return self.related[self.lone.base] and not any(self.related[m] for m in self.related.keys() - {*self.family})


def measure(architecture: str, models: dict[str, Path], lone: list[Lone], foreign: dict[str, Path]) -> list[Case]:
    """Hold all adapters of an architecture against its family and strangers."""
    sources = [Source(name, str(path)) for name, path in (models | foreign).items()]
    candidates = Candidates(sources)
    family = tuple(name for name in models if name != "other")
    cases = []
    for one in lone:
        scores, own = {}, {}
        for source in sources:
            shapes = {name: info.shape for name, (_, info) in candidates.opened[source.id].tensors.items()}
            if source.id in family and source.id not in (one.base, family[0]):
                continue  # what they are asked for is which of them is the base, not whether they are related
            try:
                updates = updates_on(open_checkpoint(one.name, one.folder, source.location), shapes)
            except CheckpointError:  # it fits only models of its architecture
                continue
            if source.id == family[0]:
                own = updates
            if source.id != family[0] or one.base == family[0]:
                found = fit(updates, candidates.surroundings(source.id))
                scores[source.id] = found.z if found is not None else 0.0
        # Holm: the family is held to the level over all that fit, strangers after it to that over those that are left.
        strange = len(scores.keys() - {*family})
        least = {m: -ndtri(ERROR / (len(family) + strange if m in family else strange)) for m in scores}
        marks = {model: bool(z > least[model]) for model, z in scores.items()}
        both = figures(own, [candidates.surroundings(model) for model in family])
        strangers = {model: z for model, z in scores.items() if model not in family}
        cases.append(Case(architecture, one, family, marks, strangers, both))
    return cases


def learn(cases: Sequence[Case]) -> Float[np.ndarray, "two"]:
    """The coefficients under which the true bases are most probable."""
    scale = np.concatenate([case.figures for case in cases]).std(0)

    def loss(weights: np.ndarray) -> float:
        chances = [softmax((case.figures / scale) @ weights)[case.truth] for case in cases]
        return float(-np.mean(np.log(np.maximum(chances, 1e-300))) + PRIOR * (weights**2).sum())

    return minimize(loss, np.zeros(2)).x / scale


def chances_of(cases: Sequence[Case]) -> list[Float[np.ndarray, "models"]]:
    """Probabilities of the bases of each case, by coefficients that never saw its architecture."""
    learnt = {name: learn([case for case in cases if case.architecture != name]) for name in LINEAR}
    return [softmax(case.figures @ learnt[case.architecture]) for case in cases]


def row(name: str, cases: Sequence[Case], chances: Sequence[np.ndarray]) -> list:
    """How well some adapters were answered."""
    named = [int(chance.argmax()) == case.truth for case, chance in zip(cases, chances)]
    stated = np.array([chance.max() for chance in chances])
    of_truth = [chance[case.truth] for case, chance in zip(cases, chances)]
    error = expected_calibration_error(stated, np.array(named))
    family, chance = float(np.mean([case.right for case in cases])), error_of_calibrated(stated)
    figures = (family, np.mean(named), stated.mean(), np.mean(of_truth), error, chance)
    return [name, len(cases), *map(float, figures)]


def measured(folder: Path, draw: int) -> list[Case]:
    """Grow the families of a draw, and hold all of their adapters against them."""
    grown = {name: grow_models(name, folder / name, draw) for name in DRAWS[draw]}
    cases: list[Case] = []
    for name, models in grown.items():
        lone = grow_adapters(name, models, folder / name / "adapters", draw)
        foreign = {f"{other} root": others["root"] for other, others in grown.items() if other != name}
        cases += measure(name, models, lone, foreign)
    return cases


def show(cases: Sequence[Case], chances: Sequence[np.ndarray]) -> bool:
    """Print how the adapters of a draw were answered; returns whether that is as wanted."""
    rows = []
    parts = {
        **{name: [case.architecture == name for case in cases] for name in {case.architecture: 0 for case in cases}},
        **{f"rank {rank}": [case.lone.rank == rank for case in cases] for rank in (1, 4, 16)},
        **{f"{what} weights": [case.lone.targets == what for case in cases] for what in ("attention", "all")},
        **{f"seed {seed}": [case.lone.seed == seed for case in cases] for seed in range(3)},
        "first five": [case.architecture in LINEAR for case in cases],
        "all": [True] * len(cases),
    }
    for name, some in parts.items():
        of = [at for at, there in enumerate(some) if there]
        rows.append(row(name, [cases[at] for at in of], [chances[at] for at in of]))
    head = (
        "adapters",
        "count",
        f"family right at {ERROR:g}",
        "base right",
        "stated",
        "of the true base",
        "ECE",
        "by chance",
    )
    print(format_table(head, rows))
    for what, same in (("the same architecture", True), ("other architectures that it fits", False)):
        null = np.array([z for case in cases for model, z in case.strangers.items() if (model == "other") == same])
        if len(null):
            print(f"\nunrelated roots of {what}: z {null.mean():+.2f} with deviation {null.std():.2f},", end=" ")
            print(f"largest {null.max():.2f}, of {len(null)}; above 1.64: {(null > 1.64).sum()}")
    _, _, family, base, _, _, error, _ = rows[-1]
    return family >= FAMILY and base >= BASE and error <= ECE


def show_null(folder: Path, cases: Sequence[Case]) -> None:
    """Print the scores of many unrelated roots, of the same and of another architecture that has the same shapes.

    Adapters of one family score alike on one root, so that few roots say little of the null.
    """
    roots = {name: grow_roots(name, folder / name, ROOTS) for name in ALIKE}
    known = {path: Candidates([Source("root", str(path))]) for paths in roots.values() for path in paths}
    rows = []
    for own in ALIKE:
        lone = [case.lone for case in cases if case.architecture == own]
        for other in ALIKE:
            scores = []
            for path in roots[other]:
                base, candidates = known[path].opened["root"], known[path]
                shapes = {name: info.shape for name, (_, info) in base.tensors.items()}
                for one in lone:
                    updates = updates_on(open_checkpoint(one.name, one.folder, str(path)), shapes)
                    found = fit(updates, candidates.surroundings("root"))
                    scores.append(found.z if found is not None else 0.0)
            null = np.array(scores)
            above = [float((null > least).mean()) for least in (1.6449, 2.3263, 3.0902)]
            rows.append(
                [f"{own} on {other}", len(null), float(null.mean()), float(null.std()), *above, float(null.max())]
            )
    head = (
        "adapters on unrelated roots",
        "count",
        "z",
        "deviation",
        "beyond .05",
        "beyond .01",
        "beyond .001",
        "largest",
    )
    print(f"\n{format_table(head, rows)}")


def main(folder: Path) -> None:
    """Grow, measure, print."""
    cases = measured(folder, 0)
    good = show(cases, chances_of(cases))
    weights = learn(cases)
    print(f"coefficients from all: likelihood {weights[0]:.4g}, cosine {weights[1]:.4g}")
    for draw, name in enumerate(FRESH_FOLDERS, 1):
        print(f"\nfresh families {draw}, with the coefficients that are kept:\n")
        fresh = measured(folder / name, draw)
        if draw == 1:
            show_null(folder / "roots", fresh)
            print()
        good &= show(fresh, [softmax(case.figures @ np.asarray(COEFFICIENTS)) for case in fresh])
    if not good:
        sys.exit("a family, a base or a probability was wrong more often than wanted")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=CACHE)
    main(parser.parse_args().folder)
