"""The most probable tree of each cluster of related models."""

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Int

from mother.evidence.candidates import comparable_square
from mother.evidence.edges import Evidence, gather
from mother.evidence.first_pass import FirstPass
from mother.evidence.second_pass import SecondPass
from mother.graph.arborescence import edge_marginals, minimum_spanning_arborescence
from mother.heritage.ancestors import Hidden, find_hidden, lift_parents
from mother.heritage.calibration import Coefficients, log_weights
from mother.heritage.relations import Relation, is_rough


@dataclass
class Cluster:
    """Recovered heritage of related models. Places are those of the first pass."""

    members: list[int]
    parents: dict[int, int]
    probability: Float[np.ndarray, "members members"]  # of i -> j, by the Matrix-Tree theorem
    roots: Float[np.ndarray, "members"]
    evidence: Evidence
    forced: dict[int, int]
    hidden: list[Hidden]


@dataclass
class Heritage:
    """All that was found about a collection."""

    first_pass: FirstPass
    second_pass: SecondPass
    labels: Int[np.ndarray, "models"]
    aliases: dict[int, int]
    relations: dict[int, Relation]
    not_trained: set[int]
    clusters: list[Cluster]
    reused: float = 0.0  # seconds that earlier runs took for measurements that were read again
    row_scaled: dict[tuple[int, int], int | None] = field(default_factory=dict)  # see `row_scaled_ranks`
    left_out: dict[str, str] = field(default_factory=dict)  # models that could not be used, and why

    def hidden_name(self, hidden: Hidden) -> str:
        """Id of a hidden ancestor: by its children, so that it is the same in every run."""
        return f"hidden parent of {', '.join(self.first_pass.models[child] for child in hidden.children[:3])}"


def recover_clusters(heritage: Heritage, coefficients: Coefficients) -> Heritage:
    """The trees of all clusters from what was measured, with these coefficients."""
    square = comparable_square(heritage.first_pass)
    clusters = []
    for label in range(heritage.labels.max() + 1 if len(heritage.labels) else 0):
        places = np.flatnonzero(heritage.labels == label).tolist()
        members = [place for place in places if place not in heritage.aliases]
        if members:
            parts = heritage.first_pass, heritage.second_pass, square, members, heritage.relations, heritage.not_trained
            clusters.append(_recover_cluster(*parts, coefficients))
    return replace(heritage, clusters=clusters)


def _recover_cluster(
    first_pass: FirstPass,
    second_pass: SecondPass,
    square: Float[np.ndarray, "models models"],
    members: list[int],
    relations: dict[int, Relation],
    not_trained: set[int],
    coefficients: Coefficients,
) -> Cluster:
    """Evidence, marginals and the most probable tree of one cluster."""
    made = not_trained | {place for place in members if place in relations}
    may_lie_between = [place for place in members if place not in made]
    rounded = {place for place in not_trained if is_rough(first_pass, place)}
    evidence = gather(first_pass, second_pass, square, members, may_lie_between, made, rounded)
    place = {member: at for at, member in enumerate(members)}
    forced = {place[m]: place[relations[m].parents[0]] for m in members if m in relations}
    weights = log_weights(evidence, coefficients, forced)
    for member in members:
        if member in relations and relations[member].kind == "merge":
            for parent in relations[member].parents:  # no merge is its parent's parent
                weights[place[member], place[parent]] = -np.inf
    probability, roots, _ = edge_marginals(weights)
    finite = np.where(np.isfinite(weights), weights, -1e6)
    np.fill_diagonal(finite, 0)
    parents = minimum_spanning_arborescence(-finite)
    tree = {members[child]: members[parent] for child, parent in enumerate(parents) if parent >= 0}
    hidden = find_hidden(second_pass, tree, {members[child] for child in forced})
    return Cluster(members, lift_parents(tree, hidden), probability, roots, evidence, forced, hidden)
