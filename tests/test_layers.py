"""Raw tensor names of many families, old and new, denote the same layers."""

import pytest

from mother.io.layers import Layer, layer_of, name_layers, sort_key


@pytest.mark.parametrize(
    "name, layer",
    [
        ("encoder.layer.3.attention.attention.query.weight", Layer("3", "query")),
        ("vit.encoder.layer.3.attention.attention.value.weight", Layer("3", "value")),
        ("model.vit.encoder.layer.11.attention.output.dense.weight", Layer("11", "output")),
        ("vit.layers.3.attention.q_proj.weight", Layer("3", "query")),
        ("layers.3.attention.o_proj.weight", Layer("3", "output")),
        ("vit.encoder.layer.3.output.dense.weight", Layer("3", "mlp_down")),
        ("vit.layers.3.mlp.fc1.weight", Layer("3", "mlp_up")),
        ("vit.encoder.layer.3.intermediate.dense.weight", Layer("3", "mlp_up")),
        ("bert.encoder.layer.0.attention.self.key.weight", Layer("0", "key")),
        ("bert.encoder.layer.0.attention.output.dense.weight", Layer("0", "output")),
        ("model.layers.31.self_attn.k_proj.weight", Layer("31", "key")),
        ("model.layers.31.self_attn.o_proj.weight", Layer("31", "output")),
        ("layers.31.mlp.gate_proj.weight", Layer("31", "mlp_gate")),
        ("vision_model.encoder.layers.2.self_attn.out_proj.weight", Layer("2", "output")),
        ("model.decoder.layers.2.self_attn.out_proj.weight", Layer("decoder.2", "output")),
        ("blocks.4.attn.proj.weight", Layer("4", "output")),
        ("transformer.h.4.attn.c_attn.weight", Layer("4", "attn.c_attn")),
        (
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
            Layer("down_blocks.0.attentions.0.transformer_blocks.0", "attn1.to_q"),
        ),
        ("vit.encoder.layer.3.attention.attention.query.bias", None),
        ("vit.embeddings.cls_token", None),
        (f"layer.{'9' * 5000}.attention.value.weight", Layer("", f"layer.{'9' * 5000}.attention.value")),
    ],
)
def test_names(name: str, layer: Layer | None) -> None:
    assert layer_of(name) == layer


def test_two_names_for_one_layer_keep_their_own() -> None:
    names = [
        "model.layers.0.self_attn.q_proj.weight",
        "vit.layers.0.self_attn.q_proj.weight",
        "h.1.self_attn.q_proj.weight",
    ]
    assert name_layers(names) == {
        Layer("", names[0]): names[0],
        Layer("", names[1]): names[1],
        Layer("1", "query"): names[2],
    }


def test_order_is_by_number() -> None:
    layers = [Layer("10", "query"), Layer("9", "output"), Layer("9", "query"), Layer("decoder.1", "key")]
    assert sorted(layers, key=sort_key) == [layers[2], layers[1], layers[0], layers[3]]
