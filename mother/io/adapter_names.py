"""What the tensors of an adapter are, however it was saved: by PEFT, diffusers, kohya's scripts or LyCORIS.

A name tells the part of a model (`component`), the weight in it (`module`), the kind of update and the role that the
tensor has in it. Names of kohya's scripts have underscores for dots: `lora_unet_mid_block_attentions_0_proj_in`.
"""

import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

# End of a name -> (kind of update, role of the tensor).
ROLES: dict[str, tuple[str, str]] = {
    **{f"lora_{end}": ("lora", end) for end in "AB"},
    **{f"lora_embedding_{end}": ("lora", end) for end in "AB"},
    "lora_magnitude_vector": ("lora", "magnitude"),
    "lora_bias": ("lora", "bias"),
    **{f"{name}{dot}down": ("lora", "A") for name, dot in (("lora", "_"), ("lora", "."), ("lora_linear_layer", "."))},
    **{f"{name}{dot}up": ("lora", "B") for name, dot in (("lora", "_"), ("lora", "."), ("lora_linear_layer", "."))},
    "lora_mid": ("lora", "mid"),
    "dora_scale": ("lora", "dora_scale"),
    **{f"hada_{role}": ("loha", role) for role in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{role}": ("lokr", role) for role in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    "ia3_l": ("ia3", "factors"),
    "vera_lambda_b": ("vera", "b"),
    "vera_lambda_d": ("vera", "d"),
    "alpha": ("", "alpha"),  # of the update that the other parts are of
}
_ROLES = "|".join(re.escape(role) for role in sorted(ROLES, key=len, reverse=True))
_PART = re.compile(rf"(?P<module>.+)\.(?P<role>{_ROLES})(?:\.(?!weight$)[^.]+)?(?:\.weight)?")
_PROJECTION = re.compile(r"(?:base_model\.)?vera_(?P<role>[AB])(?:\.[^.]+)?")  # one for all weights
_PROCESSOR = re.compile(r"(?:\.processor)?\.to_(?P<which>q|k|v|out)_lora\.(?=down|up)")  # of early diffusers
_FLAT = re.compile(r"(?:lora|lycoris)_(?P<component>unet|te[123]?|transformer|prior)_(?P<module>.+)")
_DOTTED = re.compile(r"(?P<component>unet|text_encoder(?:_[23])?)\.(?P<module>.+)")
_COMPONENTS = {"te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2", "te3": "text_encoder_3"}

# Words of names in diffusers and transformers that have underscores of their own.
_WORDS = (
    "down_blocks up_blocks mid_block transformer_blocks single_transformer_blocks text_model self_attn q_proj k_proj "
    "v_proj out_proj o_proj gate_proj up_proj down_proj to_q to_k to_v to_out to_add_out add_q_proj add_k_proj "
    "add_v_proj proj_in proj_out conv_in conv_out conv_shortcut time_emb_proj time_embedding linear_1 linear_2 "
    "norm_out ff_context add_embedding"
).split()
_WORD = re.compile("(" + "|".join(sorted(_WORDS, key=len, reverse=True)) + r"|[^_]+)(?:_|$)")

# Kinds whose update is no short formula, by words in their names.
_OTHER = {
    r"oft_\w+|boft_\w+": "OFT",
    r"hra_u": "HRA",
    r"fourierft_spectrum": "FourierFT",
    r"randlora_lambda|randlora_gamma": "RandLoRA",
    r"vblora_\w+": "VB-LoRA",
    r"lora_E|ranknum": "AdaLoRA",
    r"shira_weight": "SHiRA",
    r"adaption_(?:prompt|gate)": "adaption prompts",
    r"prompt_embeddings": "prompts or prefixes",
    r"diff|diff_b": "whole differences",
    r"bone_block|miss_block": "MiSS",
}
_OTHERS = [(re.compile(rf"(?:.*\.)?(?:{words})(?:\..*)?"), kind) for words, kind in _OTHER.items()]


class Part(NamedTuple):
    """What a tensor of an adapter is."""

    component: str  # "unet", "text_encoder", ... of a pipeline; "" where the name has none
    module: str  # the weight, without the component
    kind: str  # of ROLES
    role: str
    embedding: bool = False
    flat: bool = False  # dots of the module were underscores, and have been guessed

    @property
    def key(self) -> str:
        """The module with its component."""
        return f"{self.component}.{self.module}" if self.component else self.module


def dotted(flat: str) -> str:
    """A name with underscores as one with dots, as diffusers and transformers name their modules."""
    return ".".join(_WORD.findall(flat))


def part_of(name: str) -> Part | None:
    """What a tensor is; None where it is no part of an update."""
    if shared := _PROJECTION.fullmatch(name):
        return Part("", "", "vera", shared["role"])
    name = name.removeprefix("base_model.model.")
    name = _PROCESSOR.sub(lambda found: f".{_attention(name, found['which'])}.lora.", name)
    match = _PART.fullmatch(name)
    if match is None:
        return None
    kind, role = ROLES[match["role"]]
    role = "bias" if name.endswith(".bias") else role
    embedding, module = "embedding" in match["role"], match["module"]
    if found := _FLAT.fullmatch(module):
        component = _COMPONENTS.get(found["component"], found["component"])
        return Part(component, dotted(found["module"]), kind, role, embedding, True)
    if found := _DOTTED.fullmatch(module):
        return Part(found["component"], found["module"], kind, role, embedding)
    return Part("", module, kind, role, embedding)


def _attention(name: str, which: str) -> str:
    """What early diffusers meant by a projection: of a text encoder it has the name of transformers."""
    if "self_attn" in name:
        return f"{which}_proj"
    return "to_out.0" if which == "out" else f"to_{which}"


def is_adapter(names: Collection[str]) -> bool:
    """Whether a file holds updates and not the weights that they belong to."""
    parts = {name: part for name in names if (part := part_of(name)) is not None and part.kind}
    if not parts or len(parts) * 2 < len(names) - sum(name.endswith(".alpha") for name in names):
        return False
    modules = {name.removesuffix(".weight").removesuffix(".base_layer") for name in names if name not in parts}
    return not any(part.key in modules for part in parts.values())


def other_kind(names: Iterable[str]) -> str | None:
    """The kind of an adapter that is not read, where all tensors are of such kinds; else None."""
    found = set()
    for name in names:
        kind = next((kind for words, kind in _OTHERS if words.fullmatch(name)), None)
        if kind is None:
            return None
        found.add(kind)
    return ", ".join(sorted(found)) or None
