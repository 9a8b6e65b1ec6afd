"""Edmonds' algorithm for sparse graphs, compiled: mergeable heaps of incoming edges, contracted cycles, expansion.

Gabow, Galil, Spencer and Tarjan, "Efficient algorithms for finding minimum spanning trees in undirected and directed
graphs" (1986), the simpler of their two bounds: O(E log V). The heaps are skew heaps (Sleator and Tarjan 1986) in which
an amount is added to all keys at once. Edges come sorted by target, then by cost: a sorted run is a heap already.
"""

import numpy as np

from mother.numeric.kernels import compiled

FRESH, ON_PATH, DONE = 0, 1, 2
# An edge in its heap: its key, what all below it are still to be told, the two below. Side by side, for the cache.
EDGE = np.dtype([("key", "f8"), ("added", "f8"), ("left", "i4"), ("right", "i4"), ("source", "i8")])


@compiled
def _find(above: np.ndarray, node: int) -> int:
    """The outermost contracted node that a node is in; the way there is shortened."""
    top = node
    while above[top] != top:
        top = above[top]
    while above[node] != top:
        above[node], node = top, above[node]
    return top


@compiled
def _hand_down(heap: np.ndarray, top: int) -> None:
    """Tell the two below what was added to all keys of a heap."""
    more = heap[top].added
    if more != 0.0:
        for below in (heap[top].left, heap[top].right):
            if below >= 0:
                heap[below].key += more
                heap[below].added += more
        heap[top].added = 0.0


@compiled
def _meld(heap: np.ndarray, one: int, other: int) -> int:
    """The top of one heap made of two; -1 is an empty one."""
    top, last = -1, -1
    while one >= 0 and other >= 0:
        if heap[one].key > heap[other].key:
            one, other = other, one
        _hand_down(heap, one)
        if last < 0:
            top = one
        else:
            heap[last].left = one
        last, one = one, heap[one].right
        heap[last].right = heap[last].left
    rest = max(one, other)
    if last < 0:
        return rest
    heap[last].left = rest
    return top


@compiled
def _contractions(
    start: np.ndarray, heap: np.ndarray, price: np.ndarray, inside: np.ndarray, entered: np.ndarray
) -> int:
    """Choose the cheapest edge into every node, and contract the cycles; returns how many nodes there are in the end.

    Node v's edges are start[v] to start[v + 1]. `inside[v]` becomes the contracted node that v is in (-1: in none),
    `entered[v]` the edge into it, or -1 - r where it holds the root r. `heap` is changed.
    """
    n = len(start) - 1
    top, above, state = np.full(2 * n, -1), np.arange(2 * n), np.zeros(2 * n, np.int8)
    # A root costs one more root first, then its price: compared apart, so that no dear edge swallows digits.
    of_root, root, paid = np.zeros(2 * n), np.arange(2 * n), np.zeros(2 * n)
    of_root[:n] = price
    for v in range(n):
        if start[v] < start[v + 1]:
            top[v] = start[v]
            heap[start[v + 1] - 1].left = -1
    nodes, path, length = n, np.empty(n, np.int64), 0
    for first in range(n):
        v = _find(above, first)
        if state[v] == DONE:
            continue
        path[0], length, state[v] = v, 1, ON_PATH
        while True:
            edge = top[v]
            while edge >= 0 and _find(above, heap[edge].source) == v:
                _hand_down(heap, edge)
                edge = _meld(heap, heap[edge].left, heap[edge].right)
            top[v] = edge
            if edge < 0:
                entered[v] = -1 - root[v]
                break
            entered[v], paid[v] = edge, heap[edge].key
            heap[edge].key -= paid[v]
            heap[edge].added -= paid[v]
            u = _find(above, heap[edge].source)
            if state[u] == DONE:
                break
            if state[u] == FRESH:
                path[length], state[u], v = u, ON_PATH, u
                length += 1
                continue
            v, joined, best = nodes, -1, np.inf
            nodes += 1
            while True:
                length -= 1
                w = path[length]
                inside[w] = above[w] = v
                joined = _meld(heap, joined, top[w])
                if of_root[w] - paid[w] < best:
                    best, root[v] = of_root[w] - paid[w], root[w]
                if w == u:
                    break
            top[v], of_root[v], state[v], path[length] = joined, best, ON_PATH, v
            length += 1
        for at in range(length):
            state[path[at]] = DONE
    return nodes


@compiled
def _expanded(inside: np.ndarray, entered: np.ndarray, target: np.ndarray, nodes: int, chosen: np.ndarray) -> None:
    """`chosen[v]` becomes the edge into v, -1 for a root: outermost first, an edge enters all that hold its target."""
    opened = np.zeros(nodes, np.bool_)
    for node in range(nodes - 1, -1, -1):
        if opened[node]:
            continue
        edge = entered[node]
        v = target[edge] if edge >= 0 else -1 - edge
        chosen[v] = max(edge, -1)
        while v != node:
            opened[v] = True
            v = inside[v]


def cheapest_edges(start: np.ndarray, source: np.ndarray, cost: np.ndarray, price: np.ndarray) -> np.ndarray:
    """The edge into each node in the cheapest forest among those of the fewest trees; -1 for a root.

    `source` and `cost` are of edges sorted by target, then by cost; those into node v are start[v] to start[v + 1].
    `price` is what a node costs as a root.
    """
    n, heap = len(start) - 1, np.zeros(len(source), EDGE)
    heap["key"], heap["source"], heap["right"] = cost, source, -1
    heap["left"] = np.arange(1, len(source) + 1)
    inside, entered = np.full(2 * n, -1, np.int64), np.full(2 * n, -1, np.int64)
    nodes = _contractions(start, heap, price, inside, entered)
    chosen = np.full(n, -1, np.int64)
    _expanded(inside, entered, np.repeat(np.arange(n), np.diff(start)), nodes, chosen)
    return chosen
