"""The evidence on all pairs of a result as it is kept: two models are explained from it within a second.

`evidence.safetensors` holds for each group arrays on its pairs, and in its header the names of models and layers. Only
what a question needs is read. Nothing here loads torch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mother.errors import InputError
from mother.graph.model_graph import GRAPH, ModelGraph, read_model_graph
from mother.heritage.relation import FACTORS
from mother.io.files import sha256, write_atomically

EVIDENCE = "evidence.safetensors"  # in a folder of results; `mother/collection/state.py` keeps its digest
RUN = "run.json"  # where it keeps that
FORMAT = "mother-evidence/1"
SCALARS = (
    "newness",
    "newness_t",
    "rounding",
    "cast",
    "decay",
    "equal",
    "layers_changed",
    "layers_compared",
    "decided",
)
DECIDED = ("", "rounding", "cast", "decay")  # which exact test is the one that counts
TURNED = ("newness", "newness_t", "rounding", "cast", "decay")  # have the other sign the other way round
LAYERED = ("change", "rank", "layer_newness", "layer_rounding")
WHOLE = "log weight"


def _rounded(value: Any, digits: int) -> float | None:
    """A number without minus zero; None for one that is not there, or not finite."""
    return round(float(value), digits) + 0.0 if np.isfinite(value) else None


@dataclass
class GroupEvidence:
    """What is known of the pairs of one group.

    relatedness, distances, compared   [model, model]
    ends            the pairs that were looked at, [pair, 2], the smaller place first
    scalars         [pair, SCALARS]; nan where there is none
    change, rank, layer_newness, layer_rounding   [pair, layer]; rank -1 where it is full
    terms, third, probability   [pair, way (0: first -> second), ...]; third -1 where there is none
    """

    name: str
    models: list[str]
    copies: dict[str, str]
    layers: list[str]
    terms: list[str]
    arrays: Mapping[str, Any]

    @cached_property
    def place(self) -> dict[str, int]:
        """Where each model stands."""
        return {model: at for at, model in enumerate(self.models)}

    @cached_property
    def _pairs(self) -> dict[tuple[int, int], int]:
        return {(int(i), int(j)): p for p, (i, j) in enumerate(self.arrays["ends"][:])}

    def number(self, one: str, other: str) -> tuple[int, int] | None:
        """Number of a pair, and 0, or 1 where it is kept the other way round; None if it was not looked at."""
        i, j = self.place[one], self.place[other]
        p = self._pairs.get((min(i, j), max(i, j)))
        return None if p is None else (p, int(i > j))

    def adjacency(self, one: str, other: str) -> float | None:
        """Probability that two models are parent and child; None where it was not asked. Copies stand for another."""
        one, other = self.copies.get(one, one), self.copies.get(other, other)
        found = self.number(one, other)
        if found is None or one == other:
            return None
        total = float(self.arrays["probability"][found[0]].sum())
        return min(1.0, total) if np.isfinite(total) else None

    def _way(self, p: int, way: int, kind: str) -> dict[str, dict[str, float | None]]:
        values = self.arrays["terms"][p][way].astype(float)
        found = {name: value for name, value in zip(self.terms, values.tolist())}
        apart = {name: found.pop(name) for name in FACTORS if name in found}
        terms = {name: _rounded(value, 3) for name, value in found.items()}
        factors = {name: _rounded(value, 3) for name, value in apart.items() if value}
        return {
            f"terms{kind}": terms | {WHOLE: _rounded(sum(found.values()), 3)},
            f"factors{kind}": factors,
        }

    def pair(self, parent: str, child: str) -> dict[str, Any]:
        """The figures behind two models, read as parent -> child.

        terms, terms_back  what each evidence added to the log weight of this edge, and of the reverse, and their sum
                       (`mother/heritage/terms.py`, Cluster.terms); null: it forbids the edge
        factors, factors_back  logs of what the probabilities were multiplied by that follow from all terms of a tree,
                       by FACTORS; null: by 0
        third          the model that fits best between the two, which the term "between" is about
        newness        mean over layers in -1..1 and its t statistic: positive where what changed is new in the child
        rounding       log likelihood ratio that the child was rounded last; null where the update has no low rank
        cast           log likelihood ratio that the child came last, by how the finer model's weights lie about the
                       coarser's; null where both have one type
        decay          1 where rows of the child's tables are the parent's, shrunk by one factor; -1 the reverse
        equal          share of the compared entries that are equal
        decided        the exact test that counts: rounding, cast, decay or none ("")
        layers         of each matrix that changed: share of the squared change, rank ("full" where it is), newness,
                       rounding
        """
        i, j = self.place[parent], self.place[child]
        found: dict[str, Any] = {
            "relatedness": _rounded(self.arrays["relatedness"][i][j], 2),
            "distance": _rounded(self.arrays["distances"][i][j], 6),
            "compared": _rounded(self.arrays["compared"][i][j], 4),
        }
        number = self.number(parent, child)
        if number is None or found["distance"] is None:
            return found
        p, turned = number
        if self.terms and np.isfinite(self.arrays["probability"][p][0]):
            found |= self._way(p, turned, "") | self._way(p, 1 - turned, "_back")
            third = int(self.arrays["third"][p][turned])
            found["third"] = self.models[third] if third >= 0 else None
        return found | self._scalars(p, turned) | {"layers": self._rows(p, turned)}

    def _scalars(self, p: int, turned: int) -> dict[str, Any]:
        sign = -1 if turned else 1
        raw = dict(zip(SCALARS, self.arrays["scalars"][p].tolist()))
        raw |= {name: sign * raw[name] for name in TURNED}
        digits = {"newness": 4, "newness_t": 2, "rounding": 1, "cast": 1, "equal": 4}
        found: dict[str, Any] = {name: _rounded(raw[name], digits.get(name, 0)) for name in SCALARS}
        whole = ("decay", "layers_changed", "layers_compared")
        return found | {name: int(raw[name]) for name in whole} | {"decided": DECIDED[int(raw["decided"])]}

    def _rows(self, p: int, turned: int) -> list[dict[str, Any]]:
        sign, low = -1 if turned else 1, not np.isnan(self.arrays["scalars"][p][SCALARS.index("rounding")])
        change, rank = self.arrays["change"][p], self.arrays["rank"][p]
        newness, rounding = self.arrays["layer_newness"][p], self.arrays["layer_rounding"][p]
        return [
            {
                "layer": self.layers[row],
                "change": _rounded(change[row], 4),
                "rank": "full" if rank[row] < 0 else int(rank[row]),
                "newness": _rounded(sign * newness[row], 3),
                "rounding": _rounded(sign * rounding[row], 1) if low else None,
            }
            for row in np.flatnonzero(change > 0)
        ]


@dataclass
class Evidence:
    """The evidence of a result: its groups, and where each of its models is."""

    groups: list[GroupEvidence]
    locations: dict[str, str] = field(default_factory=dict)

    def group_of(self, model: str) -> GroupEvidence | None:
        """The group that a model is in."""
        return next((group for group in self.groups if model in group.place), None)

    def write(self, path: Path) -> None:
        """Write it as one safetensors file, the same bytes for the same evidence."""
        from safetensors.numpy import save

        about = [
            {"name": one.name, "models": one.models, "copies": one.copies, "layers": one.layers, "terms": one.terms}
            for one in self.groups
        ]
        arrays = {
            f"{at}.{name}": np.ascontiguousarray(values)
            for at, one in enumerate(self.groups)
            for name, values in one.arrays.items()
        }
        head = {"format": FORMAT, "about": json.dumps({"groups": about, "locations": self.locations})}
        content = save(arrays, head)
        write_atomically(path, lambda file: file.write(content))


class _Lazy(Mapping):
    """Arrays of a file, of which rows are read when they are asked for."""

    def __init__(self, file: Any, start: str):
        self.file, self.start = file, start
        self.names = [name for name in file.keys() if name.startswith(start)]  # noqa: SIM118  it is no mapping

    def __getitem__(self, name: str) -> Any:
        slices = self.file.get_slice(f"{self.start}{name}")
        return slices if 0 not in slices.get_shape() else self.file.get_tensor(f"{self.start}{name}")

    def shape(self, name: str) -> list[int]:
        """Shape of an array, which is not read."""
        return list(self.file.get_slice(f"{self.start}{name}").get_shape())

    def __iter__(self):  # noqa: ANN204
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _check(group: GroupEvidence) -> None:
    """Raise ValueError where the arrays of a group do not fit its models and layers."""
    n, layers, terms = len(group.models), len(group.layers), len(group.terms)
    pairs = group.arrays.shape("ends")[0]
    wanted = {"ends": [pairs, 2], "scalars": [pairs, len(SCALARS)], "terms": [pairs, 2, terms]}
    wanted |= dict.fromkeys(("relatedness", "distances", "compared"), [n, n])
    wanted |= dict.fromkeys(LAYERED, [pairs, layers]) | dict.fromkeys(("third", "probability"), [pairs, 2])
    if wanted != {name: group.arrays.shape(name) for name in wanted}:
        raise ValueError("its arrays do not fit its models")


def check_result(folder: Path) -> None:
    """Raise InputError where a folder holds no whole result, with the folder of one that is near, if there is any."""
    if (folder / RUN).exists():
        return
    remedy = f"`python recover.py MODEL ... --out {folder}`"
    if (folder / "collection.json").exists() or (folder / EVIDENCE).exists():
        raise InputError(f"the result in {folder} is not whole: its run has not ended. Run {remedy} again.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, and holds no result. Name the folder of one.")
    near = sorted(folder.glob(f"*/{EVIDENCE}")) or sorted(folder.parent.glob(f"*/{EVIDENCE}"))
    if near:
        raise InputError(f"{folder} holds no result. Give one that does, such as --to {near[0].parent}.")
    raise InputError(f"{folder} holds no result. Run {remedy} first.")


def read_evidence(folder: Path) -> Evidence:
    """The evidence that a result folder keeps. Raises InputError where there is none that can be used."""
    check_result(folder)
    path = folder / EVIDENCE
    remedy = f"Run `python recover.py MODEL ... --out {folder} --overwrite` again."
    if not path.exists():
        raise InputError(f"{folder} keeps no evidence: another version made it. {remedy}")
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, "numpy")
        head = file.metadata()
        if head["format"] != FORMAT:
            raise ValueError(f'it does not say "format": "{FORMAT}"')
        about = json.loads(head["about"])
        groups = [GroupEvidence(**one, arrays=_Lazy(file, f"{at}.")) for at, one in enumerate(about["groups"])]
        for group in groups:
            _check(group)
        return Evidence(groups, dict(about["locations"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as reason:
        raise InputError(f"{path} cannot be used ({reason}). {remedy}") from None


def read_graph(folder: Path) -> ModelGraph:
    """The graph that a result folder keeps. Raises InputError where it is not the one that was written."""
    check_result(folder)
    try:
        kept = json.loads((folder / RUN).read_text(encoding="utf-8"))["digests"][GRAPH]
        whole = kept == sha256(folder / GRAPH)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        remedy = f"Run `python recover.py MODEL ... --out {folder} --overwrite` again."
        raise InputError(f"{folder / GRAPH} is not what was written with {RUN}. {remedy}")
    return read_model_graph(folder / GRAPH)
