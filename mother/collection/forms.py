"""Forms of one model among candidates: copies, casts and quantizations, which count as one base of an adapter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from mother.evidence.adapter_reads import Matrices
from mother.evidence.codes import Matrix, by_levels, columns_apart, compare_packed
from mother.evidence.intervals import apart, interval_of
from mother.heritage.quantized import AS_NEAR, RESIDUAL, SEARCHED, bar_of, described
from mother.io.checkpoint import Checkpoint
from mother.io.reader import Storage
from mother.numeric.floats import MANTISSA, stored_precision

LOSSY = 0.1  # by eye: how probable a packed model is as a base, against one in plain numbers
FAR = 4.0  # by eye: times the residual of such a model, in one matrix, from which no other is looked at
TRAINED_ON = {"nf4": 0.5, "fp4": 0.5}  # by eye: formats that adapters are trained on (QLoRA)


@dataclass
class Form:
    """A candidate by its matrices, and how each of them is stored where that is not plain numbers."""

    model: str
    matrices: Matrices
    storage: Mapping[str, Storage]  # by the names of pieces
    precise: float  # bits of an entry

    @property
    def packed(self) -> Storage | None:
        """How it is packed, if it is."""
        return next(iter(self.storage.values()), None)

    @property
    def searched(self) -> bool:
        """Whether its codes are those of a search, and not the nearest."""
        return self.packed is not None and self.packed.format in SEARCHED

    @property
    def prior(self) -> float:
        """How probable it is as the base of an adapter before its weights are looked at."""
        return 1.0 if self.packed is None else TRAINED_ON.get(self.packed.format, LOSSY)


def form_of(model: str, checkpoint: Checkpoint, matrices: Matrices, names: Sequence[str]) -> Form:
    """A candidate, of which these matrices are compared."""
    stored = {name: checkpoint.storage.get(matrices.pieces[name].raw) for name in names}
    packed = {name: one for name, one in stored.items() if one is not None}
    if packed:
        return Form(model, matrices, packed, float(described(next(iter(packed.values()))).get("bits") or 8))
    return Form(model, matrices, packed, 32.0 + MANTISSA[stored_precision(matrices[names[0]])])


def representatives(forms: Sequence[Form], names: Sequence[str]) -> dict[str, str]:
    """The model that stands for each, itself or another: the most precise of its forms.

    A form lies where rounding the other one may have put it, in every entry of every matrix; of formats whose rounding
    is not known exactly its codes are those of the other one, as for edges. Of several the nearest is taken. What was
    quantized by a search lies farther: it is a form of the nearest in plain numbers, unless two are as near.
    """
    found: dict[str, str] = {}
    firsts: list[Form] = []
    for form in sorted(forms, key=lambda one: (-one.precise, one.model)):
        fitting = [(far, first.model) for first in firsts if (far := _distance(first, form, names)) is not None]
        fitting.sort()
        open_ = form.searched and len(fitting) > 1 and fitting[1][0] <= AS_NEAR**2 * fitting[0][0]
        found[form.model] = fitting[0][1] if fitting and not open_ else form.model
        if found[form.model] == form.model:
            firsts.append(form)
    return found


def _distance(one: Form, other: Form, names: Sequence[str]) -> float | None:
    """How far the second lies from the first, whose form it may be, squared; None where it is none."""
    total, residuals = 0.0, []
    for name in names:
        before, after = one.matrices[name], other.matrices[name]
        if before.shape != after.shape:
            return None
        if other.searched and one.packed is None and name in other.storage:
            residuals.append(_residual(other.storage[name], before, after))
            if residuals[-1] > FAR * RESIDUAL:
                return None
        elif not _may_be(one, other, name, before, after):
            return None
        total += float((before - after).double().square().sum())
    return total if not residuals or median(residuals) <= RESIDUAL else None


def _residual(storage: Storage, before: Matrix, after: Matrix) -> float:
    """How far a matrix that a search quantized lies from another one, in steps; as it stands, or turned round."""
    apart_by = columns_apart if storage.format == "awq" else by_levels
    return min(apart_by(storage, *both).residual for both in ((before, after), (before.T, after.T)))


def _may_be(one: Form, other: Form, name: str, before: Matrix, after: Matrix) -> bool:
    """Whether a matrix may be another one, rounded as it is stored."""
    ways = one.storage.get(name), other.storage.get(name)
    if ways[0] == ways[1] and one.precise == other.precise:
        return before.equal(after)
    intervals = [interval_of(way, matrix) for way, matrix in zip(ways, (before, after))]
    if None not in intervals:
        return apart(*intervals)[0] == 0
    if ways[1] is None or one.packed is not None:
        return False
    codes, by_rule = compare_packed(ways[1], before, after)
    return codes.share >= bar_of(ways[1], by_rule)
