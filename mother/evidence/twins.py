"""Which of two twins a third model was trained from: a model in full precision, or its cast to half precision.

The two differ by rounding alone, far less than training moves. But what was trained from the cast holds all of its
rounding errors, and what was trained from the original none: the errors are random and known, and there is one for each
weight, so the sum over all of them tells what no distance can.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mother.evidence.sketch import Sketch
from mother.io.layers import Layer
from mother.numeric.floats import ulp

LAYERS = 32  # budget: matrices that are read of each child
FAR = 2.0  # units in the last place from the cast, from which rounding a child does not bring it back to the cast


@dataclass
class Rounding:
    """A model and its cast, or one that was quantized from it; what is read of the two is kept for all children."""

    original: Sketch
    cast: Sketch
    read: dict[Layer, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def of(self, layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
        """A matrix of both, and where they differ."""
        if layer not in self.read:
            start, end = self.original.read(layer), self.cast.read(layer)
            self.read[layer] = start, end, end != start
        return self.read[layer]


def held_rounding(child: Sketch, rounding: Rounding, bits: int | None = None) -> float:
    """Log likelihood ratio that a model was trained from the cast, not from its original; 0 where nothing tells.

    With e = W_cast - W_original and D = W_child - W_original the sum of D e is that of e^2 if the child holds the
    rounding, and 0 if it does not. Training knows nothing of e, so what it added makes a normal error of variance
    sum d^2 e^2, d = D - e or D; layers weigh by the inverse of how far they moved. The ratio is (z_0^2 - z_1^2) / 2.
    What neither explains, such as a mean of children of both, counts as dispersion.

    `bits`: mantissa bits of the child, where it is stored as coarsely as the cast. A small update is rounded away then,
    and what is left is the cast, whatever it was trained from: so only weights count that lie FAR from the cast.
    """
    sums = np.zeros(2)  # of D e and (D - e) e: the expected values are sum e^2 and 0, or 0 and -sum e^2
    variances = np.zeros(2)
    shapes, one, other = child.shapes, rounding.original.shapes, rounding.cast.shapes
    layers = [layer for layer in shapes if one.get(layer) == other.get(layer) == shapes[layer]]
    for layer in layers[:: max(1, -(-len(layers) // LAYERS))]:
        start, end, counted = rounding.of(layer)
        moved = child.read(layer)
        if bits is not None:
            counted = counted & ((moved - end).abs() >= FAR * torch.maximum(ulp(moved, bits), ulp(end, bits)))
        if not counted.any():
            continue
        error = (end - start)[counted].double()
        found = torch.stack([(moved - start)[counted].double(), (moved - end)[counted].double()])
        weight = float(found.square().mean())
        if weight > 0:
            sums += (found * error).sum(dim=1).numpy() / weight
            variances += (found * error).square().sum(dim=1).numpy() / weight**2
    if not (variances > 0).all():
        return 0.0
    from_original, from_cast = np.square(sums) / variances
    return float((from_original - from_cast) / 2 / max(1.0, min(from_original, from_cast)))
