"""Whose adapter: the family and the base of an adapter, from its update and the weights of the candidates alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mother.collection.find import Source
from mother.collection.forms import form_of, representatives
from mother.collection.merged_twins import Merged, is_merged
from mother.errors import CheckpointError, InputError
from mother.evidence.adapter_base import Fit, fit
from mother.evidence.adapter_reads import Matrices, surroundings_of, updates_on
from mother.evidence.adapter_within import probabilities
from mother.evidence.consumers import Surroundings
from mother.evidence.relatedness import significant
from mother.io.adapted_checkpoint import AdaptedCheckpoint
from mother.io.checkpoint import Checkpoint
from mother.io.open import open_checkpoint
from mother.io.open_adapter import on_base
from mother.io.spool import Spool
from mother.io.weights import ADAPTER_CONFIG

ERROR = 1e-3  # probability that any candidate is named that has nothing to do with the adapter
ABSENT = 0.1  # by eye: that the base is a relative of those of the family, and not among them


@dataclass(frozen=True)
class Candidate:
    """A model that an adapter may belong to."""

    model: str
    z: float | None = None  # standard normal score under the null; None where the adapter does not fit
    why: str = ""  # it does not fit
    probability: float = 0.0  # that it is the base
    related: bool = False
    form_of: str = ""  # the candidate that it is a copy, a cast or a quantization of, which stands for both
    kinds: dict[str, float] = field(default_factory=dict)  # kind of matrix and side -> its own score
    sides: int = 0  # of matrices that took part


@dataclass(frozen=True)
class Answer:
    """Whose adapter one is."""

    adapter: str
    ranks: tuple[int, ...]
    weights: int  # that it changes
    error: float
    candidates: tuple[Candidate, ...]  # the most probable first
    unknown: float  # probability that the base is none of the candidates
    twins: tuple[tuple[str, str], ...] = ()  # (base, merged model): base + adapter is that model, up to its rounding
    claims: tuple[str, ...] = ()
    exact: tuple[tuple[str, str], ...] = ()  # of the twins those that are so entry by entry

    @property
    def family(self) -> list[str]:
        """The candidates that are related to the adapter's base."""
        return [one.model for one in self.candidates if one.related]

    @property
    def merged(self) -> list[str]:
        """What is said of merged models that the adapter makes of candidates."""
        return [f"{base} with the adapter {self.adapter} is {merged}, up to rounding" for base, merged in self.twins]

    @property
    def kind(self) -> str:
        """As an edge is called."""
        return kind_of(self.ranks)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "adapter": self.adapter,
            "kind": self.kind,
            "ranks": list(self.ranks),
            "weights": self.weights,
            "error": self.error,
            "family": self.family,
            "unknown": round(self.unknown, 4),
            "twins": [{"base": base, "merged": merged} for base, merged in self.twins],
            "claims": list(self.claims),
            "candidates": [
                {
                    "model": one.model,
                    "related": one.related,
                    "probability": round(one.probability, 4),
                    "z": round(one.z, 2) if one.z is not None else None,
                    "sides": one.sides,
                    **({"form_of": one.form_of} if one.form_of else {}),
                    "kinds": {kind: round(z, 2) for kind, z in one.kinds.items()},
                    **({"why": one.why} if one.why else {}),
                }
                for one in self.candidates
            ],
        }


def kind_of(ranks: Sequence[int]) -> str:
    """What an edge from a base to its adapter is called."""
    if not ranks:
        return "adapter"
    return f"adapter (rank {ranks[0]})" if len(ranks) == 1 else f"adapter (ranks {ranks[0]} to {ranks[-1]})"


def open_adapter(source: Source) -> AdaptedCheckpoint:
    """An adapter without a base; raises InputError where it is none."""
    opened = open_checkpoint(source.id, source.location)
    if not isinstance(opened, AdaptedCheckpoint):
        raise InputError(f"{source.location} is no adapter: none of its tensors is an update. Give an adapter.")
    return opened


def ranks_of(adapter: AdaptedCheckpoint) -> tuple[int, ...]:
    """The ranks of an adapter's updates, each once, from the shapes of their factors."""
    return tuple(sorted({one.rank for one in adapter.adapter.updates.values() if one.rank}))


def _form_of(model: str, stands: Mapping[str, str], chances: Mapping[str, float]) -> str:
    """The model that a candidate is a form of, by the name of the form that has the probability; none of itself."""
    first = stands.get(model, model)
    named = next((one for one, other in stands.items() if other == first and one in chances), first)
    return named if named != model else ""


class Candidates:
    """The models that adapters are held against. No more than a few of their matrices are in memory at once."""

    def __init__(self, sources: Sequence[Source], spool: Spool | None = None):
        """`spool` keeps what is read of candidates that are afar; several may have one."""
        self.sources, self.spool = list(sources), spool or Spool()
        self.opened: dict[str, Checkpoint] = {}
        self.why: dict[str, str] = {}  # one cannot be used
        self.read: dict[str, Surroundings] = {}
        self.priors: dict[str, float] = {}  # of those that are packed, see `Form`
        for source in sources:
            try:
                checkpoint = open_checkpoint(*source.opened_by())
            except CheckpointError as error:
                self.why[source.id] = str(error)
                continue
            if isinstance(checkpoint, AdaptedCheckpoint) and checkpoint.base is None:
                self.why[source.id] = "it is an adapter itself"
            else:
                self.opened[source.id] = self.spool.of(checkpoint)

    def surroundings(self, model: str) -> Surroundings:
        """The matrices of a candidate. Raises CheckpointError."""
        if model not in self.read:
            self.read[model] = surroundings_of(self.opened[model])
        return self.read[model]

    def answer(self, adapter: Source, error: float = ERROR, named: str | None = None) -> Answer:
        """Whose an adapter is; raises CheckpointError where it cannot be read.

        Where a base is `named`, merged models are looked for of that one and its family alone.
        """
        alone = self.spool.of(open_adapter(adapter))
        adapted: dict[str, AdaptedCheckpoint] = {}
        why: dict[str, str] = dict(self.why)
        for source in self.sources:
            if source.id not in self.opened:
                continue
            try:
                adapted[source.id] = on_base(alone, self.opened[source.id])
            except CheckpointError as problem:
                why[source.id] = f"it does not fit: {problem.reason}"
        fits, updates = self._fits(adapted, why)
        held = [Candidate(m, one.z, kinds=one.by_kind, sides=one.terms) for m, one in fits.items()]
        marks = significant(np.array([one.z for one in held], dtype=float), error).tolist()
        held = [replace(one, related=mark) for one, mark in zip(held, marks)]
        family = [one.model for one in held if one.related]
        bases = {m: one for m, one in adapted.items() if named is None or m == named or m in family}
        ways = self._twins(bases, list(adapted))
        twins, exact = list(ways), tuple(pair for pair, how in ways.items() if how != Merged.NEARLY)
        stands = self._stands(family)
        chances, unknown = self._chances(updates, family, twins, stands)
        held += [Candidate(model, why=reason) for model, reason in why.items()]
        found = [
            replace(one, probability=chances.get(one.model, 0.0), form_of=_form_of(one.model, stands, chances))
            for one in held
        ]
        found.sort(key=lambda one: (-one.probability, one.z is None, -(one.z or 0.0), one.model))
        said = tuple(claim.parent for claim in adapter.claims if claim.file == ADAPTER_CONFIG and claim.parent)
        return Answer(
            adapter.id, ranks_of(alone), len(alone.update_of), error, tuple(found), unknown, tuple(twins), said, exact
        )

    def _fits(
        self, adapted: dict[str, AdaptedCheckpoint], why: dict[str, str]
    ) -> tuple[dict[str, Fit], dict[str, Matrices]]:
        """How an adapter fits each candidate, and what it adds to its matrices; `why` is told where that says nothing.

        A candidate that cannot be read is taken out of those that the adapter is on.
        """
        fits: dict[str, Fit] = {}
        updates: dict[str, Matrices] = {}
        for model, one in list(adapted.items()):
            if one.factors_alone() is not None:
                why[model] = "it fits, but factors of weights (IA3) do not say whose they are"
                continue
            shapes = {name: info.shape for name, (_, info) in self.opened[model].tensors.items()}
            try:
                updates[model] = updates_on(one, shapes)
                found = fit(updates[model], self.surroundings(model))
                self.surroundings(model).forget()
            except CheckpointError as problem:
                why[model] = f"it does not fit: {problem.reason}"
                del adapted[model]
                continue
            if found is None:
                why[model] = "no weights are known that consume what it changes"
            else:
                fits[model] = found
        return fits, updates

    def _stands(self, family: list[str]) -> dict[str, str]:
        """Which model of the family stands for each: itself, or the one that it is a form of."""
        names = set.intersection(*(set(self.surroundings(model).matrices) for model in family)) if family else set()
        if not names:
            return {model: model for model in family}
        first = self.surroundings(family[0]).matrices
        order = sorted(names, key=lambda name: (math.prod(first.pieces[name].shape), name))  # the smallest may tell
        forms = [form_of(model, self.opened[model], self.surroundings(model).matrices, order) for model in family]
        self.priors = {one.model: one.prior for one in forms}
        return representatives(forms, order)

    def _chances(
        self, updates: dict[str, Matrices], family: list[str], twins: list[tuple[str, str]], stands: dict[str, str]
    ) -> tuple[dict[str, float], float]:
        """Probability of each candidate, and of none of them; forms of one model have that of the one that stands."""
        exact = sorted({base for base, _ in twins})
        if exact:
            named = {stands.get(base, base): base for base in reversed(exact)}
            return {base: 1 / len(named) for base in named.values()}, 0.0
        if not family:
            return {}, 1.0
        family = [model for model in family if stands[model] == model]
        # Relatives of other shapes, such as one with a longer vocabulary, have the same inner matrices.
        names = set.intersection(*(set(updates[model]) for model in family))
        names &= set.intersection(*(set(self.surroundings(model).matrices) for model in family))
        own = updates[family[0]]
        same = all(
            self.surroundings(model).pieces[name].shape == own.pieces[name].shape for model in family for name in names
        )
        found = np.ones(len(family))
        if same and names:
            first = Matrices([own.pieces[name] for name in sorted(names)], own.read)
            found = probabilities(first, [self.surroundings(model) for model in family])
        found = found * [self.priors.get(model, 1.0) for model in family]
        found = (1 - ABSENT) * found / found.sum()
        return {model: float(p) for model, p in zip(family, found)}, ABSENT

    def _twins(self, bases: Mapping[str, AdaptedCheckpoint], fitting: list[str]) -> dict[tuple[str, str], Merged]:
        """Pairs (base, merged model) of which the second is the first with the adapter; of several bases the best."""
        found: dict[tuple[str, str], Merged] = {}
        for merged in fitting:
            ways = {base: is_merged(one, self.opened[merged]) for base, one in bases.items() if base != merged}
            best = min((how for how in ways.values() if how is not None), default=None)
            found |= {(base, merged): how for base, how in ways.items() if how is not None and how == best}
        return found
