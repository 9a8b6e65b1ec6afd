"""Whether the weights exclude what a model claims: by tests that a true claim passes, not by the most probable tree.

Two things exclude "this model was made from that one". Either the two share nothing, where they would show it. Or the
claimed parent was itself made from a relative of the model: its own update came later, and the model holds none of it.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import networkx as nx
from torch import Tensor

from mother.collection.workspace import ALIKE, Group, Recovered
from mother.errors import CheckpointError
from mother.evidence.direction import agreed
from mother.evidence.edges import DECISIVE, coarser_last
from mother.evidence.exclusion import (
    FEW,
    FEWEST_UNITS,
    Share,
    alike_elsewhere,
    alike_in_another_basis,
    alike_tables,
    common_layers,
    inheritance,
    leading_energy,
    pruned_by_size,
    radial_share,
    rounding_shapes,
    step_errors,
    update_share,
)
from mother.evidence.facts import mantissa
from mother.evidence.low_rank import is_lora
from mother.evidence.merges import depends_on
from mother.evidence.sketch import Sketch, read_whole
from mother.graph.certainty import percent
from mother.heritage.calibration import arrow_probability, newness_arrow
from mother.io.checkpoint import Checkpoint
from mother.io.layers import Layer
from mother.io.open import open_checkpoint

LEAST_COSINE = 0.1  # by eye: what a model that was trained from another keeps of it at the very least
DEVIATIONS = 6.0  # by which the cosine must lie below that
CHANCE = 3.0  # deviations from nothing up to which two models count as unrelated
LEAST_SHARE = 0.1  # by eye: of an update, what a parent of an undeclared merge adds at the least
TUNED_SHARE = 0.5  # by eye: the same for models that say that they are no merge
ERRORS = 3.0  # standard errors
SURE_ARROW = 0.9  # by eye: probability of an arrow that other evidence must then support
RADIAL = 0.05  # by eye: share of an update that only scales, above which newness points anywhere
DRIFT = 0.2  # by eye: share of an update that neighbours hold, too, from which they drift together
LEADING = 3.2  # by eye: energy of the first direction over that of noise, from which something was learned
NEAR = 6  # budget: nearest models that are asked whether they drift the same way
KEPT = 0.3  # by eye: how far from all of an update a descendant may hold
SAMPLED = 6  # budget: matrices that are looked at in another basis
STEPS = (0.26, 0.3)  # by eye: around .289, see `step_errors`
ROUNDED = (0.585, 0.62)  # by eye: around what rounding leaves, see `rounding_shapes`


def all_in(told: list[tuple[float, float]], bounds: tuple[float, float]) -> bool:
    """Whether there are means of matrices, all within these bounds by their standard errors."""
    return bool(told) and all(bounds[0] - ERRORS * error < at < bounds[1] + ERRORS * error for at, error in told)


ALL = Share(1.0, 0.0, FEW)  # of its own update that a model holds


@dataclass(frozen=True)
class Excluded:
    """What the weights say against a claim; `sure` where they exclude it, else why they cannot."""

    sure: bool
    reason: str


class Exclusion:
    """The tests, for the models of one result. Copies stand for one another."""

    def __init__(self, recovered: Recovered):
        self.graph = recovered.graph.to_networkx()
        self.groups = {model: group for group in recovered.groups for model in group.heritage.first_pass.models}
        self.sources = {source.id: source for source in recovered.sources}
        self.opened: dict[str, Checkpoint] = {}
        self.sketches = {sketch.model: sketch for group in recovered.groups for sketch in group.sketches}

    @cached_property
    def _undirected(self) -> nx.Graph:
        return self.graph.to_undirected()

    def unrelated(self, child: str, parent: str) -> Excluded:
        """Whether two models share nothing, and would show it if they did."""
        group = self.groups[child]
        if group is not self.groups[parent]:
            return Excluded(
                False, "not comparable: less than half of their weights have layers of equal name and shape"
            )
        place = {model: at for at, model in enumerate(group.heritage.first_pass.models)}
        compared = group.heritage.first_pass.compared(place[child], place[parent])
        if compared < ALIKE:
            return Excluded(False, f"not comparable: only {percent(compared)} of their weights could be compared")
        one, other = self.sketches[child], self.sketches[parent]
        try:
            shared = inheritance(one, other)
            if not shared.lacks(LEAST_COSINE, DEVIATIONS):
                return Excluded(False, "not comparable: their matrices are too few or too small to tell")
            if shared.z > CHANCE:
                return Excluded(False, f"they are hardly alike (z = {shared.z:.1f}), which may be chance")
            if alike_elsewhere(one, other):
                return Excluded(False, "not comparable: some of their layers are alike at other places")
            if alike_tables(one.facts, other.facts):
                return Excluded(False, "only their embeddings or heads are alike")
            if self._rotated(one, other):
                return Excluded(False, "not comparable: their matrices are alike up to a rotation or another order")
        except CheckpointError as error:
            return Excluded(False, f"what was kept of them cannot be read: {error.reason}")
        share = f"{percent(compared)} of them, embeddings and heads aside"
        reason = f"their weights are unrelated: {share}, give z = {shared.z:.1f}"
        return Excluded(
            True, f"{reason}, where a tenth of the parent's weights would give {LEAST_COSINE * shared.unit:.0f}"
        )

    def _rotated(self, one: Sketch, other: Sketch) -> bool:
        """Whether most of some matrices are alike in another basis; whole ones are read again from the models."""
        large = [layer for layer in common_layers((one, other)) if min(one.shapes[layer]) >= FEWEST_UNITS]
        chosen = large[:: max(1, len(large) // SAMPLED)]
        alike = [alike_in_another_basis(self._whole(one, layer), self._whole(other, layer)) for layer in chosen]
        return sum(alike) > len(alike) / 2

    def _whole(self, sketch: Sketch, layer: Layer) -> Tensor:
        """A matrix of which the sketch may hold a part. Raises CheckpointError."""
        if sketch.scale(layer) == 1:
            return sketch.read(layer)
        if sketch.model not in self.opened:
            source = self.sources[sketch.model]
            self.opened[sketch.model] = open_checkpoint(*source.opened_by())
        return read_whole(sketch, self.opened[sketch.model], layer)

    def elsewhere(self, child: str, parent: str, least: float = LEAST_SHARE) -> str | None:
        """That the claimed parent was made from a relative of the child, which holds nothing of that, in words.

        Models are nodes of the graph, in one tree. `least` is the share of the parent's own update that the child would
        hold; 0 where it may be a merge, which may hold very little of each parent, and is like a parent of theirs: then
        only exact arrows count. None where nothing speaks against the claim so clearly.
        """
        try:
            way = nx.shortest_path(self._undirected, parent, child)
        except nx.NetworkXNoPath:
            return None
        for newer, older in zip(way, way[1:]):
            # A mean of models that does not say so is like a parent of each.
            exact = not least or (older == child and least <= LEAST_SHARE)
            if not self.graph.has_edge(older, newer) or not self.arrow_is_sure(older, newer, exact):
                continue
            # What was made from `newer` holds all that it added; what only drifts the same way, more or less of it.
            kept = self._share(parent, older, newer) if newer != parent else ALL
            if kept is None or not kept.is_near(1.0, KEPT, ERRORS):
                continue
            made = f"{newer} was made from {older}" + (f" ({parent} comes through {newer})" if newer != parent else "")
            if older == child:
                return made
            held = self._share(child, older, newer) if least else None
            if held is not None and held.is_near(0.0, least, ERRORS):
                return f"{made}, and {child} holds nothing of that update ({held.mean:+.2f} of it)"
        return None

    def _share(self, model: str, start: str, end: str) -> Share | None:
        found = [self.sketches.get(one) for one in (model, start, end)]
        if any(one is None for one in found):
            return None
        try:
            return update_share(*found)
        except CheckpointError:
            return None

    @lru_cache(maxsize=None)  # noqa: B019  an object lives for one audit
    def arrow_is_sure(self, older: str, newer: str, exact: bool = False) -> bool:
        """Whether an edge of the graph points the right way beyond what a fitted probability says.

        `exact`: by an exact relation alone.
        """
        group = self.groups.get(older)
        if group is None or newer not in self.groups or self.graph.edges[older, newer].get("hidden"):
            return False
        try:
            known = self._exact_arrow(group, older, newer)
            return not exact and self._trained_arrow(group, older, newer) if known is None else known
        except CheckpointError:
            return False

    def _exact_arrow(self, group: Group, older: str, newer: str) -> bool | None:
        """What an exact relation says of an arrow; None where there is none."""
        heritage = group.heritage
        place = {model: at for at, model in enumerate(heritage.first_pass.models)}
        i, j = place[older], place[newer]
        relation, p = heritage.relations.get(j), heritage.second_pass.number(i, j)
        one, other = self.sketches[older], self.sketches[newer]
        if relation is not None:
            if relation.kind in ("cast", "quantize"):
                # In each matrix: of a sibling that only changed some the others are rounded just as exactly.
                if all_in(rounding_shapes(one, other, relation.kind == "cast"), ROUNDED):
                    return True
                return relation.kind == "quantize" and all_in(step_errors(one, other), STEPS)
            # Of models on one line each is a combination of the others: which one was mixed is not exact. Other prunes
            # than by size look, reversed, like zeros that were trained.
            return relation.kind == "prune" and pruned_by_size(one, other)
        if p is not None and is_lora(heritage.second_pass, p):
            rounding = agreed(heritage.second_pass.arrays["rounding"][:, p]) * (1 if i < j else -1)
            # A cast of the model that `older` was made from is as coarse as one that was made from `older`.
            told = rounding >= DECISIVE and not coarser_last(heritage.first_pass, i, j, rounding)
            return True if told else None
        return None

    def _trained_arrow(self, group: Group, older: str, newer: str) -> bool:
        """Whether newness can be trusted: no decay that turns it, no merge, no neighbour that drifts the same way.

        A root that was never annealed loses its noise in every child: newness then points backwards, and all of its
        children share part of their updates. So without a neighbour to compare with nothing is sure.
        """
        # The arrow of the tree and that of the pair by itself: a tree may hang a root below a hub of its descendants.
        told = self._own_arrow(group, older, newer)
        if min(told, self.graph.edges[older, newer].get("arrow", 0.0)) < SURE_ARROW:
            return False
        if leading_energy(self.sketches[older], self.sketches[newer]) < LEADING:
            return False
        if radial_share(self.sketches[older], self.sketches[newer]) > RADIAL or self._mixed(group, older, newer):
            return False
        shares = [self._share(one, older, newer) for one in self._beside(group, older, newer)]
        known = [share for share in shares if share is not None and share.layers >= FEW]
        drifting = any(abs(share.mean) > DRIFT and abs(share.mean) > 2 * share.error for share in known)
        return not drifting and any(share.is_near(0.0, DRIFT, ERRORS) for share in known)

    @staticmethod
    def _own_arrow(group: Group, older: str, newer: str) -> float:
        """Probability of the arrow of a pair, given that it is one, from what the two say of it alone."""
        models = group.heritage.first_pass.models
        i, j = models.index(older), models.index(newer)
        cluster = next(one for one in group.heritage.clusters if i in one.members)
        if j not in cluster.members:
            return 0.0
        at = cluster.members.index(i), cluster.members.index(j)
        told = float(arrow_probability(cluster.evidence, cluster.coefficients)[at])
        # What only says that `older` is not from `newer` leaves them siblings.
        own = float(newness_arrow(cluster.evidence, cluster.coefficients)[at])
        return min(told, own) if cluster.evidence.one_way[at] else told

    def _beside(self, group: Group, older: str, newer: str) -> list[str]:
        """Models that an update from `older` to `newer` is new to: near ones, not behind `newer` in the tree."""
        rest = self._undirected.copy()
        rest.remove_edge(older, newer)
        here = nx.node_connected_component(rest, older) - {older, newer}
        models = group.heritage.first_pass.models
        near = [models[at] for at in group.heritage.second_pass.neighbours[models.index(older)]]
        return [one for one in dict.fromkeys([*rest.neighbors(older), *near[:NEAR]]) if one in here & {*self.sketches}]

    @staticmethod
    def _mixed(group: Group, one: str, other: str) -> bool:
        """Whether one of two models is a combination of the other and more models: a merge is like a parent of them."""
        first_pass, second_pass = group.heritage.first_pass, group.heritage.second_pass
        place = {model: at for at, model in enumerate(first_pass.models)}
        for i, j in ((place[one], place[other]), (place[other], place[one])):
            near = second_pass.neighbours[i]
            bits = mantissa(first_pass.facts[i])
            if j in near and depends_on(second_pass.grams[i], float(first_pass.size[i]), bits, near.index(j)):
                return True
        return False
