"""Adapters as models: a base with updates of some of its weights, in float32, or the updates where no base is given.

Merging into the storage precision of the base would round the update away and hide its rank, so all is done in
float32. Adapters are known by the names of their tensors (`adapter_names.py`); what their updates are is said in
`adapter_updates.py`. Kinds whose update is no short formula are refused by name.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mother.errors import CheckpointError
from mother.io.adapter_config import AGAIN, REMEDY, Config, Refuse, of_diffusers, parse_config, scale_of
from mother.io.adapter_names import Part, part_of
from mother.io.adapter_updates import Update, update_shape
from mother.io.layers import canonical_name
from mother.io.reader import TensorInfo

MOST_ENTRIES = 1 << 31  # of a single update


@dataclass(frozen=True)
class Adapter:
    """What an adapter does to its base: updates of weights, and tensors in place of the base's own."""

    updates: dict[str, Update] = field(default_factory=dict)  # by module, with the component of a pipeline
    whole: dict[str, str] = field(default_factory=dict)  # name in the base -> raw name in the adapter
    flat: frozenset[str] = frozenset()  # modules whose dots were guessed
    components: dict[str, str] = field(default_factory=dict)  # module -> component of a pipeline, or ""


@dataclass
class _Group:
    """The tensors that make one update."""

    first: Part
    parts: dict[str, str] = field(default_factory=dict)  # role -> raw name


def _whole_name(name: str) -> str:
    """The name in its base of a tensor that takes the place of the base's own."""
    return re.sub(r"\.modules_to_save(\.[^.]+)?(?=\.)", "", name.removeprefix("base_model.model."))


def _group_parts(tensors: Iterable[str], refuse: Refuse) -> tuple[dict[str, _Group], dict[str, str]]:
    """(the parts of the update of each module, tensors in place of the base's own)."""
    grouped: dict[str, _Group] = {}
    whole: dict[str, str] = {}
    shared: dict[str, str] = {}
    alphas: dict[str, str] = {}
    for name in tensors:
        part = part_of(name)
        if part is None:
            whole[_whole_name(name)] = name
        elif not part.kind:
            alphas[part.key] = name
        elif not part.module:
            shared[part.role] = name
        elif part.role == "bias":
            raise refuse(f"{name}: LoRA with a bias (lora_bias) is not supported")
        elif part.role == "dora_scale":
            raise refuse(f"{name}: DoRA as LyCORIS saves it is not supported")
        else:
            group = grouped.setdefault(part.key, _Group(part))
            if group.parts.setdefault(part.role, name) != name or group.first.kind != part.kind:
                raise refuse(f"{part.key} has two adapters in one file", "Save one adapter a folder.")
    for key, name in alphas.items():
        if key in grouped:
            grouped[key].parts["alpha"] = name
        else:
            whole[_whole_name(name)] = name
    for group in grouped.values():
        if group.first.kind == "vera":
            group.parts |= shared
    return grouped, whole


def _pair(shapes: Mapping[str, tuple[int, ...]], first: str, second: str, core: str) -> bool:
    """Whether two factors, with the core of a convolution between them where there is one, can be multiplied."""
    a, b = shapes.get(first, ()), shapes.get(second, ())
    if len(a) != 2 or len(b) != 2:
        return False
    return shapes[core][:2] == (a[0], b[0]) and len(shapes[core]) == 4 if core in shapes else a[1] == b[0]


def _fit(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the parts of an update are all there, and fit one another."""
    if kind == "loha":
        return all(_pair(shapes, f"w{k}_a", f"w{k}_b", f"t{k}") for k in (1, 2)) and ("t1" in shapes) == (
            "t2" in shapes
        )
    if kind == "lokr":
        one = len(shapes["w1"]) == 2 if "w1" in shapes else _pair(shapes, "w1_a", "w1_b", "")
        return one and (len(shapes["w2"]) >= 2 if "w2" in shapes else _pair(shapes, "w2_a", "w2_b", "t2"))
    if kind == "vera":
        first, second = shapes.get("A", ()), shapes.get("B", ())
        b, d = (math.prod(shapes.get(role, (0,))) for role in "bd")
        return len(first) == len(second) == 2 and first[0] == second[1] == d >= 1 and 1 <= b <= second[0]
    if kind == "ia3":
        return len(shapes["factors"]) >= 2 and sum(size != 1 for size in shapes["factors"]) <= 1
    first, second = shapes["A"], shapes["B"]
    if len(first) < 2 or len(second) < 2 or second[1] < 1:
        return False
    # B is a matrix, or a convolution of one entry.
    flat = len(second) == 2 or (len(second) == len(first) and math.prod(second[2:]) == 1)
    if "mid" in shapes:
        mid = shapes["mid"]
        return flat and len(mid) > 2 and mid[:2] == (second[1], first[0]) and math.prod(first[2:]) == 1
    return flat and second[1] == first[0]


def _rank_of(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The inner dimension of an update's factors; 0 where it has none."""
    if kind == "vera":
        return math.prod(shapes["d"])
    inner = {"lora": ("A",), "loha": ("w1_b",), "lokr": ("w1_b", "w2_b")}.get(kind, ())
    return next((shapes[role][0] for role in inner if role in shapes), 0)


def _check_parts(key: str, group: _Group, tensors: dict[str, TensorInfo], refuse: Refuse) -> int:
    """The rank of an update; refuses parts that do not fit one another."""
    kind, shapes = group.first.kind, {role: tensors[raw].shape for role, raw in group.parts.items()}
    if kind == "lora" and not {"A", "B"} <= shapes.keys():
        raise refuse(f"{key} has only one half of its update", AGAIN)
    if kind == "vera" and not {"A", "B"} <= shapes.keys():
        remedy = "Save it with save_projection=True."
        raise refuse("is a VeRA without its projections, which another version of torch draws otherwise", remedy)
    if not _fit(kind, shapes):
        said = " and ".join(str(shape) for role, shape in shapes.items() if role not in ("alpha", "magnitude"))
        raise refuse(f"{key} has parts of shapes {said}, which do not fit", "Save it again.")
    rank = _rank_of(kind, shapes)
    if math.prod(shapes.get("alpha", ())) != 1:
        raise refuse(f"{key} has an alpha that is no number", AGAIN)
    shape = update_shape(Update(key, group.parts, 1.0, False, False, kind, rank), tensors)
    if math.prod(shape) > MOST_ENTRIES:
        raise refuse(f"{key} has an update of {math.prod(shape)} entries", "Do not trust it.")
    if "magnitude" in shapes and math.prod(shapes["magnitude"]) != shape[0]:
        raise refuse(f"{key} has a magnitude that does not fit", AGAIN)
    if group.first.embedding and "magnitude" in shapes:
        raise refuse(f"{key}: DoRA of an embedding is not supported")
    return rank


def _turned(key: str, group: _Group, tensors: dict[str, TensorInfo], config: Config) -> bool:
    """Whether the configuration says that a weight is (in, out); of a convolution, that factors are of its outputs."""
    if group.first.kind == "ia3" and len(tensors[group.parts["factors"]].shape) > 2:
        named = config.content.get("feedforward_modules")
        return not (isinstance(named, list) and any(isinstance(one, str) and key.endswith(one) for one in named))
    return bool(config.content.get("fan_in_fan_out"))


def parse_adapter(
    model: str, file: object, config: str | None, tensors: dict[str, TensorInfo], header: str | None = None
) -> Adapter:
    """Read an adapter's names, and its configuration where there is one; raises CheckpointError for other kinds.

    `header` is what diffusers writes beside the tensors. Where nothing gives a scale it is 1, as diffusers takes it.
    """

    def refuse(reason: str, remedy: str = REMEDY) -> CheckpointError:
        return CheckpointError(model, file, reason, remedy)

    one = parse_config(config, refuse) if config is not None else None
    several = of_diffusers(header, refuse) if header is not None and one is None else {}
    grouped, whole = _group_parts(tensors, refuse)
    updates = {}
    for key, group in grouped.items():
        read = one or several.get(group.first.component)
        dora = bool(read.content.get("use_dora")) if read is not None else "magnitude" in group.parts
        if read is not None and read.kind != group.first.kind:
            raise refuse(f"{key} and adapter_config.json do not agree on the kind of adapter", AGAIN)
        rank = _check_parts(key, group, tensors, refuse)
        if ("magnitude" in group.parts) != dora:
            raise refuse(f"{key} and adapter_config.json do not agree on DoRA", AGAIN)
        scale = 1.0
        if "alpha" not in group.parts and read is not None:
            scale = scale_of(key if one is not None else group.first.module, rank, read, refuse)
        turned = read is not None and _turned(key, group, tensors, read)
        updates[key] = Update(key, group.parts, scale, turned, group.first.embedding, group.first.kind, rank)
    if not updates:
        raise refuse("has no LoRA update", "Give the folder of the adapter, or its base.")
    flat = frozenset(key for key, group in grouped.items() if group.first.flat)
    components = {key: group.first.component for key, group in grouped.items()}
    return Adapter(updates, whole, flat, components)


def names_in_base(adapter: Adapter, base: Sequence[str]) -> dict[str, str | None]:
    """The base's tensor for each module of an adapter: by name, else by the name without wrappers or component."""
    there, plain = set(base), {canonical_name(name): name for name in base}
    flat = {name.removesuffix(".weight").replace(".", "_"): name for name in base if name.endswith(".weight")}
    found: dict[str, str | None] = {}
    for key in adapter.updates:
        component = adapter.components.get(key, "")
        module = key.removeprefix(f"{component}.") if component else key
        names = [f"{key}.weight", f"{module}.weight"]
        target = next((name for name in names if name in there), None)
        target = target or next((plain[one] for name in names if (one := canonical_name(name)) in plain), None)
        found[key] = target or (flat.get(module.replace(".", "_")) if key in adapter.flat else None)
    return found


def left_aside(adapter: Adapter, found: Mapping[str, str | None]) -> frozenset[str]:
    """Modules of the components of a pipeline that a base is not, where it is another one of them."""
    missing = {adapter.components[key] for key, target in found.items() if target is None}
    complete = set(adapter.components.values()) - missing
    return frozenset(key for key in found if complete and adapter.components[key] in missing)
