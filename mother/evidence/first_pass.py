"""First pass of method "map": what the sketches of all pairs say, layer by layer: distance and relatedness."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mother.evidence.facts import Facts
from mother.evidence.permutation import Permuted, permuted
from mother.evidence.relatedness import layer_cosine, near_threshold
from mother.evidence.sketch import Sketch
from mother.io.layers import Layer, sort_key
from mother.io.snapshots import Snapshot
from mother.io.stream import read_ahead
from mother.numeric.threads import in_chunks

COMPARABLE = 0.5  # share of two models' weights below which nothing is said of them: what was not seen may be inherited
CANCELLED = 1e-13  # share of the squared norms below which a squared distance is what float64 left of a difference
GRAM_ENTRIES = 1 << 20  # budget: entries of a Gram product at a time
KEPT_BYTES = 1 << 28  # budget: squared distances of single layers that are kept from the first pass to the second
GRAM_ROWS = 128  # budget: models whose products with all later ones are taken at a time: a Gram matrix is symmetric


@dataclass
class FirstPass:
    """First pass. Matrices are [i, j]; models of other shapes, or unrelated by name, share nothing."""

    models: list[str]
    layers: list[Layer]
    facts: list[Facts]
    square: Float[np.ndarray, "models models"]  # sum of (W_i - W_j)^2 over shared matrices; inf without any
    shared: Float[np.ndarray, "models models"]  # entries compared, as share of those of the larger model
    turned: Float[np.ndarray, "models models"]  # the same of the part that changes no matrix's length
    size: Float[np.ndarray, "models"]  # sum of W^2
    relatedness: Float[np.ndarray, "models models"]  # z of the cosine under independent initialisation
    permuted: dict[tuple[int, int], Permuted] = field(default_factory=dict)  # tests of the pairs near the threshold

    def compared(self, i: int, j: int) -> float:
        """Entries compared, as share of all weights of the larger model but embeddings and heads, read or not."""
        read = max(self.facts[i].entries, self.facts[j].entries)
        return float(self.shared[i, j]) * read / max(self.facts[i].weights, self.facts[j].weights, read, 1)

    def comparable(self, i: int, j: int) -> bool:
        """Whether enough of two models was compared to call them related or unrelated; else they are not comparable."""
        return self.compared(i, j) >= COMPARABLE


def groups(sketches: Sequence[Sketch]) -> list[tuple[Layer, tuple[int, int], list[int]]]:
    """Each layer in each of its shapes, with the places of the models that have it so."""
    places: dict[Layer, dict[tuple[int, int], list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, sketch in enumerate(sketches):
        for layer, shape in sketch.shapes.items():
            places[layer][shape].append(place)
    return [
        (layer, shape, members)
        for layer in sorted(places, key=sort_key)
        for shape, members in sorted(places[layer].items())
    ]


def stacks(
    sketches: Sequence[Sketch], read: Callable[[], object], start: int = 0
) -> Iterator[tuple[Layer, list[int], float, Float[Tensor, "members rows columns"]]]:
    """The parts of each group from `start` on, of which places, and entries of the whole over those of a part.

    The next parts of the same shape overwrite them. Raises CheckpointError for a sketch that was damaged meanwhile.
    """
    failed: dict = {}
    left = groups(sketches)[start:]
    requests = [(layer, members) for layer, _, members in left]
    kept = [sketch.kept for sketch in sketches]
    for (layer, _, members), weights in zip(left, read_ahead(kept, requests, failed, read)):
        for error in failed.values():
            raise error
        yield layer, members, sketches[members[0]].scale(layer), weights


def square_distances(
    weights: Float[Tensor, "members rows columns"],
) -> tuple[Float[np.ndarray, "members members"], Float[np.ndarray, "members"]]:
    """Squared distances of all pairs, and squared norms.

    By one Gram matrix, centred on the mean model: else float64 cancels. What it cannot tell from 0 is 0.
    """
    gram = weights.new_zeros(len(weights), len(weights), dtype=torch.float64)
    size = gram.new_zeros(len(weights))
    for part in in_chunks(weights, GRAM_ENTRIES):
        centred = part.double()
        size += torch.linalg.vector_norm(centred, dim=1).square()
        centred -= centred.mean(dim=0)
        for start in range(0, len(weights), GRAM_ROWS):
            rows = slice(start, start + GRAM_ROWS)
            gram[rows, start:].addmm_(centred[rows], centred[start:].T)
    norms, square = gram.diagonal().clone(), gram
    for start in range(0, len(weights), GRAM_ROWS):  # in place, some rows at a time: they stay in the cache
        rows = slice(start, start + GRAM_ROWS)
        both = norms[rows, None] + norms[None, start:]
        part = (both - 2 * gram[rows, start:]).triu_(1)
        part.masked_fill_(part < CANCELLED * both, 0)
        width = len(part)
        part[:, :width] += part[:, :width].T.clone()
        square[rows, start:] = part
        square[start:, rows] = part.T
    return square.cpu().numpy(), size.cpu().numpy()


class Distances:
    """What `square_distances` gives of each group of layers: both passes ask for it, and the second is the last.

    Kept are the first groups, up to KEPT_BYTES; of others it is worked out twice.
    """

    def __init__(self) -> None:
        self.kept: dict[int, Float[np.ndarray, "members members"]] = {}
        self.left = KEPT_BYTES

    def keep(
        self, group: int, weights: Float[Tensor, "members rows columns"]
    ) -> tuple[Float[np.ndarray, "members members"], Float[np.ndarray, "members"]]:
        """Those of a group, by its number, that will be asked for again; and squared norms."""
        found = square_distances(weights)
        if found[0].nbytes <= self.left:
            self.kept[group] = found[0]
            self.left -= found[0].nbytes
        return found

    def take(self, group: int, weights: Float[Tensor, "members rows columns"]) -> Float[np.ndarray, "members members"]:
        """Those of a group, which nobody will ask for again."""
        found = self.kept.pop(group, None)
        return square_distances(weights)[0] if found is None else found


def take_first_pass(
    sketches: Sequence[Sketch],
    device: torch.device,
    progress: Callable[[int], Callable[[], object]] = lambda total: lambda: None,
    snapshot: Snapshot | None = None,
    relate: bool = True,
    distances: Distances | None = None,
) -> FirstPass:
    """First pass over a collection. With a `snapshot` an interrupted pass goes on; a finished one is read from it.

    Of models that are known to be related `relate` need not be asked: scores of relatedness are 0 then. `distances`
    are kept for a second pass over the same models.
    """
    snapshot = snapshot or Snapshot(None, {})
    n, found = len(sketches), groups(sketches)
    sums = {name: np.zeros((n, n)) for name in ("square", "turned", "cosine", "compared", "tested")} | {
        "size": np.zeros(n)
    }
    done = 0
    if (saved := snapshot.load()) is not None:
        done, sums, _ = saved
    left = sum(len(members) for _, _, members in found[done:])
    read = progress(left) if left else lambda: None
    for _, members, scale, weights in stacks(sketches, read, done):
        weights = weights.to(device)
        chosen = (slice(None),) * 2 if len(members) == n else np.ix_(members, members)
        square, size = square_distances(weights) if distances is None else distances.keep(done, weights)
        sums["square"][chosen] += scale * square
        length = np.sqrt(size)
        sums["turned"][chosen] += scale * (square - (length[:, None] - length[None]) ** 2).clip(0)
        sums["size"][members] += scale * size
        sums["compared"][chosen] += scale * weights[0].numel()
        if relate:
            z, valid = layer_cosine(weights)
            sums["cosine"][chosen] += z.cpu().numpy()
            sums["tested"][chosen] += valid.cpu().numpy()
        done += 1
        snapshot.save(done, lambda: (sums, None), now=done == len(found))
    square, turned, cosine, compared, tested = (
        sums[name] for name in ("square", "turned", "cosine", "compared", "tested")
    )
    largest = np.maximum.outer(np.diagonal(compared), np.diagonal(compared)).clip(min=1)
    with np.errstate(invalid="ignore"):
        relatedness = np.where(tested > 0, cosine / np.sqrt(tested.clip(min=1)), 0)
    relatedness, tests = near_threshold(relatedness, tested, lambda i, j: permuted(of_both(sketches[i], sketches[j])))
    return FirstPass(
        [sketch.model for sketch in sketches],
        list(dict.fromkeys(layer for layer, _, _ in found)),
        [sketch.facts for sketch in sketches],
        np.where(compared > 0, square, np.inf),
        compared / largest,
        np.where(compared > 0, turned, np.inf),
        sums["size"],
        relatedness,
        tests,
    )


def of_both(one: Sketch, other: Sketch) -> Iterator[tuple[Layer, Float[Tensor, "two rows columns"]]]:
    """The parts of both models of each layer that they have in one shape."""
    for layer, shape in one.shapes.items():
        if other.shapes.get(layer) == shape:
            yield layer, torch.stack([one.read(layer), other.read(layer)]).float()
