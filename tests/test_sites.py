"""Where matrices stand: attention and MLPs of many families, however they are nested, and what meets their units."""

import pytest
import torch
import transformers
from torch import nn

from dataset.zoo_models import build
from mother.evidence.consumers import Surroundings
from mother.evidence.sites import Site, order_key, sites_of
from mother.io.pieces import pieces_of

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
ENCODER_DECODER = {
    f"{part}_{what}": size
    for part in ("encoder", "decoder")
    for what, size in {"layers": 1, "attention_heads": 2, "ffn_dim": 32}.items()
}


def surroundings(model: nn.Module) -> Surroundings:
    state = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    pieces = [one for some in pieces_of(shapes).values() for one in some if len(one.shape) > 1 and min(one.shape) > 1]
    return Surroundings(pieces, shapes, {one.name: one.of(state[one.raw]).flatten(1) for one in pieces})


def sites(model: nn.Module) -> dict[str, Site]:
    """By the names in the file."""
    base = surroundings(model)
    return {base.pieces[name].raw: site for name, site in base.sites.items()}


def kinds(found: dict[str, Site], under: str) -> dict[str, str]:
    return {raw.removeprefix(under): site.kind for raw, site in found.items() if raw.startswith(under)}


def t5(gated: bool = False) -> nn.Module:
    feed = "gated-gelu" if gated else "relu"
    config = {"vocab_size": 40, "d_model": 16, "d_kv": 6, "num_heads": 2, "d_ff": 24, "num_layers": 2}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**config, feed_forward_proj=feed))


@pytest.mark.parametrize("gated", [False, True])
def test_a_block_of_t5_is_one(gated: bool) -> None:
    found = sites(t5(gated))
    attention = {f"{letter}.weight": kind for letter, kind in zip("qkvo", ("query", "key", "value", "output"))}
    for name in ("layer.0.SelfAttention.", "layer.1.EncDecAttention."):
        assert attention.items() <= kinds(found, f"decoder.block.1.{name}").items()
    up = ["wi_0.weight", "wi_1.weight"] if gated else ["wi.weight"]
    feed = kinds(found, "decoder.block.1.layer.2.DenseReluDense.")
    assert feed == {**dict.fromkeys(up, "mlp_up"), "wo.weight": "mlp_down"}
    block = [site for raw, site in found.items() if raw.startswith("decoder.block.1.")]
    assert {(site.stack, site.step) for site in block} == {(("decoder", "block"), 1)}
    assert [site.turn for site in block if site.kind in ("query", "mlp_down")] == [0, 1, 2]
    assert {site.stack for raw, site in found.items() if raw.startswith("encoder.")} == {("block",)}


def test_what_an_encoder_ends_in_is_read_by_the_decoder() -> None:
    model = t5()
    base, state = surroundings(model), model.state_dict()
    raw = {piece.raw: name for name, piece in base.pieces.items()}
    side = base.outputs(raw["encoder.block.1.layer.1.DenseReluDense.wo.weight"])
    readers = [
        state[f"decoder.block.{step}.layer.1.EncDecAttention.{letter}.weight"] for step in range(2) for letter in "kv"
    ]
    grams = [one.T @ one * (16 / one.square().sum()) for one in readers]
    torch.testing.assert_close(side.gram, sum(grams) / 4)  # and not by the head
    crossed = base.inputs(raw["decoder.block.0.layer.1.EncDecAttention.k.weight"])
    own = base.inputs(raw["decoder.block.0.layer.1.EncDecAttention.q.weight"])
    assert crossed.space == own.space  # an embedding may tie the two streams: their units are drawn as one
    assert not torch.equal(crossed.gram, own.gram)


@pytest.mark.parametrize(
    "model, under, expected",
    [
        (
            lambda: transformers.DistilBertModel(
                transformers.DistilBertConfig(vocab_size=40, dim=16, n_layers=1, n_heads=2, hidden_dim=32)
            ),
            "transformer.layer.0.",
            {
                "attention.q_lin.weight": "query",
                "attention.k_lin.weight": "key",
                "attention.v_lin.weight": "value",
                "attention.out_lin.weight": "output",
                "ffn.lin1.weight": "mlp_up",
                "ffn.lin2.weight": "mlp_down",
            },
        ),
        (
            lambda: transformers.BartModel(transformers.BartConfig(vocab_size=40, d_model=16, **ENCODER_DECODER)),
            "decoder.layers.0.",
            {
                "self_attn.k_proj.weight": "key",
                "self_attn.v_proj.weight": "value",
                "self_attn.q_proj.weight": "query",
                "self_attn.out_proj.weight": "output",
                "encoder_attn.k_proj.weight": "key",
                "encoder_attn.v_proj.weight": "value",
                "encoder_attn.q_proj.weight": "query",
                "encoder_attn.out_proj.weight": "output",
                "fc1.weight": "mlp_up",
                "fc2.weight": "mlp_down",
            },
        ),
        (
            lambda: transformers.BertModel(
                transformers.BertConfig(vocab_size=40, is_decoder=True, add_cross_attention=True, **SIZES)
            ),
            "encoder.layer.0.crossattention.",
            {
                "self.query.weight": "query",
                "self.key.weight": "key",
                "self.value.weight": "value",
                "output.dense.weight": "output",
            },
        ),
    ],
)
def test_names_of_other_families(model: object, under: str, expected: dict[str, str]) -> None:
    found = sites(model())
    assert kinds(found, under) == expected
    assert {site.turn for raw, site in found.items() if "encoder_attn" in raw or "crossattention" in raw} <= {1}
    modules = {site.module for raw, site in found.items() if raw.startswith(under) and site.kind in ("query", "output")}
    assert len(modules) == sum(kind == "query" for kind in expected.values())


def test_experts_are_mlps_of_their_own() -> None:
    shapes = {f"model.layers.0.self_attn.{letter}_proj.weight": (16, 16) for letter in "qkvo"}
    for expert in range(2):
        for name, shape in (("w1", (24, 16)), ("w2", (16, 24)), ("w3", (24, 16))):
            shapes[f"model.layers.0.block_sparse_moe.experts.{expert}.{name}.weight"] = shape
            shapes[f"model.layers.0.other.{expert}.{name}.weight"] = shape  # names that nobody knows
    pieces = {one.name: one for some in pieces_of(shapes).values() for one in some}
    found = {pieces[name].raw: site for name, site in sites_of(pieces).items()}
    for expert in range(2):
        for part in ("block_sparse_moe.experts", "other"):
            one = [site for raw, site in found.items() if raw.startswith(f"model.layers.0.{part}.{expert}.")]
            assert len({site.module for site in one}) == 1
            assert [site.kind == "mlp_down" for site in one] == [False, True, False]
            assert all(site.kind in ("mlp_up", "mlp_gate") for site in (one[0], one[2]))
    assert len({site.module for site in found.values() if site.kind == "mlp_down"}) == 4
    assert {site.block for site in found.values()} == {("0",)}


def test_stages_of_swin_are_streams() -> None:
    sizes = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4]}
    found = sites(transformers.SwinModel(transformers.SwinConfig(**sizes, window_size=4)))
    blocks = {site.block: (site.stack, site.step) for site in found.values() if site.kind == "query"}
    assert blocks == {
        ("layers", "0", "0"): (("layers", "0"), 0),
        ("layers", "1", "0"): (("layers", "1"), 0),
        ("layers", "1", "1"): (("layers", "1"), 1),
    }


def test_attention_within_a_unet() -> None:
    stem = "down_blocks.0.attentions.1.transformer_blocks.0"
    shapes = {f"{stem}.attn{n}.to_{letter}.weight": (16, 16) for n in (1, 2) for letter in "qkv"}
    shapes |= {f"{stem}.attn2.to_{letter}.weight": (16, 20) for letter in "kv"}  # of texts
    shapes |= {f"{stem}.attn{n}.to_out.0.weight": (16, 16) for n in (1, 2)}
    shapes |= {f"{stem}.ff.net.0.proj.weight": (128, 16), f"{stem}.ff.net.2.weight": (16, 64)}
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    pieces = [one for some in pieces_of(shapes).values() for one in some]
    base = Surroundings(pieces, shapes, {one.name: state[one.raw] for one in pieces})
    found = {base.pieces[name].raw: (site.turn, site.kind) for name, site in base.sites.items()}
    assert found[f"{stem}.attn2.to_out.0.weight"] == (1, "output")
    assert found[f"{stem}.ff.net.0.proj.weight"] == (2, "mlp_joined")
    name = {piece.raw: name for name, piece in base.pieces.items()}
    assert base.inputs(name[f"{stem}.attn2.to_k.weight"]) is None  # what writes texts is another model
    down = base.inputs(name[f"{stem}.ff.net.2.weight"])
    gate, opened = state[f"{stem}.ff.net.0.proj.weight"].chunk(2)
    both = gate @ gate.T + opened @ opened.T
    torch.testing.assert_close(down.gram, both * (64 / both.trace()))


def test_convolutions_meet_those_that_take_their_outputs() -> None:
    torch.manual_seed(0)
    model = build("unet")
    base = surroundings(model)

    def of(name: str, inputs: int) -> torch.Tensor:
        """Over the first inputs of a convolution."""
        matrix = base.matrices[name].unflatten(1, (-1, 9))[:, :inputs].transpose(0, 1).flatten(1)
        gram = matrix @ matrix.T
        return gram * (inputs / gram.trace())

    assert base.order.index("down_blocks.1.conv2") < base.order.index("mid_block.conv1")
    assert base.order.index("mid_block.conv2") < base.order.index("up_blocks.0.conv1")
    for name, by, units in (
        ("down_blocks.0.conv1", "down_blocks.0.conv2", 16),
        ("down_blocks.0.conv2", "down_blocks.1.conv1", 16),
        ("down_blocks.1.conv2", "mid_block.conv1", 32),
        ("mid_block.conv2", "up_blocks.0.conv1", 32),  # which takes 32 of a skip after these
        ("up_blocks.1.conv2", "conv_out", 16),
    ):
        torch.testing.assert_close(base.outputs(name).gram, of(by, units))


def test_parts_are_in_the_order_of_data() -> None:
    names = ["up_blocks.0", "mid_block", "down_blocks.10", "down_blocks.9", "decoder.0"]
    ordered = sorted(names, key=lambda name: order_key(name.split(".")))
    assert ordered == ["down_blocks.9", "down_blocks.10", "mid_block", "decoder.0", "up_blocks.0"]
