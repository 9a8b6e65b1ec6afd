"""The error rates of an audit: true claims of every kind that it contradicts, and lies that it catches.

Every model of the grown splits claims each of its true ancestors, in the whole collection and in random halves of it,
where parents are absent. So do models made by arithmetic that honest people make (`benchmarks/honest.py`), and families
without annealing. Then each claims an unrelated model, a sibling and a child of its own.

    python -m benchmarks.audit
"""

import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import tyro

from benchmarks.honest import GROWN, grow_unannealed, make_honest
from benchmarks.traced import SPLITS
from mother.cli.progress import progress
from mother.collection.audit import audit
from mother.collection.claims import Claim
from mother.collection.exclusion import Exclusion
from mother.collection.find import Source
from mother.collection.names import Names
from mother.collection.verdicts import AGREES, CONTRADICTED
from mother.collection.workspace import recover_sources
from mother.errors import InputError
from mother.graph.collection import find_manifest
from mother.graph.text import format_table

MOST_FALSE, LEAST_CAUGHT = 1 / 1000, 0.95
LIES = ("unrelated", "sibling", "child")  # that an audit must catch
UNSAID = tuple(f"{lie}, no relation said" for lie in LIES)  # a mean of models could truly say as much
UNDECIDABLE = ("of another architecture", "sibling, its parent absent")  # lies that weights say nothing about


@dataclass
class Args:
    """True claims and lies about grown models."""

    halves: int = 6
    """random halves of each collection, in which parents are absent"""
    verbose: bool = False
    """print the lies that are not caught, too"""
    seed: int = 0
    """of the halves and of the lies"""


@dataclass(frozen=True)
class Collection:
    """Models whose parents are known."""

    name: str
    places: dict[str, str]
    parents: dict[str, list[str]]
    kinds: dict[str, str]
    copies: frozenset[str] = frozenset()
    architectures: dict[str, str] = field(default_factory=dict)

    def ancestors(self, model: str) -> set[str]:
        """All from which a model comes."""
        found: set[str] = set()
        waiting = list(self.parents.get(model, ()))
        while waiting:
            one = waiting.pop()
            if one not in found:
                found.add(one)
                waiting += self.parents.get(one, ())
        return found


def grown(split: str) -> Collection:
    """A grown split, with the truth of its manifest."""
    manifest = find_manifest(split)
    text = {node.tree for node in manifest.nodes if "domain" in (node.recipe or {})}
    return Collection(
        split,
        {node.id: str(manifest.location(node)) for node in manifest.present},
        {node.id: list(node.all_parents) for node in manifest.nodes},
        {node.id: node.kind or ("lora" if "lora" in split else "fine-tune") for node in manifest.nodes},
        frozenset(node.id for node in manifest.nodes if node.kind == "copy"),
        {node.id: "text" if node.tree in text else "image" for node in manifest.nodes},
    )


def honest(folder: Path, tree: int) -> Collection:
    """A root of mini_ft with its children, and what honest people make of them."""
    manifest = find_manifest("mini_ft")
    nodes = [node for node in manifest.present if node.tree == tree]
    root = next(node for node in nodes if node.parent is None)
    kids = [node for node in nodes if node.parent == root.id]
    paths = {node.id: manifest.location(node) for node in (root, *kids)}
    named = {path.name: name for name, path in paths.items()}
    found = make_honest(folder, paths[root.id], [paths[kid.id] for kid in kids], {})
    places = {name: str(path) for name, path in paths.items()} | {name: str(folder / name) for name in found}
    parents = {name: [named[one] for one in of] for name, of in found.items()} | {kid.id: [root.id] for kid in kids}
    kinds = {name: name.split("_")[0] for name in found} | dict.fromkeys(paths, "fine-tune")
    return Collection(f"made from {root.id}", places, parents | {root.id: []}, kinds)


def verdicts(
    collection: Collection, chosen: list[str], claims: list[tuple[str, str, str | None]], folder: Path
) -> list[tuple[str, str]]:
    """(verdict, reason) on each (model, parent, relation), each as if it were the only claim."""
    sources = [Source(model, collection.places[model]) for model in chosen]
    title = lambda words: progress(f"{collection.name} {words}")  # noqa: E731
    found = recover_sources(sources, folder, torch.device("cpu"), progress=title)
    exclusion, names = Exclusion(found), Names((model, f"/models/{model}") for model in chosen)
    results = []
    for model, parent, relation in claims:
        said = {model: (Claim("README.md", parent, relation),)}
        (one,) = audit(found.graph, said, names, exclusion).verdicts
        results.append((one.verdict, one.reason))
    return results


def claims_of(
    collection: Collection, chosen: list[str], draw: np.random.Generator
) -> list[tuple[str, str, str, str | None]]:
    """(kind of claim, model, parent, relation): every true ancestor, and a lie of each kind where there is one."""
    there, found = set(chosen), []
    above = {model: collection.ancestors(model) for model in chosen}
    relation = {"lora": "adapter", "quantize": "quantized", "quantized": "quantized"}
    for model in chosen:
        kind = collection.kinds[model]
        said = relation.get(kind, "finetune" if kind == "fine-tune" else None)
        parents = collection.parents.get(model, [])
        if len(parents) > 1:  # as cards say it, and as those who say too little
            found += [("merge", model, parent, "merge") for parent in parents if parent in there]
            kind = "merge, not said"
        found += [(kind, model, parent, said) for parent in sorted(above[model] & there)]
        if model in collection.copies or collection.name.startswith("made"):
            continue
        mine = above[model] | {model}
        apart = [one for one in chosen if not mine & (above[one] | {one})]
        alike = [one for one in apart if collection.architectures.get(one) == collection.architectures.get(model)]
        siblings = [one for one in chosen if one != model and parents and collection.parents.get(one) == parents]
        rivals = {
            "unrelated": alike,
            "of another architecture": [one for one in apart if one not in alike],
            "sibling": siblings if there & {*parents} else [],
            "sibling, its parent absent": [] if there & {*parents} else siblings,
            "child": [one for one in chosen if model in collection.parents.get(one, ())],
        }
        for lie, named in rivals.items():
            others = [one for one in named if one not in collection.copies and len(parents) < 2]
            if others:
                named_parent = str(draw.choice(others))
                found.append((lie, model, named_parent, "finetune"))
                if lie in LIES:
                    found.append((f"{lie}, no relation said", model, named_parent, None))
    return found


def main(args: Args) -> None:
    """Print false contradictions by kind of true claim, and how many lies of each kind are caught."""
    draw = np.random.default_rng(args.seed)
    true, lies, said = Counter(), Counter(), []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        collections = [grown(split) for split in SPLITS]
        for name, parents in grow_unannealed(GROWN).items():
            places = {model: str(GROWN / name / model) for model in parents}
            collections.append(Collection(name, places, parents, dict.fromkeys(parents, "not annealed")))
        collections += [honest(folder / f"made_{tree}", tree) for tree in range(5)]
        for collection in collections:
            everyone = sorted(collection.places)
            for half in range(args.halves + 1):
                some = everyone
                if half:
                    some = sorted(draw.choice(everyone, (len(everyone) + 1) // 2, replace=False).tolist())
                claims = claims_of(collection, some, draw)
                try:
                    found = verdicts(collection, some, [claim[1:] for claim in claims], folder / "results")
                except InputError as error:
                    print(f"{collection.name}: {error}")
                    continue
                for (kind, model, parent, _), (verdict, reason) in zip(claims, found):
                    lie = kind in LIES + UNSAID + UNDECIDABLE
                    (lies if lie else true)[kind, verdict] += 1
                    if kind in LIES:
                        lies[f"{kind}, {collection.name.rstrip('0123456789_')}", verdict] += 1
                    if lie and verdict != CONTRADICTED and args.verbose:
                        print(f"{collection.name}: {model} claims {parent} ({kind}): {reason}")
                    if not lie and verdict == CONTRADICTED:
                        said.append(f"{collection.name}: {model} ({kind}) truly from {parent}: {reason}")
    report(true, lies, said)


def report(true: Counter, lies: Counter, said: list[str]) -> None:
    """Both tables; exits with 1 where a threshold is missed."""
    rows = []
    for kind in sorted({kind for kind, _ in true}):
        count = sum(number for (one, _), number in true.items() if one == kind)
        rows.append([kind, count, true[kind, AGREES] / count, true[kind, CONTRADICTED]])
    total = sum(true.values())
    wrong = sum(number for (_, verdict), number in true.items() if verdict == CONTRADICTED)
    rows.append(["all", total, sum(n for (_, verdict), n in true.items() if verdict == AGREES) / total, wrong])
    print(format_table(("true claims", "count", "agrees", "falsely contradicted"), rows))
    for line in said:
        print(f"  {line}")
    rows, caught = [], {}
    for kind in sorted({kind for kind, _ in lies}):
        count = sum(number for (one, _), number in lies.items() if one == kind)
        caught[kind] = lies[kind, CONTRADICTED] / count
        rows.append([kind, count, caught[kind], lies[kind, AGREES] / count])
    print("\n" + format_table(("lies", "count", "contradicted", "agrees"), rows))
    everything = sum(n for (kind, _), n in lies.items() if kind in LIES)
    share = sum(n for (kind, verdict), n in lies.items() if kind in LIES and verdict == CONTRADICTED) / everything
    print(f"\nfalsely contradicted: {wrong} of {total} true claims; lies contradicted: {share:.3f} of {everything}")
    if wrong > MOST_FALSE * total or share < LEAST_CAUGHT:
        sys.exit(1)


if __name__ == "__main__":
    main(tyro.cli(Args))
