"""What the configuration of an adapter says: adapter_config.json of PEFT, or what diffusers writes into a header."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mother.errors import CheckpointError, shown
from mother.io.patterns import Patterns, read_patterns

KINDS = {"LORA": "lora", "LOHA": "loha", "LOKR": "lokr", "IA3": "ia3", "VERA": "vera"}  # peft_type -> kind

# Ways to begin that change the base, too: what is saved is not all that was trained.
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Keys that change what an adapter does to its base.
IGNORED = (
    *"layer_replication trainable_token_indices target_parameters".split(),
    *"use_qalora use_bdlora kasa_config".split(),  # variants of LoRA with other factors
)
REMEDY = "Merge it into its base with PEFT (merge_and_unload) and give that."
AGAIN = "Save the adapter again."


@dataclass(frozen=True)
class Config:
    """What an adapter's configuration says: usual rank and alpha, those of some modules, and switches."""

    kind: str
    rank: int
    alpha: float
    content: dict[str, Any]
    ranks: dict[str, int | float]  # by pattern
    alphas: dict[str, int | float]
    patterns: Patterns


# refuse(reason, remedy) -> the error to raise
Refuse = Callable[..., CheckpointError]


def parse_config(config: str, refuse: Refuse) -> Config:
    """Parse adapter_config.json; refuses kinds that are not read, or change more than their weights."""
    try:
        content = json.loads(config)
        peft_type = content["peft_type"]
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError):
        raise refuse("adapter_config.json is damaged: it gives no peft_type or r", AGAIN) from None
    kind = KINDS.get(peft_type) if isinstance(peft_type, str) else None
    if kind is None:
        raise refuse(f"is an adapter of type {shown(peft_type)}, not LoRA, DoRA, LoHa, LoKr, VeRA or IA3")
    return _read_config(content, kind, refuse)


def _read_config(content: dict[str, Any], kind: str, refuse: Refuse) -> Config:
    """The configuration of a known kind; refuses what changes more than its weights."""
    try:
        rank = int(content["r"]) if kind != "ia3" else 0
        alpha = float(content.get("lora_alpha" if kind == "lora" else "alpha", 8))
    except (ValueError, KeyError, TypeError, OverflowError):
        raise refuse("adapter_config.json is damaged: it gives no peft_type or r", AGAIN) from None
    began = content.get("init_lora_weights")
    if isinstance(began, str) and began.lower().startswith(CHANGED_BASE):
        raise refuse(f"began as {shown(began)}, which changed its base, too")
    for key in IGNORED:
        if content.get(key):
            raise refuse(f"uses {key}, which is not supported")
    try:
        ranks, alphas = (read_patterns(content.get(key), key) for key in ("rank_pattern", "alpha_pattern"))
    except ValueError as error:
        raise refuse(f"adapter_config.json is damaged: {error}", AGAIN) from None
    return Config(kind, rank, alpha, content, ranks, alphas, Patterns())


def of_diffusers(text: str, refuse: Refuse) -> dict[str, Config]:
    """What diffusers keeps in the header of its files: the configuration of each component of a pipeline."""
    try:
        content = json.loads(text)
        found: dict[str, dict[str, Any]] = {}
        for name, value in content.items():
            component, _, key = name.partition(".")
            found.setdefault(component, {})[key] = value
    except (ValueError, RecursionError, AttributeError):
        return {}
    return {component: _read_config(one, "lora", refuse) for component, one in found.items() if "r" in one}


def scale_of(module: str, inner: int, config: Config, refuse: Refuse) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA, as PEFT finds them for this module; 1 where a kind has none."""
    if config.kind == "ia3":
        return 1.0
    try:
        r = config.patterns.value(config.ranks, module, config.rank)
        a = config.patterns.value(config.alphas, module, config.alpha)
    except ValueError as error:
        raise refuse(f"adapter_config.json is damaged: {error}", AGAIN) from None
    if inner != r and (inner or config.kind != "lokr"):
        raise refuse(f"{module} has rank {inner}, adapter_config.json says {shown(r, 20)}", AGAIN)
    if config.kind == "vera":
        return 1.0
    try:
        scale = float(a) / (r**0.5 if config.content.get("use_rslora") else r)
    except (OverflowError, ZeroDivisionError):
        scale = math.inf
    if not math.isfinite(scale):
        raise refuse(f"{module} has the scale {scale}", AGAIN)
    return scale
