"""ONNX files of recurrent networks: the same tensors as torch has them, whoever exported them."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_model
from hub_server import HubServer, use
from torch import nn

from mother.heritage.trace import trace
from mother.heritage.typed_graph import build_graph
from mother.io.open import open_checkpoint

onnx = pytest.importorskip("onnx", reason="needs the package onnx: pip install onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

SCOPES = "pkg.torch.onnx.name_scopes"


class Inner(nn.Module):
    """What a module inside another one does to names."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.plain = nn.GRU(14, 6), nn.RNN(6, 4, num_layers=2)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.plain(self.gru(values)[0])[0]


class Layers(nn.Module):
    """Every kind of recurrent layer, with and without directions, layers and biases."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 7, num_layers=2, bidirectional=True)
        self.inner = Inner()
        self.bare = nn.LSTM(4, 3, bias=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.bare(self.inner(self.rnn(values)[0]))[0]


def read(place: Path | str) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint("m", place)
    return checkpoint.read_tensors([name for name, (_, info) in checkpoint.tensors.items() if info.dtype == "F32"])


def by_hand(lstm: nn.LSTM, path: str, first: int = 0) -> tuple[list, list]:
    """Tensors and nodes of an LSTM, as the definition of ONNX has its gates: i, o, f, c."""
    tensors, nodes = [], []
    for layer in range(lstm.num_layers):
        names = [f"val_{first + 3 * layer + k}" for k in range(3)]
        found: list[list[np.ndarray]] = [[], [], []]
        for way in ("", "_reverse") if lstm.bidirectional else ("",):
            parts = []
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                i, f, c, o = getattr(lstm, f"{name}_l{layer}{way}").detach().chunk(4)
                parts.append(torch.cat([i, o, f, c]).numpy())
            for k, part in enumerate((parts[0], parts[1], np.concatenate(parts[2:]))):
                found[k].append(part)
        tensors += [numpy_helper.from_array(np.stack(part), name) for name, part in zip(names, found)]
        node = helper.make_node("LSTM", ["x", *names], ["x"], name=f"node_LSTM_{layer}", hidden_size=lstm.hidden_size)
        node.metadata_props.add(key="pkg.torch.onnx.fx_node", value="long " * 2000)
        node.metadata_props.add(key=SCOPES, value=str(["", *path.split("."), path, "lstm"]))
        nodes.append(node)
    return tensors, nodes


def save(file: Path, tensors: list, nodes: list) -> None:
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [], tensors)), file)


def same(found: dict[str, torch.Tensor], module: nn.Module) -> bool:
    wanted = module.state_dict()
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_what_torch_exports_is_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Layers().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.randn(2, 3, 5),), tmp_path / "model.onnx", dynamo=False)
    assert same(read(tmp_path), module)
    save_model(tmp_path / "torch", module.state_dict())
    opened = [open_checkpoint("torch", tmp_path / "torch"), open_checkpoint("onnx", tmp_path / "model.onnx")]
    graph = build_graph("test", trace(opened, torch.device("cpu")))
    assert [{name, *facts.get("aliases", ())} for name, facts in graph.nodes.items()] == [{"torch", "onnx"}]


def test_modules_in_the_metadata_of_nodes(tmp_path: Path) -> None:
    """As `torch.onnx.export` writes with `dynamo=True`, which leaves no name of what it turns or joins."""
    module = nn.ModuleDict({"a": nn.ModuleDict({"rnn": nn.LSTM(5, 4, num_layers=2, bidirectional=True)})})
    module["fc"] = nn.Linear(8, 3, bias=False)
    tensors, nodes = by_hand(module["a"]["rnn"], "a.rnn")
    tensors.append(numpy_helper.from_array(module["fc"].weight.detach().T.contiguous().numpy(), "val_99"))
    tensors.append(numpy_helper.from_array(np.zeros((2, 1, 4), np.float32), "val_50"))  # what the states begin with
    for node in nodes:
        node.input.extend(["", "val_50", "val_50"])
    product = helper.make_node("MatMul", ["x", "val_99"], ["y"], name="node_linear")
    product.metadata_props.add(key=SCOPES, value="['', 'fc', 'linear']")
    save(tmp_path / "model.onnx", tensors, [*nodes, product])
    assert same(read(tmp_path), module)


def test_layers_whose_module_is_unknown_are_called_by_their_weight(tmp_path: Path) -> None:
    lstm = nn.LSTM(3, 4)
    tensors, nodes = by_hand(lstm, "rnn")
    del nodes[0].metadata_props[:]
    save(tmp_path / "model.onnx", tensors, nodes)
    assert same({name.removeprefix("val_0."): value for name, value in read(tmp_path).items()}, lstm)


@pytest.mark.parametrize("path", ["\x1b[2J", "x" * 280])
def test_a_module_that_is_no_name_is_unknown(path: str, tmp_path: Path) -> None:
    tensors, nodes = by_hand(nn.LSTM(3, 4), "rnn")
    nodes[0].metadata_props[1].value = f"['', '{path}', 'lstm']"
    tensors.append(numpy_helper.from_array(np.ones((3, 4), np.float32), "val_9"))
    nodes.append(helper.make_node("MatMul", ["x", "val_9"], ["z"], name=f"/{path}/MatMul"))
    save(tmp_path / "model.onnx", tensors, nodes)
    assert all(name.startswith("val_") for name in open_checkpoint("m", tmp_path).tensors)


@pytest.mark.parametrize("change", ["shapes", "rank", "list", "computed", "no state", "names"])
def test_what_is_no_layer_of_torch_stays_as_it_is(change: str, tmp_path: Path) -> None:
    tensors, nodes = by_hand(nn.LSTM(3, 4), "rnn")
    if change == "shapes":
        tensors[1] = numpy_helper.from_array(np.ones((1, 16, 5), np.float32), "val_1")
    elif change == "rank":
        tensors[2] = numpy_helper.from_array(np.ones(32, np.float32), "val_2")
    elif change == "list":  # of halves, which the listing cannot place
        tensors[0] = helper.make_tensor("val_0", TensorProto.FLOAT16, (1, 16, 3), np.ones(48).tolist())
    elif change == "computed":
        nodes[0].input[1] = "val_7"  # what other nodes make of what is stored
    elif change == "no state":
        del tensors[1]
    else:
        tensors.append(numpy_helper.from_array(np.ones(3, np.float32), "rnn.weight_hh_l0"))
    names = {tensor.name for tensor in tensors}
    save(tmp_path / "model.onnx", tensors, nodes)
    assert open_checkpoint("m", tmp_path).tensors.keys() == names


def test_from_the_hub_only_the_gates_that_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lstm = nn.LSTM(256, 256, bidirectional=True)
    folder = tmp_path / "hub" / "org" / "model"
    folder.mkdir(parents=True)
    save(folder / "model.onnx", *by_hand(lstm, "rnn"))
    with HubServer(tmp_path / "hub") as server:
        use(server, monkeypatch, tmp_path)
        checkpoint = open_checkpoint("m", "hf://org/model")
        server.requests.clear()
        value = checkpoint.read_tensor("rnn.weight_hh_l0_reverse")
        assert torch.equal(value, lstm.weight_hh_l0_reverse.detach())
        sent = sum(request.bytes_sent for request in server.requests)
        assert value.nbytes <= sent <= 1.05 * value.nbytes
