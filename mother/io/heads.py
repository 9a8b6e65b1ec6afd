"""Which matrices of a model are embeddings, positions or heads, by their shapes; names are hints."""

from collections import Counter
from collections.abc import Collection, Mapping

from mother.io.layers import Layer, is_backbone

GATES = 4  # of an LSTM: as many times as many outputs as units


def tables_of(
    shapes: Mapping[str, tuple[int, ...]], flat: Mapping[str, tuple[int, ...]], layers: Mapping[str, Layer]
) -> set[str]:
    """Matrices that are embeddings, positions or heads; `flat` are all matrices.

    A parameter (1, n, d) that is no layer's weight is a table of tokens or positions. What has the shape of an
    embedding is tied to it, or the head. A head's outputs, and the entries of a vocabulary, are as many as no other
    matrix has rows or columns. What goes from inputs to outputs, as in a regression or a probe, is a head without a
    body: it has no hidden units, so that two that learn one task become alike, whatever they began with.
    """
    outside = {raw for raw in flat if not layers[raw].block}
    found = {raw for raw in outside if not is_backbone(layers[raw])}
    inside = {side for raw in flat.keys() - outside for side in flat[raw]}
    tall = {tuple(sorted(flat[raw])) for raw in found if max(flat[raw]) not in inside}
    different = {(tuple(sorted(shape)), shapes[raw][1]) for raw, shape in flat.items()}
    count = Counter(side for shape, inputs in different for side in {*shape, inputs})
    for raw in outside - found:
        rows, columns = flat[raw]
        if len(shapes[raw]) > 2:
            if shapes[raw][0] == 1 and not raw.endswith(".weight"):
                found.add(raw)
        elif tuple(sorted(flat[raw])) in tall or (inside and count[rows] == 1 and columns in inside):
            found.add(raw)
    alike = {(*flat[raw], shape[1] if len(shape) > 2 else 0) for raw, shape in shapes.items() if raw in flat}
    # What stands in a block under a name of its own belongs to a stream. A layer of a plain sequence has none.
    plain = [raw for raw in flat if len(shapes[raw]) == 2 and (not layers[raw].block or layers[raw].kind == "weight")]
    return found | {raw for raw in plain if not _has_hidden_units(flat[raw], alike)}


def _has_hidden_units(shape: tuple[int, int], alike: Collection[tuple[int, int, int]]) -> bool:
    """Whether a matrix takes what another one gives, or gives what another takes; a square one may do both itself.

    `alike` are rows, columns and, of kernels, input channels of all matrices of a model: what a kernel gives may be
    flattened before it is taken. Of gates up to GATES times as many are given as are taken.
    """
    given, taken = shape
    if given == taken:
        return True
    gates = range(1, GATES + 1)
    for rows, columns, channels in alike:
        if (rows, columns) == shape:
            continue
        if any(given == times * taker for times in gates for taker in (columns, channels)):
            return True
        if any(rows == times * taken for times in gates):
            return True
        if channels and (taken % rows == 0 or given % channels == 0):
            return True
    return False
