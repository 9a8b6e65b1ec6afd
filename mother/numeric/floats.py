"""Exact facts about floating-point numbers: units in the last place, and the precision that weights need."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Mantissa bits (the leading one not counted) of the types that checkpoints are stored in.
MANTISSA = {"float32": 23, "float16": 10, "bfloat16": 7}


def exponent(values: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """q with 2^q <= |x| < 2^(q + 1), read off the bits of float32; -127 for zero and what is below normal numbers."""
    return ((values.float().contiguous().view(torch.int32) >> 23) & 0xFF) - 127


def ulp(values: Float[Tensor, "*shape"], bits: Int[Tensor, "..."] | int) -> Float[Tensor, "*shape"]:
    """Unit in the last place of each value in a type with so many mantissa bits, without its underflow; 0 for zero."""
    power = (values.float().contiguous().view(torch.int32) & 0x7F800000).view(torch.float32)  # 2^q
    return power * torch.as_tensor(0.5**bits if isinstance(bits, int) else torch.exp2(-bits.float()))


def stored_precision(values: Float[Tensor, "*shape"]) -> str:
    """The coarsest of bfloat16, float16 and float32 that holds all values exactly, whatever they are stored in."""
    for name in ("bfloat16", "float16"):
        if torch.equal(values.to(getattr(torch, name)).float(), values):
            return name
    return "float32"


def mantissa_bits(values: Float[Tensor, "*shape"]) -> int:
    """Mantissa bits of the coarsest type that holds all values exactly."""
    return MANTISSA[stored_precision(values)]


def cast(values: Float[Tensor, "*shape"], name: str) -> Float[Tensor, "*shape"]:
    """The values rounded to a type, by torch's name of it, and back to float32: what storing them in it leaves."""
    return values.to(getattr(torch, name)).float()
