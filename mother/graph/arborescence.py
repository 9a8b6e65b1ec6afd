"""Trees of a dense directed graph: the cheapest one (Edmonds in O(n^2)), and the probability of every edge."""

import numpy as np
from jaxtyping import Float, Int

SUMS_TO_ONE = 1e-6  # how near to 1 the probabilities of a model's parents must sum
NEGLIGIBLE = 60.0  # log weight by which all impossible trees together lie below the best possible one


def minimum_spanning_arborescence(cost: Float[np.ndarray, "models models"]) -> Int[np.ndarray, "models"]:
    """Parent of each node in the cheapest directed spanning tree; -1 for its root, which is found as well.

    `cost[i, j]` is the price of the edge i -> j; the diagonal is ignored, all else must be finite
    (ValueError). Of equally cheap trees one is chosen, always the same for the same matrix.

    Chu-Liu/Edmonds with contraction as in Tarjan, "Finding optimum branchings" (1977), dense form: grow a
    path backwards along cheapest incoming edges; when it bites its tail, contract the cycle; when it
    reaches what is already connected to the root, start anew. A virtual root with one dear edge to every
    node makes exactly one of them the root.
    """
    cost = np.asarray(cost, dtype=np.float64)
    n = len(cost)
    if cost.shape != (n, n):
        raise ValueError(f"cost must be a square matrix, not of shape {cost.shape}")
    if n <= 1:
        return np.full(n, -1)
    into = _reduced_costs(cost)
    target, source = np.indices((n + 1, n + 1), dtype=np.int32)  # the original ends of the edges in `into`
    # Nodes 0 .. n-1 are models, n is the virtual root, later ones are contracted cycles. A slot is a row of
    # `into`; a contracted cycle takes over the slot of its first member.
    node_in_slot = list(range(n + 1))
    contracted_into = [-1] * (n + 1)
    chosen: dict[int, tuple[int, int]] = {}  # node -> original (parent, child) of its incoming edge
    connected = np.zeros(n + 1, dtype=bool)
    connected[n] = True
    gone = np.zeros(n + 1, dtype=bool)
    for start in range(n):
        if connected[start] or gone[start]:
            continue
        path, place = [start], {start: 0}  # slots, and where each stands
        while True:
            head = path[-1]
            tail = int(into[head].argmin())
            chosen[node_in_slot[head]] = (int(source[head, tail]), int(target[head, tail]))
            into[head] -= into[head, tail]
            if connected[tail]:
                connected[path] = True
                break
            if tail not in place:
                place[tail] = len(path)
                path.append(tail)
                continue
            cycle = path[place[tail] :]
            del path[place[tail] + 1 :]
            for slot in cycle[1:]:
                del place[slot]
            _contract(into, source, target, cycle)
            gone[cycle[1:]] = True
            node = len(contracted_into)
            contracted_into.append(-1)
            for slot in cycle:
                contracted_into[node_in_slot[slot]] = node
            node_in_slot[tail] = node
    return _expand(chosen, contracted_into, n)


def _reduced_costs(cost: Float[np.ndarray, "models models"]) -> Float[np.ndarray, "nodes nodes"]:
    """[v, u] = cost of u -> v, scaled to 0 .. 1; the last column is the virtual root's; its row is never asked.

    Raises ValueError where an edge has no finite cost.
    """
    n = len(cost)
    off_diagonal = ~np.eye(n, dtype=bool)
    if not np.isfinite(cost[off_diagonal]).all():
        raise ValueError("every edge must have a finite cost")
    low, high = cost[off_diagonal].min(), cost[off_diagonal].max()
    cost = np.where(off_diagonal, cost, 0)
    into = np.full((n + 1, n + 1), np.inf)
    # Scaled, so that the dear edges of the root swallow no digits. Halved first: a difference may overflow.
    spread = (high / 2 - low / 2) or 1.0
    into[:n, :n] = np.where(off_diagonal, (cost / 2 - low / 2) / spread, np.inf).T
    into[:n, n] = 2 * (n + 1)
    return into


def _expand(chosen: dict[int, tuple[int, int]], contracted_into: list[int], n: int) -> Int[np.ndarray, "models"]:
    """Parents from the edges that were chosen: the edge that enters a cycle replaces that of the member it enters.

    The last contraction is undone first.
    """
    for node in range(len(contracted_into) - 1, n, -1):
        parent, child = chosen[node]
        member = child
        while contracted_into[member] != node:
            member = contracted_into[member]
        chosen[member] = (parent, child)
    parents = np.array([chosen[child][0] for child in range(n)])
    return np.where(parents == n, -1, parents)


def _contract(into: np.ndarray, source: np.ndarray, target: np.ndarray, cycle: list[int]) -> None:
    """Make one node of a cycle, in the slot of its first member: the cheapest edge of all members counts."""
    slot, columns = cycle[0], np.arange(len(into))
    best = np.array(cycle)[into[cycle].argmin(axis=0)]
    into[slot], source[slot], target[slot] = into[best, columns], source[best, columns], target[best, columns]
    best = np.array(cycle)[into[:, cycle].argmin(axis=1)]
    into[:, slot], source[:, slot], target[:, slot] = into[columns, best], source[columns, best], target[columns, best]
    into[slot, cycle] = np.inf
    into[:, cycle[1:]] = np.inf
    into[cycle[1:]] = np.inf


def edge_marginals(
    log_weight: Float[np.ndarray, "models models"],
) -> tuple[Float[np.ndarray, "models models"], Float[np.ndarray, "models"], float]:
    """Exact probabilities of all edges and roots when P(tree) is proportional to the product of its edges' weights.

    `log_weight[i, j]` is the log weight of i -> j (the diagonal is ignored; -inf: impossible); any node may be the
    one root. Returns P(i -> j), P(root = j), and the log of the sum over all trees.

    A chain that steps from each model j to its parent i at the rate w_ij has, by the Markov chain tree theorem, the
    sum T_j over the trees with root j as its stationary distribution, and by the all-minors Matrix-Tree theorem the
    trees with the edge i -> j sum to w_ij T_j E[time from i to j]. Both follow from the elimination of states
    (Grassmann, Taksar, Heyman 1985), which adds, multiplies and divides positive numbers: nothing cancels, and in
    logs nothing overflows, so weights may lie hundreds of nats apart. O(n^3).

    Raises ValueError for NaN, +inf or a node that no tree reaches, ArithmeticError where a column does not sum to 1.
    """
    log_weight = np.array(log_weight, dtype=np.float64)
    n = len(log_weight)
    np.fill_diagonal(log_weight, -np.inf)
    if np.isnan(log_weight).any() or np.isposinf(log_weight).any():
        raise ValueError("log weights must be below infinity")
    if n == 1:
        return np.zeros((1, 1)), np.ones(1), 0.0
    # Shifted by column, a tree lacks the shift of its root only.
    shift = log_weight.max(axis=0)
    shift = np.where(np.isfinite(shift), shift, 0.0)
    rate = _possible(log_weight - shift, shift).T
    time, trees = _passage_times(rate, -shift, 0.0)
    log_sum = np.logaddexp.reduce(trees - shift)
    edges = np.exp(np.where(np.isneginf(log_weight.T), -np.inf, rate + trees[:, None] + time.T - log_sum)).T
    roots = np.exp(trees - shift - log_sum)
    if not np.abs(edges.sum(axis=0) + roots - 1).max() < SUMS_TO_ONE:
        raise ArithmeticError("the probabilities of a model's parents do not sum to 1")
    # Rounding must not make two arrows that exclude each other more than certain.
    edges = np.where(edges >= edges.T, np.minimum(edges, 1 - edges.T), edges)
    return edges, roots.clip(0, 1), float(log_sum + shift.sum())


def _possible(
    log_weight: Float[np.ndarray, "models models"], shift: Float[np.ndarray, "models"]
) -> Float[np.ndarray, "models models"]:
    """The shifted log weights with finite ones for impossible edges, so low that all trees with one do not count.

    Raises ValueError where every tree has one.
    """
    n = len(log_weight)
    off_diagonal = ~np.eye(n, dtype=bool)
    impossible = np.isneginf(log_weight)
    if not impossible[off_diagonal].any():
        return np.where(off_diagonal, log_weight, 0.0)
    spread = -log_weight[~impossible].min(initial=0) + np.ptp(shift)
    cost = np.where(impossible, (n + 1) * (spread + 1), -log_weight)
    parents = minimum_spanning_arborescence(cost)
    child = np.flatnonzero(parents >= 0)
    if impossible[parents[child], child].any():
        raise ValueError("no tree reaches every model: more than one has no possible parent, or some only each other")
    root = int(np.flatnonzero(parents < 0)[0])
    best = log_weight[parents[child], child].sum() - shift[root]
    # There are n^(n-1) trees, and none weighs more than this edge and the dearest root together.
    low = best + shift.min() - n * np.log(n) - NEGLIGIBLE
    return np.where(impossible, np.where(off_diagonal, low, 0.0), log_weight)


def _log_add(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """log(exp(one) + exp(other)) of finite numbers; numpy's own takes five times as long."""
    return np.maximum(one, other) + np.log1p(np.exp(-np.abs(one - other)))


def _log_sum(values: np.ndarray) -> np.ndarray | np.float64:
    """log of the sum of exp(values) over the first axis; no column may be -inf only."""
    largest = values.max(axis=0)
    return largest + np.log(np.exp(values - largest).sum(axis=0))


def _passage_times(
    rate: Float[np.ndarray, "states states"], price: Float[np.ndarray, "states"], eliminated: float
) -> tuple[Float[np.ndarray, "states states"], Float[np.ndarray, "states"]]:
    """[i, j] = log of the mean time from i to j, and the log sums of the trees with each root, by halves.

    `rate[i, j]` is the log rate of i -> j, `price` the log of what a unit of time in a state counts, and `eliminated`
    the log of the product of the rates out of the states that were eliminated before. For the columns of one half
    the other half is eliminated, so that all columns together cost no more than a few eliminations.
    """
    n = len(rate)
    if n == 1:
        return np.full((1, 1), -np.inf), np.array([eliminated])
    half = n // 2
    time, trees = np.empty((n, n)), np.empty(n)
    for order in (np.arange(n), np.arange(n)[::-1]):
        keep = half if order[0] == 0 else n - half
        chain, cost, out = rate[np.ix_(order, order)], price[order], np.empty(n)
        for k in range(n - 1, keep - 1, -1):
            out[k] = _log_sum(chain[k, :k])
            into = chain[:k, k] - out[k]
            cost[:k] = _log_add(cost[:k], into + cost[k])
            chain[:k, :k] = _log_add(chain[:k, :k], into[:, None] + chain[k, :k])
        some = np.empty((n, keep))
        some[:keep], sums = _passage_times(chain[:keep, :keep], cost[:keep], eliminated + out[keep:].sum())
        for k in range(keep, n):
            steps = np.vstack([np.full((1, keep), cost[k]), chain[k, :k, None] + some[:k]])
            some[k] = _log_sum(steps) - out[k]
        time[np.ix_(order, order[:keep])], trees[order[:keep]] = some, sums
    return time, trees
