"""What the tensors of a model are: every matrix takes part, under one name for all families, however it is stored."""

import pytest
import torch

from mother.io.layers import Layer, place_of
from mother.io.pieces import pieces_of

Weights = dict[str, torch.Tensor]


def matrices(weights: Weights) -> dict[str, torch.Tensor]:
    """Each matrix that is compared, by its name."""
    found = pieces_of({name: tuple(tensor.shape) for name, tensor in weights.items()})
    assert found.keys() == weights.keys()
    return {one.name: one.of(weights[raw]) for raw, some in found.items() for one in some if one.is_matrix}


def vectors(weights: Weights) -> dict[str, torch.Tensor]:
    """All others."""
    found = pieces_of({name: tuple(tensor.shape) for name, tensor in weights.items()})
    return {one.name: one.of(weights[raw]) for raw, some in found.items() for one in some if not one.is_matrix}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "name, layer",
    [
        ("features.3.0.block.1.weight", Layer("features.3.0", "block.1")),
        ("features.28.weight", Layer("features.28", "weight")),
        ("net.0.weight", Layer("0", "weight")),
        ("layer1.0.conv1.weight", Layer("layer1.0", "conv1")),
        ("stages.2.blocks.0.conv_dw.weight", Layer("stages.2.0", "conv_dw")),
        ("down_blocks.0.resnets.1.conv1.weight", Layer("down_blocks.0.resnets.1", "conv1")),
        ("rnn.weight_hh_l1", Layer("rnn.1", "weight_hh")),
        ("weight_ih_l0_reverse", Layer("0", "weight_ih_reverse")),
        ("encoder.layers.0.self_attn.in_proj_weight", Layer("0", "self_attn.in_proj_weight")),
        ("_orig_mod._forward_module.model.layers.0.self_attn.q_proj.weight", Layer("0", "query")),
        ("state_dict.ema.blocks.0.attn.proj.weight", Layer("0", "output")),
        ("pos_embed", Layer("", "pos_embed")),
        ("conv_in.weight", Layer("", "conv_in")),
        ("classifier.6.weight", Layer("", "classifier.6")),  # a head, not a block
    ],
)
def test_blocks_are_found_by_numbers(name: str, layer: Layer) -> None:
    assert place_of(name) == layer


def test_recurrent_layers() -> None:
    model = torch.nn.LSTM(8, 12, num_layers=2, bidirectional=True)
    found = matrices(dict(model.state_dict()))
    assert len(found) == 32 and sum(one.numel() for one in found.values()) == sum(
        one.numel() for one in model.parameters() if one.ndim > 1
    )
    gates = model.weight_hh_l1_reverse.chunk(4)
    assert all(torch.equal(found[f"1.weight_hh_reverse.{gate}"], gates[gate]) for gate in range(4))
    assert len(matrices(dict(torch.nn.GRU(8, 12).state_dict()))) == 6
    assert len(matrices(dict(torch.nn.RNN(8, 12).state_dict()))) == 2


def test_recurrent_cells() -> None:
    """Their names have no number, and all their rows are of one count: they are no tables for that."""
    model = torch.nn.ModuleDict({"conv": torch.nn.Conv1d(6, 8, 3), "rnn": torch.nn.LSTMCell(8, 8)})
    found = matrices({f"decoder.{name}": weight for name, weight in model.state_dict().items()})
    assert len(found) == 9 and torch.equal(found["decoder.rnn.weight_hh.1"], model["rnn"].weight_hh[8:16])
    assert len(matrices(dict(torch.nn.GRUCell(8, 12).state_dict()))) == 6


def test_torch_transformer_is_as_others_are() -> None:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16)
    weights = dict(torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).state_dict())
    found = matrices(weights)
    query, key, value = weights["layers.1.self_attn.in_proj_weight"].chunk(3)
    for name, expected in (("query", query), ("key", key), ("value", value)):
        assert torch.equal(found[f"1.{name}"], expected)
    assert {"0.output", "0.linear1", "0.linear2"} <= found.keys() and len(found) == 12
    assert torch.equal(vectors(weights)["1.key.bias"], weights["layers.1.self_attn.in_proj_bias"][8:16])


def test_convolutions_of_gpt2_are_turned_and_linear_layers_of_nano_gpt_are_not() -> None:
    kinds = {"attn.c_attn": (24, 8), "attn.c_proj": (8, 8), "mlp.c_fc": (32, 8), "mlp.c_proj": (8, 32)}
    linear = {
        f"transformer.h.{block}.{kind}.weight": normal(*shape, seed=at + 4 * block)
        for block in range(2)
        for at, (kind, shape) in enumerate(kinds.items())
    }
    linear |= {f"transformer.h.{block}.attn.c_attn.bias": normal(24) for block in range(2)}
    turned = {name: tensor.T.contiguous() if tensor.ndim == 2 else tensor for name, tensor in linear.items()}
    assert matrices(linear).keys() == {
        f"{block}.{kind}" for block in "01" for kind in ("query", "key", "value", "output", "mlp_up", "mlp_down")
    }
    for name, matrix in matrices(linear).items():
        assert torch.equal(matrices(turned)[name], matrix)
    assert torch.equal(matrices(linear)["1.key"], linear["transformer.h.1.attn.c_attn.weight"][8:16])
    assert torch.equal(vectors(turned)["1.value.bias"], linear["transformer.h.1.attn.c_attn.bias"][16:])


@pytest.mark.parametrize(
    "shapes",
    [
        {"weight": (10, 64), "bias": (10,)},
        {"0.weight": (10, 64), "0.bias": (10,)},
        {"Linear_Seasonal.weight": (48, 96), "Linear_Trend.weight": (48, 96)},
        {"skip.weight": (10, 64)},
    ],
)
def test_matrices_from_inputs_to_outputs_are_heads(shapes: dict[str, tuple[int, ...]]) -> None:
    """Regressions and probes have no hidden units: two that learn one task become alike, whatever they began with."""
    body = {"fc1.weight": (32, 64), "fc2.weight": (10, 32)} if "skip.weight" in shapes else {}
    found = matrices({name: normal(*shape) for name, shape in (shapes | body).items()})
    assert found.keys() == {name.removesuffix(".weight") for name in body}


@pytest.mark.parametrize(
    "shapes",
    [
        {"0.weight": (96, 64), "2.weight": (10, 96)},
        {"weight_ih": (128, 12), "weight_hh": (128, 32)},  # an LSTM's cell
        {"conv.weight": (8, 3, 5, 5), "fc.weight": (10, 8 * 16)},  # flattened in between
        {"fc.weight": (8 * 16, 20), "up.weight": (3, 8, 5, 5)},
        {"weight": (16, 16)},  # nothing says that its units are not its own inputs
    ],
)
def test_matrices_beside_hidden_units_are_none(shapes: dict[str, tuple[int, ...]]) -> None:
    assert all(any(one.is_matrix for one in some) for some in pieces_of(shapes).values())


def test_joined_matrices_with_few_keys() -> None:
    """Queries are as many as the inputs of the output."""
    weights = {
        "model.layers.0.self_attn.qkv_proj.weight": normal(12 + 2 * 4, 12),
        "model.layers.0.self_attn.o_proj.weight": normal(12, 12),
        "model.layers.0.mlp.gate_up_proj.weight": normal(2 * 20, 12),
    }
    found = matrices(weights)
    assert [tuple(found[f"0.{kind}"].shape) for kind in ("query", "key", "value")] == [(12, 12), (4, 12), (4, 12)]
    joined = weights["model.layers.0.mlp.gate_up_proj.weight"]
    assert torch.equal(torch.cat([found["0.mlp_gate"], found["0.mlp_up"]]), joined)
    # No third, no split.
    odd = {"layers.0.attn.qkv.weight": normal(13, 6)}
    assert torch.equal(matrices(odd)["0.attn.qkv"], odd["layers.0.attn.qkv.weight"])


def test_llama_of_meta_is_that_of_transformers() -> None:
    heads, head, width = 3, 8, 24
    theirs = {f"layers.0.attention.w{kind}.weight": normal(width, width, seed=at) for at, kind in enumerate("qkvo")}
    theirs |= {f"layers.0.feed_forward.w{k}.weight": normal(*((40, width)[:: 1 if k != 2 else -1])) for k in (1, 2, 3)}
    theirs |= {"rope.freqs": normal(head // 2), "tok_embeddings.weight": normal(100, width)}
    theirs |= {"output.weight": normal(100, width), "norm.weight": normal(width)}

    def permuted(weight: torch.Tensor) -> torch.Tensor:  # as convert_llama_weights_to_hf.py does it
        return weight.view(heads, head // 2, 2, width).transpose(1, 2).reshape(width, width)

    names = {"wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "wv": "self_attn.v_proj", "wo": "self_attn.o_proj"}
    names |= {"w1": "mlp.gate_proj", "w2": "mlp.down_proj", "w3": "mlp.up_proj"}
    ours = {}
    for name, tensor in theirs.items():
        kind = name.split(".")[-2]
        if kind in names:
            tensor = permuted(tensor) if kind in ("wq", "wk") else tensor
            ours[f"model.layers.0.{names[kind]}.weight"] = tensor
    ours |= {"model.embed_tokens.weight": normal(100, width), "lm_head.weight": normal(100, width)}
    found = matrices(theirs)
    assert found.keys() == matrices(ours).keys() and len(found) == 7
    for name, matrix in matrices(ours).items():
        assert torch.equal(found[name], matrix), name


def test_experts_in_one_tensor_and_in_one_each() -> None:
    experts, width, inner = 3, 8, 12
    each: Weights = {}
    for at in range(experts):
        for number, (kind, shape) in enumerate(
            {"w1": (inner, width), "w2": (width, inner), "w3": (inner, width)}.items()
        ):
            each[f"model.layers.0.block_sparse_moe.experts.{at}.{kind}.weight"] = normal(*shape, seed=3 * at + number)

    def of(kind: str) -> torch.Tensor:
        return torch.stack(
            [each[f"model.layers.0.block_sparse_moe.experts.{at}.{kind}.weight"] for at in range(experts)]
        )

    up, down = torch.cat([of("w1"), of("w3")], dim=1), of("w2")
    joined = {"model.layers.0.mlp.experts.gate_up_proj": up, "model.layers.0.mlp.experts.down_proj": down}
    turned = {name: tensor.transpose(1, 2).contiguous() for name, tensor in joined.items()}
    expected = matrices(each)
    assert len(expected) == 9 and "0.experts.2.mlp_down" in expected
    for weights in (joined, turned):
        found = matrices(weights)
        assert found.keys() == expected.keys()
        for name, matrix in expected.items():
            assert torch.equal(found[name], matrix), name


def test_other_shapes() -> None:
    weights = {
        "blocks.0.conv.weight": normal(6, 4, 3, 3),
        "blocks.0.conv1d.weight": normal(6, 4, 5),
        "blocks.0.attn.relative_position_bias_table": normal(9, 2),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": normal(32, 4),
        "blocks.0.scale": normal(1, 1, 6),
        "blocks.0.tokens": normal(1, 5, 6),
        "blocks.0.norm.weight": normal(6),
        "blocks.0.temperature": torch.tensor(2.0),
        "logit_scale": torch.tensor(1.0),
        "nothing": torch.zeros(0),
        "pos_embed": normal(1, 7, 6),
        "registers": normal(1, 4, 6),
        "cls_token": normal(1, 1, 6),
    }
    shapes = {name: tuple(one.shape) for name, one in matrices(weights).items()}
    assert shapes == {
        "0.conv": (6, 36),
        "0.conv1d": (6, 20),
        "0.attn.relative_position_bias_table": (9, 2),
        "block.0.0.SelfAttention.relative_attention_bias": (32, 4),
        "0.tokens": (5, 6),
    }
    assert vectors(weights)["pos_embed"].shape == (1, 7, 6) and vectors(weights)["0.temperature"] == 2


def test_tables_and_heads_are_told_by_their_shapes() -> None:
    inside = {f"layers.{k}.mlp.fc{n}.weight": normal(12, 12) for k in range(2) for n in (1, 2)}
    outside = {
        "shared.weight": normal(50, 12),  # entries of a vocabulary
        "output.weight": normal(50, 12),  # tied, or as tall
        "fc.weight": normal(5, 12),  # a head: nothing takes what it gives
        "projector.weight": normal(12, 12),
        "conv_in.weight": normal(12, 3, 3, 3),
    }
    assert matrices(inside | outside).keys() == {*matrices(inside), "projector", "conv_in"}
    # Without blocks nothing is known of inside and outside.
    plain = {"fc1.weight": normal(12, 5), "fc2.weight": normal(3, 12)}
    assert matrices(plain).keys() == {"fc1", "fc2"}


def test_pieces_of_one_name_keep_their_own() -> None:
    weights = {
        f"{who}.blocks.0.attn.{kind}": normal(6, 2) for who in ("student", "teacher") for kind in ("qkv.weight",)
    }
    weights |= {f"{who}.blocks.0.norm.bias": normal(6, seed=at) for at, who in enumerate(("student", "teacher"))}
    assert matrices(weights).keys() == {
        f"{who}.blocks.0.attn.qkv.weight.{at}" for who in ("student", "teacher") for at in range(3)
    }
    assert len(vectors(weights)) == 2
