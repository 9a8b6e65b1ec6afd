"""Codes: whether a quantized matrix is another one, rounded to its levels; and by the rule of which format.

Two tests. By rule: the candidate is quantized as the format does it and must give the same numbers. By levels: of each
block the distance between levels is read off the quantized numbers, and every entry of the candidate must lie nearest
to the level that its place holds. The second needs no rule: formats that choose their scales by a search, such as those
of 256 entries in GGUF, round to the nearest level in the end. GPTQ and AWQ do not: of them the residual is compared
with the step.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from mother.io.reader import Storage
from mother.numeric.floats import MANTISSA, cast, mantissa_bits, stored_precision

MOST_ENTRIES = 1 << 15  # budget: entries of a matrix whose codes are compared
TOLERANCE = 2.0**-19  # of a block's largest magnitude: what the order of a format's arithmetic changes
MULTIPLES = 12  # the smallest distance of two entries of a block is at most so many steps
WHOLE = 2e-3  # of a step: how far from whole multiples of it the entries of a block may lie
BEYOND = 1.05  # steps by which an entry may lie outside the levels of its block
GGUF_RULES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
FINE = ("Q2_K", "Q3_K", "Q6_K")  # formats of GGUF whose scales are of 16 entries, not of 32
# QLoRA (arXiv 2305.14314), appendix E; and bitsandbytes' floats of four bits.
NF4 = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0, 0.0795803, 0.1609302)
NF4 += (0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)
_FP4 = (0.0052083, 0.1666667, 0.25, 0.3333333, 0.5, 0.6666667, 1.0)
FP4 = tuple(sorted((0.0, *_FP4, *(-level for level in _FP4))))
OCP_FP4 = (0, 1, 2, 3, 4, 6, 8, 12)  # halves: NVFP4 and MXFP4

Blocks = Float[Tensor, "blocks entries"]
Matrix = Float[Tensor, "rows columns"]


@dataclass(frozen=True)
class Rule:
    """A deterministic format: how a block becomes numbers on its levels. `group` None: of a whole row; 0: of all."""

    name: str
    bits: int
    group: int | None
    apply: Callable[[Blocks], Blocks]


@dataclass(frozen=True)
class Codes:
    """How many codes of a matrix were compared, and how many were equal; root mean square of the residual in steps."""

    equal: int
    compared: int
    residual: float

    @property
    def share(self) -> float:
        """Share of equal codes; 0 where none could be compared."""
        return self.equal / self.compared if self.compared else 0.0


def _gguf(kind: str, blocks: Blocks) -> Blocks:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    which = GGMLQuantizationType[kind]
    return torch.from_numpy(dequantize(quantize(blocks.float().contiguous().numpy(), which), which).copy())


def _mlx(bits: int, stored: str, blocks: Blocks) -> Blocks:
    """`affine_quantize` of https://github.com/ml-explore/mlx, mlx/backend/cpu; scales in type `stored`."""
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    below = low.abs() > high.abs()
    scale = ((high - low) / (2**bits - 1)).clamp(min=1e-7)
    scale = torch.where(below, scale, -scale)
    edge = torch.where(below, low, high)
    first = (edge / scale).round()
    scale = torch.where(first != 0, edge / torch.where(first != 0, first, 1), scale)
    offset = torch.where(first == 0, 0, edge)
    codes = ((blocks - offset) / scale).round().clamp(0, 2**bits - 1)
    return codes * cast(scale, stored) + cast(offset, stored)


def largest(blocks: Blocks) -> Float[Tensor, "blocks one"]:
    return blocks.abs().amax(1, keepdim=True).clamp(min=1e-30)


def _symmetric(top: float, blocks: Blocks) -> Blocks:
    scale = largest(blocks) / top
    return (blocks / scale).round().clamp(-int(top) - 1, int(top)) * scale


def _zero_point(bits: int, blocks: Blocks) -> Blocks:
    low = blocks.amin(1, keepdim=True).clamp(max=0)
    scale = ((blocks.amax(1, keepdim=True).clamp(min=0) - low) / (2**bits - 1)).clamp(min=1e-30)
    zero = (-low / scale).round()
    return (((blocks / scale).round() + zero).clamp(0, 2**bits - 1) - zero) * scale


def nearest(levels: Float[Tensor, "levels"], values: Blocks) -> Blocks:
    """The level next to each value; levels ascend."""
    middles = (levels[1:] + levels[:-1]) / 2
    return levels[torch.bucketize(values.contiguous(), middles)]


def _coded(levels: tuple[float, ...], blocks: Blocks) -> Blocks:
    scale = largest(blocks)
    return nearest(torch.tensor(levels), blocks / scale) * scale


def _float8(name: str, blocks: Blocks) -> Blocks:
    kind = getattr(torch, name)
    scale = largest(blocks) / torch.finfo(kind).max
    return (blocks / scale).to(kind).float() * scale


def rules() -> Iterator[Rule]:
    """The formats whose rule is known, those with names before those that are only integers with a scale."""
    for kind in GGUF_RULES:
        yield Rule(f"gguf {kind}", int(kind[1]), 32, partial(_gguf, kind))
    for group in (64, 32, 128):
        for bits in (4, 8):
            for stored in ("float32", "bfloat16", "float16"):
                yield Rule(f"mlx {bits} bit, group {group}", bits, group, partial(_mlx, bits, stored))
    for group in (64, 128):
        tail = f", group {group}" if group != 64 else ""
        yield Rule(f"nf4{tail}", 4, group, partial(_coded, NF4))
        yield Rule(f"fp4{tail}", 4, group, partial(_coded, FP4))
    for group, words in ((None, "a scale each row"), (0, "one scale"), *((n, f"group {n}") for n in (32, 64, 128))):
        for bits in (8, 4):
            for top in (2.0 ** (bits - 1) - 1, 2 ** (bits - 1) - 0.5):
                yield Rule(f"int{bits}, {words}", bits, group, partial(_symmetric, top))
            yield Rule(f"uint{bits}, {words}", bits, group, partial(_zero_point, bits))
        for name in ("e4m3fn", "e5m2"):
            yield Rule(f"fp8 {name[:4]}, {words}", 8, group, partial(_float8, f"float8_{name}"))


def cut(weight: Matrix, group: int | None) -> Blocks | None:
    """The blocks of a matrix, one a row; None where it does not divide."""
    if group is None:
        return weight
    if group == 0:
        return weight.reshape(1, -1)
    if weight.shape[1] % group == 0 or weight.numel() % group == 0:
        return weight.reshape(-1, group)
    return None


def by_rule(rule: Rule, parent: Matrix, child: Matrix) -> Codes:
    """How many entries of a matrix are those of the parent, quantized by this rule and stored as the child is."""
    return equal_codes(rule, each_by_rule(rule, [parent]), child)[0]


def each_by_rule(rule: Rule, parents: Sequence[Matrix]) -> Float[Tensor, "parents blocks entries"] | None:
    """Several matrices of one shape, quantized together by this rule; None where its blocks do not divide them."""
    blocks = [cut(parent, rule.group) for parent in parents]
    if blocks[0] is None:
        return None
    return rule.apply(torch.cat(blocks).float()).reshape(len(parents), *blocks[0].shape)


def equal_codes(rule: Rule, made: Float[Tensor, "parents blocks entries"] | None, child: Matrix) -> list[Codes]:
    """How many entries of a matrix are those of each parent, which `each_by_rule` gave, stored as the child is."""
    if made is None:
        return [Codes(0, 0, float("inf"))]
    after = cut(child, rule.group)
    if mantissa_bits(child) < MANTISSA["float32"]:
        made = cast(made, stored_precision(child))
    equal = ((made - after).abs() <= TOLERANCE * largest(after)).flatten(1).sum(dim=1)
    return [Codes(count, after.numel(), 0.0) for count in equal.tolist()]


def steps_of(blocks: Blocks) -> Float[Tensor, "blocks one"]:
    """Of each block the largest step that all its entries are whole multiples of, counted from its smallest; else 0."""
    ordered = blocks.double().sort(dim=1).values
    size = largest(blocks).double()
    gaps = ordered.diff(dim=1)
    gaps = torch.where(gaps > 16 * TOLERANCE * size, gaps, torch.inf)
    least, found = gaps.amin(1, keepdim=True), torch.zeros_like(size)
    span = ordered - ordered[:, :1]
    for parts in range(1, MULTIPLES + 1):
        step = least / parts
        # Steps are refined by the widest distance, which tells them best.
        count = (span[:, -1:] / step).round().clamp(min=1)
        step = torch.where(least.isfinite(), span[:, -1:] / count, 0)
        relative = span / step.clamp(min=1e-300)
        whole = ((relative - relative.round()).abs().amax(1, keepdim=True) < WHOLE) & (step > 0)
        found = torch.where((found == 0) & whole, step, found)
    return found


def by_levels(storage: Storage, parent: Matrix, child: Matrix) -> Codes:
    """How many entries of the parent lie nearest to the level that the child has in their place."""
    group = block_of(storage)
    before, after = cut(parent, group), cut(child, group)
    if before is None:
        return Codes(0, 0, float("inf"))
    before, after = before.double(), after.double()
    if storage.format == "fp8":
        return _by_float8(before, after)
    if storage.format in ("nf4", "fp4"):
        levels = torch.tensor(NF4 if storage.format == "nf4" else FP4).double()
        size = largest(after)
        rounded = nearest(levels, before / size) * size
        equal = (rounded - after).abs() <= 1e-4 * size
        gap = 2 * size / 15
        return Codes(int(equal.sum()), equal.numel(), float(((before - after) / gap).square().mean().sqrt()))
    step = steps_of(after)
    known = (step > 0).squeeze(1)
    # Where no step is told (entries in another order than their groups) the range of the block gives its upper bound.
    range_ = (after.amax(1, keepdim=True) - after.amin(1, keepdim=True)) / (2 ** (storage.bits or 4) - 1)
    error = (before - after) / torch.where(step > 0, step, range_.clamp(min=1e-30))
    residual = float(error.square().mean().sqrt())
    error, after, step = error[known], after[known], step[known]
    if storage.format in ("nvfp4", "mxfp4"):
        levels = torch.tensor([*(-level for level in OCP_FP4[:0:-1]), *OCP_FP4]).double()
        codes = (after / step).round()
        equal = nearest(levels, before[known] / step) == codes
        return Codes(int(equal.sum()), equal.numel(), residual)
    top, low = after == after.amax(1, keepdim=True), after == after.amin(1, keepdim=True)
    inside = error.abs() <= 0.5 + WHOLE
    equal = inside | (top & (error > 0) & (error <= BEYOND)) | (low & (error < 0) & (error >= -BEYOND))
    return Codes(int(equal.sum()), equal.numel(), residual)


def _by_float8(before: Blocks, after: Blocks) -> Codes:
    """Scales of floats of 8 bits by their mantissas, of 3 bits or of 2: powers of two do not change these."""
    size, best = largest(after), Codes(0, 0, float("inf"))
    for bits in (3, 2):
        for leading in range(1 << bits):
            scale = size / (1 + leading / (1 << bits))
            rounded, given = (_mantissa(values / scale, bits) for values in (after, before))
            large = (after.abs() > size * 2.0**-12) & (after.abs() < size)
            fits = ((rounded - after / scale).abs() <= 1e-4 * rounded.abs()) | ~large
            rows = fits.all(dim=1)
            compared = large & rows[:, None]
            equal = ((given - rounded).abs() <= 1e-4 * rounded.abs()) & compared
            found = Codes(int(equal.sum()), int(compared.sum()), 0.0)
            best = max(best, found, key=lambda one: one.equal)
    return best


def _mantissa(values: Blocks, bits: int) -> Blocks:
    """Values rounded to so many bits behind the leading one."""
    fraction, power = torch.frexp(values)
    return torch.ldexp((fraction * 2 ** (bits + 1)).round() / 2 ** (bits + 1), power)


def block_of(storage: Storage) -> int | None:
    """How many entries of a row are sure to share a scale; None: all that are kept."""
    if storage.format == "gguf":
        return 16 if storage.detail in FINE else 32
    if storage.format in ("nf4", "fp4"):
        return storage.group or 64
    if "blocks" in storage.detail:
        return int(storage.detail.rpartition(" ")[2])
    return storage.group if storage.group and storage.group <= 128 else None


def _fits(rule: Rule, storage: Storage) -> bool:
    """Whether a rule is that of a stored format."""
    said = str(storage)
    if storage.format in ("gguf", "mlx"):
        return rule.name == said
    if storage.format in ("nf4", "fp4"):
        return rule.name.startswith(storage.format) and rule.group == (storage.group or 64)
    if storage.format in ("int8", "bnb int8", "fp8"):
        rows = "row" in storage.detail or storage.format == "bnb int8"
        start = "fp8" if storage.format == "fp8" else "int8"
        return rule.name.startswith(start) and rule.group == (None if rows else storage.group or 0)
    return False


def columns_apart(storage: Storage, parent: Matrix, child: Matrix) -> Codes:
    """The residual of a matrix whose columns were scaled before it was quantized, as AWQ does, in steps."""
    parent, child = kept_rows(parent, child)
    square = parent.double().square().sum(0).clamp(min=1e-30)
    factor = (parent.double() * child.double()).sum(0) / square
    return by_levels(storage, (parent * factor).float(), child)


def kept_rows(parent: Matrix, child: Matrix) -> tuple[Matrix, Matrix]:
    """The first rows of both, of MOST_ENTRIES entries at most."""
    rows = max(1, MOST_ENTRIES // max(1, child.shape[1]))
    return parent[:rows], child[:rows]


def compare_packed(storage: Storage, parent: Matrix, child: Matrix) -> tuple[Codes, bool]:
    """The codes of a packed matrix against the candidate it may be made from; whether a rule gave them."""
    parent, child = kept_rows(parent, child)
    found = [by_rule(rule, parent, child) for rule in rules() if _fits(rule, storage)]
    exact = max(found, key=lambda one: one.share, default=Codes(0, 0, float("inf")))
    loose = by_levels(storage, parent, child)
    return (exact, True) if exact.share >= loose.share and exact.compared else (loose, False)
