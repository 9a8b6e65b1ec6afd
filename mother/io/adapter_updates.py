"""The update that an adapter makes of one weight, by its kind: what shape it has and what it is.

LoRA and DoRA: scale B A. LoHa: scale (A1 B1) * (A2 B2), entry by entry (Hyeon-Woo et al. 2022). LoKr: scale kron(W1,
W2) (Yeh et al. 2024). VeRA: diag(b) B diag(d) A, with A and B that all weights share (Kopiczko et al. 2024). IA3 gives
each row or column of the weight a factor (Liu et al. 2022). Factors are named, turned and cut as PEFT does it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mother.io.reader import TensorInfo

Shape = tuple[int, ...]
TURNED = ("lora", "vera", "ia3")  # kinds that PEFT turns for weights that are stored as (in, out)


@dataclass(frozen=True)
class Update:
    """The tensors of an adapter that change one weight, and how."""

    module: str
    parts: dict[str, str]  # role of a tensor -> its raw name in the adapter
    scale: float  # where there is no part "alpha", which is divided by the rank
    transposed: bool  # the base's weight is (in, out): Conv1D of GPT-2; factors of a convolution are of its outputs
    embedding: bool
    kind: str = "lora"  # "lora" (DoRA, too), "loha", "lokr", "vera", "ia3"
    rank: int = 0
    shape: Shape = ()  # as the base stores it, where that is known

    @property
    def adds(self) -> bool:
        """Whether it says something without its base."""
        return self.kind != "ia3"


def _product(update: Update, shapes: Mapping[str, Shape], first: str, second: str, core: str) -> Shape:
    """Shape of a product of two factors, and of the core of a convolution between them."""
    if core in update.parts:
        return (shapes[first][1], shapes[second][1], *shapes[core][2:])
    return (shapes[first][0], *shapes[second][1:])


def _kronecker(one: Shape, other: Shape) -> Shape:
    one = (*one, *[1] * (len(other) - len(one)))
    return tuple(a * b for a, b in zip(one, other))


def update_shape(update: Update, tensors: Mapping[str, TensorInfo]) -> Shape:
    """Shape of the weight that an update belongs to, as the base stores it; raises ValueError where parts do not fit.

    Of factors the side that they do not tell has one entry. Without a base a VeRA has all inputs of its projection.
    """
    if update.shape:
        return update.shape
    shapes = {role: tensors[raw].shape for role, raw in update.parts.items()}
    try:
        shape = _shape(update, shapes)
    except (KeyError, IndexError):
        raise ValueError(f"has parts of shapes {', '.join(map(str, shapes.values()))}, which do not fit") from None
    turned = update.transposed and update.kind in TURNED
    if turned and update.kind == "ia3" and len(shape) > 2:
        return (shape[1], shape[0], *shape[2:])
    return shape[::-1] if len(shape) == 2 and (turned or update.embedding) else shape


def _shape(update: Update, shapes: Mapping[str, Shape]) -> Shape:
    if update.kind == "loha":
        return _product(update, shapes, "w1_a", "w1_b", "t1")
    if update.kind == "lokr":
        one = shapes["w1"] if "w1" in shapes else _product(update, shapes, "w1_a", "w1_b", "")
        return _kronecker(one, shapes["w2"] if "w2" in shapes else _product(update, shapes, "w2_a", "w2_b", "t2"))
    if update.kind == "vera":
        return (math.prod(shapes["b"]), shapes["A"][1])
    if update.kind == "ia3":
        return shapes["factors"]
    if "mid" in shapes:
        return (shapes["B"][0], shapes["A"][1], *shapes["mid"][2:])
    return (shapes["B"][0], *shapes["A"][1:])  # of a convolution B is 1 x 1


def outputs(update: Update, tensors: Mapping[str, TensorInfo]) -> Shape | None:
    """How many outputs have factors; None where it is the inputs that have them."""
    shape = tensors[update.parts["factors"]].shape
    if len(shape) > 2:
        return (shape[1],) if update.transposed else None
    return (shape[0],) if shape[1] == 1 else None


def fits(update: Update, there: Shape, tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether a weight of this shape can have this update."""
    shape = update_shape(replace(update, shape=()), tensors)
    if update.kind == "ia3":
        return len(shape) == len(there) and all(a in (1, b) for a, b in zip(shape, there))
    if update.kind == "vera":
        rows, columns = (there[::-1] if update.transposed else there) if len(there) == 2 else (0, 0)
        own = shape[::-1] if update.transposed else shape
        return rows == own[0] and 0 < columns <= own[1]
    if shape[:1] != there[:1] or math.prod(shape) != math.prod(there):
        return False
    # A kernel may be written out as columns, and a kernel of one entry left out.
    flat = update.kind in ("loha", "lokr")
    return flat or [size for size in shape if size != 1] == [size for size in there if size != 1]


def oriented(update: Update, target: str, base: Mapping[str, Shape], tensors: Mapping[str, TensorInfo]) -> Update:
    """The update as its base stores the weight `target`: (out, in), or (in, out) for the Conv1D of GPT-2.

    PEFT decides that for each module, and the configuration keeps only what it decided last. The shape tells; where it
    is square, that of `c_attn` beside it does, whose output is three times as wide as its input.
    """
    there = base.get(target, ())
    plain = len(there) == 2 and not update.embedding
    if update.kind in TURNED and (plain or update.kind == "ia3"):
        fitting = [turned for turned in (False, True) if fits(replace(update, transposed=turned), there, tensors)]
        if len(fitting) == 1:
            update = replace(update, transposed=fitting[0])
        block, _, kind = target.removesuffix(".weight").rpartition(".")
        beside = base.get(f"{block}.c_attn.weight", ())
        if len(fitting) == 2 and kind in ("c_proj", "q_attn") and len(beside) == 2 and beside[0] != beside[1]:
            update = replace(update, transposed=beside[0] < beside[1])
    return replace(update, shape=there) if there and fits(update, there, tensors) else update


def _lora(parts: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
    import torch

    if "mid" in parts:
        return torch.einsum("or,rskl,si->oikl", parts["B"].flatten(1), parts["mid"], parts["A"].flatten(1))
    return (parts["B"].flatten(1) @ parts["A"].flatten(1)).reshape(parts["B"].shape[0], *parts["A"].shape[1:])


def _core(core: "torch.Tensor", first: "torch.Tensor", second: "torch.Tensor") -> "torch.Tensor":
    import torch

    return torch.einsum("ijkl,ip,jr->prkl", core, first, second)


def _loha(parts: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
    if "t1" in parts:
        one, other = (_core(parts[f"t{k}"], parts[f"w{k}_a"], parts[f"w{k}_b"]) for k in (1, 2))
    else:
        one, other = (parts[f"w{k}_a"] @ parts[f"w{k}_b"] for k in (1, 2))
    return one * other


def _lokr(parts: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
    import torch

    one = parts["w1"] if "w1" in parts else parts["w1_a"] @ parts["w1_b"]
    if "t2" in parts:
        other = _core(parts["t2"], parts["w2_a"], parts["w2_b"])
    else:
        other = parts["w2"] if "w2" in parts else parts["w2_a"] @ parts["w2_b"]
    return torch.kron(one.reshape(*one.shape, *[1] * (other.ndim - one.ndim)), other.contiguous())


def _vera(parts: Mapping[str, "torch.Tensor"], update: Update) -> "torch.Tensor":
    b, d = parts["b"].flatten(), parts["d"].flatten()
    columns = parts["A"].shape[1]
    if update.shape:
        columns = update.shape[0 if update.transposed else 1]
    return (b[:, None] * parts["B"][: len(b)]) @ (d[:, None] * parts["A"][:, :columns])


def added(update: Update, parts: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
    """What an update adds to its weight, in float32."""
    parts = {role: part.float() for role, part in parts.items()}
    made = {"loha": _loha, "lokr": _lokr, "lora": _lora}.get(update.kind)
    delta, scale = made(parts) if made is not None else _vera(parts, update), update.scale
    if "alpha" in parts:
        scale = float(parts["alpha"].flatten()[0]) / update.rank if update.rank else 1.0
    delta = scale * delta
    if delta.ndim == 2 and ((update.transposed and update.kind in TURNED) or update.embedding):
        delta = delta.T
    return delta.reshape(update.shape or delta.shape).contiguous()


def applied(update: Update, parts: dict[str, "torch.Tensor"], base: "torch.Tensor | None") -> "torch.Tensor":
    """What an update adds, or the base with it, in float32. DoRA gives each row of the result its own length.

    The base may be a bias where the update is one of factors.
    """
    if update.kind == "ia3":
        if base is None:
            raise ValueError("factors of weights are nothing without the weights")
        factors = parts["factors"].float()
        if base.ndim == 1:
            return base * factors.flatten()
        return (base * (factors.transpose(0, 1) if update.transposed else factors)).contiguous()
    delta = added(update, {role: part for role, part in parts.items() if role != "magnitude"})
    if base is None:
        return delta
    weight = base + delta
    if "magnitude" in parts:
        rows = weight.T if update.transposed else weight
        length = rows.flatten(1).norm(dim=1).clamp(min=float(np.finfo(np.float32).tiny))
        factor = parts["magnitude"].float().flatten() / length
        weight = weight * (factor[None, :] if update.transposed else factor.reshape(-1, *[1] * (weight.ndim - 1)))
    return weight.contiguous()
