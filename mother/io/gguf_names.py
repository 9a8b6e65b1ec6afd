"""Tensors of GGUF files under the names that transformers gives them, and in the order of rows that it has.

The package `gguf` knows which names of all families become one name in GGUF; of these the ones of the file's own family
are taken. What no family's list has keeps its name.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

_LLAMA = (
    r"model\.(embed_tokens|norm)|lm_head",
    r"model\.layers\.@\.(input|post_attention|pre_feedforward|post_feedforward)_layernorm",
    r"model\.layers\.@\.self_attn\.([qkvo]_proj|[qk]_norm)",
    r"model\.layers\.@\.self_attn\.qkv_proj",
    r"model\.layers\.@\.mlp\.((gate|up|down)_proj|gate)",
    r"model\.layers\.@\.mlp\.(shared_expert\.|shared_experts\.|experts\.)(gate|up|down)_proj",
    r"model\.layers\.@\..*",
)
_PHI3 = (r"model\.layers\.@\.mlp\.gate_up_proj", *_LLAMA)
_GPT2 = (
    r"transformer\.(wte|wpe|ln_f|word_embeddings|word_embeddings_layernorm)|lm_head",
    r"transformer\.h\.@\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj|ln_1|ln_2)",
    r"transformer\.h\.@\..*",
)
_BERT = (
    r"embeddings\.((word|position|token_type)_embeddings|LayerNorm)|pooler\.dense|classifier",
    r"encoder\.layer\.@\.attention\.(self\.(query|key|value)|output\.(dense|LayerNorm))",
    r"encoder\.layer\.@\.(intermediate\.dense|output\.(dense|LayerNorm))",
    r"encoder\.layers?\.@\..*",
)
_NEOX = (r"gpt_neox\.(embed_in|final_layer_norm)|embed_out", r"gpt_neox\.layers\.@\..*")
FAMILIES: dict[str, tuple[str, ...]] = {"phi3": _PHI3, "gptneox": _NEOX}
FAMILIES |= dict.fromkeys(("gpt2", "gptj", "falcon", "bloom", "starcoder", "codeshell", "mpt", "qwen", "jais"), _GPT2)
FAMILIES |= dict.fromkeys(("bert", "nomic-bert", "jina-bert-v2", "jina-bert-v3"), _BERT)

# Families whose queries and keys the converter turns from halves to neighbours: `permute` in llama.cpp's conversion.
PERMUTED = frozenset(
    "llama granite granitemoe baichuan xverse internlm2 minicpm deci smollm3 arcee nanbeige mistral3".split()
)
# Families whose norms are stored as one more than transformers has them.
SHIFTED = frozenset("gemma gemma2 gemma3 nemotron".split())
_BLOCK = re.compile(r"blk\.([0-9]{1,6})\.")


@cache
def _table(family: str) -> dict[str, str]:
    """GGUF's names of a family -> those of transformers, with @ for the number of the block."""
    from gguf.constants import MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES
    from gguf.tensor_mapping import TensorNameMap

    known = next((one for one, name in MODEL_ARCH_NAMES.items() if name == family), None)
    inside = {} if known is None else TensorNameMap.arch_block_mappings_cfg.get(known, {})
    names: dict[str, str] = {}
    for tensor, found in (TensorNameMap.mappings_cfg | TensorNameMap.block_mappings_cfg | inside).items():
        if known is not None and tensor not in MODEL_TENSORS[known]:
            continue
        candidates = [name.replace("{bid}", "@") for name in found]
        for pattern in FAMILIES.get(family, _LLAMA):
            chosen = [name for name in candidates if re.fullmatch(pattern, name)]
            if chosen:
                names.setdefault(TENSOR_NAMES[tensor].replace("{bid}", "@"), chosen[0])
                break
    return names


def transformers_name(family: str, name: str) -> str:
    """The name that transformers gives a tensor; its own where that is not known."""
    stem, dot, end = name.rpartition(".")
    block = _BLOCK.match(stem)
    found = _table(family).get(_BLOCK.sub("blk.@.", stem, count=1))
    if not dot or found is None:
        return name
    whole = found.replace("@", block[1]) if block else found
    return whole if ".experts." in whole and end == "weight" else f"{whole}.{end}"


def heads_of(family: str, name: str, facts: Mapping[str, Any]) -> int:
    """Heads whose rows stand in another order in a tensor than transformers has them in; 0 where there are none."""
    match = re.fullmatch(r"blk\.([0-9]{1,6})\.attn_([qk])\.(weight|bias)", name)
    if match is None or family not in PERMUTED:
        return 0
    heads = facts.get(f"{family}.attention.head_count")
    if match[2] == "k":
        heads = facts.get(f"{family}.attention.head_count_kv", heads)
    if isinstance(heads, list):  # of each block
        heads = heads[int(match[1])] if int(match[1]) < len(heads) else 0
    return heads if isinstance(heads, int) else 0


def shift_of(family: str, name: str) -> float:
    """What is to be added to a tensor to have it as transformers does."""
    return -1.0 if family in SHIFTED and name.endswith("norm.weight") else 0.0
