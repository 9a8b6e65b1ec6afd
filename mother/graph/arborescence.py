"""Trees of a dense directed graph: the cheapest one (Edmonds in O(n^2)), and the probability of every edge."""

import numpy as np
from jaxtyping import Float, Int

# Log weights further below the best parent than this count as this far: beyond it the inverse loses its digits. Groups
# that are bound to each other by far more than to anything else need the next.
FLOORS = (-25.0, -15.0, -8.0)


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
    one root. Returns P(i -> j), P(root = j), and the log of the sum over all trees. Directed Matrix-Tree
    theorem (Tutte) in the single-root form of Koo, Globerson, Carreras, Collins (2007): the marginals are entries
    of the inverse of a Laplacian whose first row holds the roots. Weights are shifted by column, which changes
    all trees alike. Raises ValueError for NaN, +inf or a node that no tree reaches.
    """
    log_weight = np.array(log_weight, dtype=np.float64)
    n = len(log_weight)
    np.fill_diagonal(log_weight, -np.inf)
    if np.isnan(log_weight).any() or np.isposinf(log_weight).any():
        raise ValueError("log weights must be below infinity")
    if n == 1:
        return np.zeros((1, 1)), np.ones(1), 0.0
    shift = log_weight.max(axis=0)
    if np.isneginf(shift).sum() > 1:
        raise ValueError("more than one model has no possible parent")
    # A model without a possible parent is the root: its root weight alone counts.
    level = shift[np.isfinite(shift)].mean()
    shift = np.where(np.isfinite(shift), shift, level)
    for floor in FLOORS:
        edges, roots, log_sum = _marginals(log_weight - shift, level - shift, floor)
        if np.isfinite(log_sum) and np.abs(edges.sum(axis=0) + roots - 1).max() < 1e-4:
            break
    return edges.clip(0, 1), roots.clip(0, 1), log_sum + float(shift.sum() - level)


def _marginals(
    log_weight: Float[np.ndarray, "models models"], log_root: Float[np.ndarray, "models"], floor: float
) -> tuple[Float[np.ndarray, "models models"], Float[np.ndarray, "models"], float]:
    """Marginals of shifted log weights; what is further below the best parent than `floor` counts as that far."""
    weight = np.exp(np.maximum(log_weight, floor) + np.where(np.isneginf(log_weight), -np.inf, 0))
    root = np.exp(np.clip(log_root, floor, -floor))
    laplacian = np.diag(weight.sum(axis=0)) - weight
    laplacian[0] = root
    try:
        inverse = np.linalg.inv(laplacian)
    except np.linalg.LinAlgError:
        return weight, root, np.nan
    first = np.arange(len(root)) == 0
    edges = weight * np.where(first, 0, inverse.diagonal())[None, :]
    edges -= weight * np.where(first[:, None], 0, inverse.T)
    return edges, root * inverse[:, 0], float(np.linalg.slogdet(laplacian)[1])
