"""Ranks of all pairs of a group from the few differences along a tree of nearest models, proved, where they add up.

Where a model is its neighbour plus a matrix of low rank, W_b - W_a = U S V' with few columns, the difference of any two
models is the sum of those on the path between them, and its rank the sum of theirs, if the directions on the path are
independent. Each pair then costs a Cholesky factor of the size of its rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mother.numeric.threads import in_threads

PROBE_COUNTS = (24, 48, 80, 144)  # budget: directions that are looked for, until they are all
SPARE = 4  # of them that must be left over
PATH_MARGIN = 4.0  # times the tolerance that the singular values of a rank must be above
SLACK = 1.2  # times what is left beyond a rank, whose norm is known, that must be below the tolerance


@dataclass
class Factors:
    """A matrix of low rank: U diag(s) V' and what is left beyond it."""

    u: Float[Tensor, "rows rank"]
    s: Float[Tensor, "rank"]
    v: Float[Tensor, "columns rank"]
    beyond: float  # Frobenius norm, so no singular value of the rest is larger


def low_rank_factors(difference: Float[Tensor, "rows columns"], tolerance: float) -> Factors | None:
    """Factors of a matrix whose rank is low beyond doubt at this tolerance (relative to the largest singular value).

    By the range of D applied to Gaussian vectors (Halko, Martinsson, Tropp 2011), of which more are taken until some
    add nothing. What is left is computed, not estimated. None: the rank is too high, or near the tolerance.
    """
    rows, columns = difference.shape
    if not difference.count_nonzero():
        return Factors(difference[:, :0], difference[0, :0].double(), difference.T[:, :0], 0.0)
    for side in PROBE_COUNTS:
        if side > min(rows, columns) // 2:
            return None
        generator = torch.Generator().manual_seed(side)
        probe = torch.randn(columns, side, generator=generator).to(difference.device)
        basis, upper = torch.linalg.qr(difference @ probe)
        new = upper.diagonal().abs()
        if (new < tolerance / PATH_MARGIN * new[0]).sum() >= SPARE:
            break
    else:
        return None
    core = basis.T @ difference
    values, mixed = torch.linalg.eigh(core.double() @ core.double().T)
    values, mixed = values.flip(0).clamp(min=0).sqrt(), mixed.flip(1)
    rank = int((values > PATH_MARGIN * tolerance * values[0]).sum())
    if not rank:  # numbers so small that their squares are zero
        return None
    s, mixed = values[:rank], mixed[:, :rank].float()
    u, v = basis @ mixed, core.T @ mixed / s.float()
    beyond = float(torch.addmm(difference, u * s.float(), v.T, alpha=-1).norm())
    return Factors(u, s, v, beyond) if SLACK * beyond <= tolerance * float(s[0]) else None


class _Tree:
    """Factors of the differences (later - earlier) along a tree of neighbours, and their inner products."""

    def __init__(self, factors: Sequence[Factors]):
        ends = np.cumsum([0, *(len(each.s) for each in factors)])
        self.columns = [torch.arange(start, end) for start, end in zip(ends, ends[1:])]
        self.first = np.array([float(each.s[0]) for each in factors])
        self.last = np.array([float(each.s[-1]) for each in factors])
        self.beyond = np.array([each.beyond for each in factors])
        u, v = (torch.cat([getattr(each, side) for each in factors], dim=1) for side in ("u", "v"))
        self.least_side = min(len(u), len(v))
        self.u, self.v = ((side.T @ side).double().cpu() for side in (u, v))
        # [e, f] = u' (U_f S_f V_f') v for the first directions u, v of e
        s = torch.cat([each.s for each in factors]).cpu()
        leading = (self.u[ends[:-1]] * s * self.v[ends[:-1]]).numpy()
        self.seen = np.add.reduceat(leading, ends[:-1], axis=1)

    def independent(self, columns: Int[Tensor, "some"], least: float) -> bool:
        """Whether no combination of these directions, on either side, is shorter than the root of `least`."""
        if len(columns) > self.least_side:
            return False
        products = torch.stack([side[columns][:, columns] for side in (self.u, self.v)])
        products.diagonal(dim1=1, dim2=2).sub_(least)
        return bool((torch.linalg.cholesky_ex(products).info == 0).all())

    def ranks_add_up(self, signs: Int[np.ndarray, "pairs edges"], tolerance: float) -> Bool[np.ndarray, "pairs"]:
        """For which sums of differences, with these signs, the rank is surely the sum of theirs.

        sigma_r(U S V') >= sigma_r(U) min(S) sigma_r(V) must be well above the tolerance, and what is left beyond the
        factors well below. No sum has a largest singular value above the sum of theirs, nor below u' (U S V') v.
        """
        on = signs != 0
        beyond = on @ self.beyond
        last = np.where(on, self.last, np.inf).min(axis=1)
        least = (PATH_MARGIN * tolerance * (on @ self.first) + beyond) / last
        largest = np.where(on, np.abs(signs @ self.seen.T), 0).max(axis=1)
        clear = (SLACK * beyond <= tolerance * (largest - beyond)) & (least < 1)
        if not clear.any() or self.independent(torch.cat(self.columns), float(least[clear].max())):
            return clear  # all directions of the group at once

        def prove(pair: int) -> bool:
            columns = torch.cat([self.columns[edge] for edge in on[pair].nonzero()[0]])
            return bool(clear[pair]) and self.independent(columns, float(least[pair]))

        return np.array(in_threads(prove, range(len(signs))))


def ranks_along_paths(
    weights: Float[Tensor, "models rows columns"],
    members: Sequence[int],
    edges: Sequence[tuple[int, int]],
    tolerance: float,
) -> dict[tuple[int, int], int]:
    """Rank of W_i - W_j, i after j among the members, for those pairs for which it is proved: few if updates are full.

    `edges` are (earlier, later) places among the members, as `nearest_neighbours` gives them. `tolerance` is what
    singular values must be above, over the largest.
    """

    def factor(edge: tuple[int, int]) -> Factors | None:
        earlier, later = (members[end] for end in edge)
        return low_rank_factors(weights[later] - weights[earlier], tolerance)

    found = in_threads(factor, edges) if weights.device.type == "cpu" else [factor(edge) for edge in edges]
    factors = {later: each for (_, later), each in zip(edges, found) if each is not None}
    changes = {later: each for later, each in factors.items() if len(each.s)}
    places = {later: at for at, later in enumerate(changes)}
    # The way to each model from the first of those that low ranks join it to.
    start, way = np.arange(len(members)), np.zeros((len(members), len(changes)), dtype=int)
    for earlier, later in edges:
        if later in factors:
            start[later], way[later] = start[earlier], way[earlier]
            if later in changes:
                way[later, places[later]] = 1
    ends = np.stack(np.tril_indices(len(members), -1))
    one, other = ends[:, start[ends[0]] == start[ends[1]]]
    signs = way[one] - way[other]
    proved = (signs != 0).sum(axis=1) <= 1
    if not proved.all():
        tree = _Tree(list(changes.values()))
        proved[~proved] = tree.ranks_add_up(signs[~proved], tolerance)
    ranks = np.abs(signs) @ np.array([len(each.s) for each in changes.values()], dtype=int)
    return {(members[i], members[j]): int(rank) for i, j, rank in zip(one[proved], other[proved], ranks[proved])}


SAMPLE_ENTRIES = 1 << 14  # budget: entries of each matrix
UNRELATED = 0.5  # squared distance over the sum of the squared norms from which two models share nothing


def sample_of(weights: Float[Tensor, "models rows columns"]) -> Float[Tensor, "models entries"]:
    """Entries at equal steps, in float64, on the CPU."""
    flat = weights.flatten(1)
    return flat[:, :: max(1, flat.shape[1] // SAMPLE_ENTRIES)].double().cpu()


def near_groups(some: Float[Tensor, "models entries"]) -> list[list[int]]:
    """Models in groups around the first of each, from a sample; groups share nothing at all.

    Two models are in one group where their squared distance is less than that of models with nothing in common.
    """
    norms = some.square().sum(dim=1)
    groups: list[list[int]] = []
    for at in range(len(some)):
        for group in groups:
            apart = (some[at] - some[group[0]]).square().sum()
            if apart < UNRELATED * (norms[at] + norms[group[0]]) or apart == 0:
                group.append(at)
                break
        else:
            groups.append([at])
    return groups


def nearest_neighbours(some: Float[Tensor, "models entries"]) -> list[tuple[int, int]]:
    """Edges (earlier, later) of a minimum spanning tree (Prim) of a sample, each model but the first once the later.

    A model comes as the earlier one only after it was the later one, or first.
    """
    some = some - some[0]
    apart = torch.cdist(some, some, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    nearest, distance = np.zeros(len(apart), dtype=int), apart[0].copy()
    edges = []
    left = np.ones(len(apart), dtype=bool)
    left[0] = False
    while left.any():
        new = int(np.where(left, distance, np.inf).argmin())
        edges.append((int(nearest[new]), new))
        left[new] = False
        closer = apart[new] < distance
        nearest[closer], distance[closer] = new, apart[new][closer]
    return edges
