"""What trainings save: modules, nested states, averages and optimizers, in files of any age, under any name."""

import argparse
import io
import json
import os
import pickle
import sys
import time
import types
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import mutated, run_here, save_model, vit_weights
from hub_server import HubServer, use
from hypothesis import given, settings
from hypothesis import strategies as st
from test_checkpoints import assert_same, read_all
from test_pickles import Call, archive, attacks, parse, saved, text

from mother.cli.commands import main
from mother.collection.find import search
from mother.errors import CheckpointError
from mother.io.open import open_checkpoint
from mother.io.pickles import parse_pickle, read_table


class Block(torch.nn.Module):
    def __init__(self, width: int = 6):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(width)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(width, width), torch.nn.Linear(width, 2 * width)])
        self.act = torch.nn.functional.relu  # a function is pickled by its name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[1](self.norm(self.layers[0](x)))


class Settings:
    """Of a class that nobody else has."""

    def __init__(self) -> None:
        self.rate, self.path, self.parts = 0.1, Path("data"), {"a", "b"}


def floats(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if value.is_floating_point()}


def check(file: Path, expected: dict[str, torch.Tensor], state: str | None = None) -> tuple[str, ...]:
    """The floating-point tensors of a file are these, exactly; returns what lies beside them."""
    checkpoint = open_checkpoint("m", file, state=state)
    read = {name for name, (_, info) in checkpoint.tensors.items() if info.dtype == "F32"}
    assert read == set(floats(expected))
    for name in read:
        assert torch.equal(checkpoint.read_tensor(name), expected[name]), name
    return checkpoint.aside


def legacy(value: Any, file: Path) -> None:
    torch.save(value, file, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [torch.save, legacy])
def test_whole_modules_give_their_tensors(save: Any, tmp_path: Path) -> None:
    model = Block()
    save(model, tmp_path / "model.pt")
    save(torch.nn.DataParallel(model) if save is legacy else {"net": model, "epoch": 1}, tmp_path / "wrapped.pt")
    check(tmp_path / "model.pt", model.state_dict())
    wrapped = {f"module.{name}": value for name, value in model.state_dict().items()}
    aside = check(tmp_path / "wrapped.pt", wrapped if save is legacy else model.state_dict())
    assert aside == (() if save is legacy else ("epoch",))


def test_torchscript_gives_its_tensors(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.ReLU()))
    with warnings.catch_warnings(action="ignore"):  # it is deprecated, and the files are there
        torch.jit.script(model).save(tmp_path / "model.torchscript")
    check(tmp_path / "model.torchscript", model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_legacy_files_have_the_same_values(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {name: weight.to(dtype) for name, weight in vit_weights(1).items()}
    shared = torch.randn(6, 8).to(dtype)
    weights |= {"blocks.0.attn.proj.weight": shared[2:5], "blocks.1.attn.proj.weight": torch.nn.Parameter(shared)}
    legacy(weights, tmp_path / "pytorch_model.bin")
    torch.save(weights, tmp_path / "zip.bin")
    assert_same(read_all(tmp_path / "zip.bin"), read_all(tmp_path / "pytorch_model.bin"))


def chgnet_like(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A nested checkpoint as the package chgnet ships: the model's state beside its arguments, and the training's."""
    weights = vit_weights(1, 2, 48)
    moments = {k: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4, 4)} for k in range(9)}
    model = {"state_dict": weights, "model_args": {"num_radial": 9, "mlp_hidden_dims": [64, 64], "read_out": "ave"}}
    content = {"model": model, "optimizer": {"state": moments, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}}
    content |= {"scheduler": {"T_max": 300}, "training_history": {"e": {"train": [0.1], "test": []}}}
    torch.save(content, folder / "net_0.3.0_e29.pth.tar")
    return folder / "net_0.3.0_e29.pth.tar", weights


def test_a_nested_checkpoint_opens_by_its_content(tmp_path: Path) -> None:
    file, weights = chgnet_like(tmp_path)
    aside = check(file, weights)
    assert aside == ("optimizer", "scheduler", "training_history", "model.model_args")
    for name in ("weights", "model.pkl", "model.tar", "checkpoint.model-12"):  # a name says nothing
        check(file.rename(tmp_path / name), weights)
        for named in (tmp_path, tmp_path / name):
            (source,) = search([str(named)]).sources
            check(Path(source.location), weights)
        (tmp_path / name).rename(file)


def test_other_archives_are_no_models(tmp_path: Path) -> None:
    save_model(tmp_path / "m", vit_weights(1))
    for name in ("photos.zip", "weights.unknown", "model.tar"):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            file.writestr("photo.jpg", bytes(100_000))
    assert len(search([str(tmp_path)]).sources) == 1
    with pytest.raises(CheckpointError, match="of no format that is read"):
        open_checkpoint("m", tmp_path / "weights.unknown")


def test_lightning_with_objects_of_any_class(tmp_path: Path) -> None:
    weights = {f"net.{name}": value for name, value in vit_weights(2).items()}
    content = {"state_dict": weights, "epoch": 3, "hyper_parameters": argparse.Namespace(lr=0.1, more=Settings())}
    content |= {"optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}], "callbacks": {"a": Settings()}}
    for save in (torch.save, legacy):
        save(content, tmp_path / "last.ckpt")
        aside = check(tmp_path / "last.ckpt", weights)
        assert aside == ("epoch", "hyper_parameters", "optimizer_states", "callbacks")


def test_the_state_that_is_asked_for(tmp_path: Path) -> None:
    raw, average = vit_weights(1), vit_weights(2)
    larger = {f"exp_avg.{name}": torch.cat([value, value]) for name, value in raw.items()}
    torch.save({"state_dict_ema": average, "optimizer": larger, "state_dict": raw, "arch": "x"}, tmp_path / "a.pth")
    torch.save({"ema": {"shadow": average}}, tmp_path / "only.pth")
    assert set(check(tmp_path / "a.pth", raw)) == {"state_dict_ema (13 tensors)", "optimizer (13 tensors)", "arch"}
    check(tmp_path / "a.pth", average, "ema")
    check(tmp_path / "a.pth", average, "state_dict_ema")
    check(tmp_path / "only.pth", average)
    for name in ("averaged_model", "swa_model"):
        torch.save({"model": raw, name: average}, tmp_path / f"{name}.pth")
        check(tmp_path / f"{name}.pth", average, "ema")
    with pytest.raises(CheckpointError, match="no state 'teacher', but .*state_dict_ema.* Name one of these"):
        open_checkpoint("m", tmp_path / "a.pth", state="teacher")
    save_model(tmp_path / "plain", raw)  # has one state only, which is taken
    open_checkpoint("m", tmp_path / "plain", state="ema")
    one, other = (open_checkpoint("m", tmp_path / "a.pth", state=state).fingerprint() for state in (None, "ema"))
    assert one != other


class Tied(torch.nn.Module):
    """Batch norms, whose buffers no average has, and a head that is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.block, self.head = torch.nn.Embedding(9, 6), Block(), torch.nn.Linear(6, 9)
        self.head.weight = self.table.weight
        self.register_buffer("angles", torch.randn(3, 5))


def test_an_average_that_is_a_list(tmp_path: Path) -> None:
    """As torch_ema and diffusers keep it: the parameters in their order, without names and without buffers."""
    model = Tied()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    weights["head.weight"] = weights["table.weight"]
    average = {name: torch.randn_like(value) for name, value in model.named_parameters()}
    kept = {"decay": 0.99, "shadow_params": list(average.values()), "collected_params": None}
    for save, content in ((torch.save, {"model": weights}), (legacy, {"model": model})):
        save({**content, "ema": kept, "losses": [torch.ones(2)], "step": 3}, tmp_path / "a.pt")
        aside = check(tmp_path / "a.pt", weights)
        assert aside == (f"ema ({len(weights)} tensors)", "losses", "step")
        for state in ("ema", "shadow_params"):
            # What is no parameter is as in the model: so it is where the average is put into it.
            check(tmp_path / "a.pt", weights | average | {"head.weight": average["table.weight"]}, state)


LISTS = {
    "one is missing": (lambda some: some[1:], "is a list of 7 tensors without names, and the 9 parameters"),
    "in another order": (lambda some: some[::-1], "have not these shapes in this order"),
    "one too many": (lambda some: [some[0][:2], *some], "have not these shapes in this order"),
}


@pytest.mark.parametrize("case", LISTS)
def test_a_list_that_is_not_of_the_weights_is_said(case: str, tmp_path: Path) -> None:
    change, said = LISTS[case]
    model = Tied()
    average = change([torch.randn_like(value) for value in model.parameters()])
    torch.save({"model": model.state_dict(), "ema": {"shadow_params": average}}, tmp_path / "a.pt")
    check(tmp_path / "a.pt", model.state_dict())
    with pytest.raises(CheckpointError, match=f"{said}.*; there is model .* Name one of these, or none"):
        open_checkpoint("m", tmp_path / "a.pt", state="ema")
    # Two tables of one shape, one of which was trained.
    tables = {"first": torch.ones(3, 4), "second": torch.ones(3, 4)}
    torch.save({"model": tables, "ema": {"shadow_params": [torch.zeros(3, 4)]}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="which of the 2 parameters of the weights they are is open"):
        open_checkpoint("m", tmp_path / "a.pt", state="ema")


def test_an_average_among_the_names_of_the_weights(tmp_path: Path) -> None:
    """As in checkpoints of latent diffusion, whose copies have no dots."""
    raw, average = vit_weights(1), {name.replace(".", ""): value for name, value in vit_weights(2).items()}
    both = raw | {f"model_ema.{name}": value for name, value in average.items()}
    torch.save({"state_dict": both, "epoch": 3}, tmp_path / "a.ckpt")
    assert set(check(tmp_path / "a.ckpt", raw)) == {"state_dict.model_ema (13 tensors)", "epoch"}
    check(tmp_path / "a.ckpt", average, "model_ema")
    alone = {f"ema.{name}": value for name, value in raw.items()}
    torch.save(alone, tmp_path / "b.ckpt")
    assert check(tmp_path / "b.ckpt", alone) == ()


@pytest.mark.parametrize("key", ["modelEMA", "ema-model", "EMACallback", "ModelEma{'decay': 0.9}", "model EMA"])
def test_an_average_by_whatever_words(key: str, tmp_path: Path) -> None:
    """An average that comes first in its file, or in the alphabet, is no model."""
    raw, average = vit_weights(1), vit_weights(2)
    torch.save({key: average, "net": raw}, tmp_path / "a.pth")
    torch.save({"state_dict": raw, "callbacks": {key: {"state_dict": average}}}, tmp_path / "b.ckpt")
    for name in ("a.pth", "b.ckpt"):
        check(tmp_path / name, raw)
        check(tmp_path / name, average, "ema")


def test_of_states_of_one_size_the_first_is_taken(tmp_path: Path) -> None:
    """One of fewer levels, and of these the first of the file, and not of the alphabet."""
    raw, other, last = (vit_weights(seed) for seed in (1, 2, 3))
    torch.save({"callbacks": {"best": {"state": other}}, "student": raw, "best": last}, tmp_path / "a.pth")
    assert check(tmp_path / "a.pth", raw) == ("callbacks (13 tensors)", "best (13 tensors)")


def unread() -> dict[str, torch.Tensor]:
    """Tensors whose numbers do not stand one after another, or are no real ones."""
    found = {"freqs": torch.randn(4, 4, dtype=torch.complex64), "wide": torch.randn(3, dtype=torch.complex128)}
    found |= {"sparse": torch.eye(4).to_sparse(), "rows": torch.eye(4).to_sparse_csr()}
    return found | {"meta": torch.empty(4, 2, device="meta")}


@pytest.mark.parametrize("save", [torch.save, legacy])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_tensors_that_are_not_read_are_listed(save: Any, tmp_path: Path) -> None:
    """One among the weights spoils nothing: others are read, and of it its kind is told."""
    weights, others = vit_weights(1), unread()
    save({"state_dict": weights | others}, tmp_path / "a.pth")
    checkpoint = open_checkpoint("m", tmp_path / "a.pth")
    shapes = {name: checkpoint.tensors[name][1].shape for name in others}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in others.items()}
    for name in others:
        with pytest.raises(CheckpointError, match=f"tensor {name} is stored as (C64|C128|sparse|meta)"):
            checkpoint.read_tensor(name)
    for name, tensor in weights.items():
        assert torch.equal(checkpoint.read_tensor(name), tensor)


def test_a_model_of_such_tensors_alone_says_of_which_kind(tmp_path: Path) -> None:
    for name, weights in (("plain", vit_weights(1)), ("sparse", {"layer.weight": torch.eye(40).to_sparse()})):
        (tmp_path / "models" / name).mkdir(parents=True)
        torch.save(weights, tmp_path / "models" / name / "pytorch_model.bin")
    code, said, _ = run_here("mother", ("recover", tmp_path / "models", "--out", tmp_path / "out"), main)
    assert code == 0 and "its tensors are layer.weight (sparse), ..." in said and "save them as plain tensors" in said


class Wrapped:
    """Pickles as torch writes a tensor of a library's own class."""

    def __init__(self, kind: type):
        self.kind = kind

    def __reduce__(self) -> tuple:
        facts = (torch.float32, (4, 8), (8, 1), 0, torch.strided, torch.device("cpu"), False)
        return torch._utils._rebuild_wrapper_subclass, (self.kind, *facts)


@pytest.mark.parametrize("library", ["torchao", "others"])
def test_torchao_in_a_pickle_is_named(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type("PackedTensor", (), {"__module__": library})
    monkeypatch.setitem(sys.modules, library, types.SimpleNamespace(PackedTensor=kind))
    torch.save(vit_weights(1) | {"layer.weight": Wrapped(kind)}, tmp_path / "pytorch_model.bin")
    if library == "torchao":
        with pytest.raises(CheckpointError, match="packed as torchao, which is not read.* Give the model"):
            open_checkpoint("m", tmp_path)
    else:
        found = open_checkpoint("m", tmp_path).tensors["layer.weight"][1]
        assert (found.dtype, found.shape) == ("a class of its own", (4, 8))


def test_the_state_is_a_flag_of_the_commands(tmp_path: Path) -> None:
    for number in range(2):
        content = {"model": vit_weights(7 + number, 2, 48), "ema": vit_weights(5, 2, 48)}
        (tmp_path / "models").mkdir(exist_ok=True)
        torch.save(content, tmp_path / "models" / f"{number}.ckpt")

    def graph(*words: object) -> tuple[dict[str, Any], str]:
        words = ("recover", tmp_path / "models", "--out", tmp_path / "out", *words)
        code, out, err = run_here("mother", words, main)
        assert code == 0, err
        return json.loads((tmp_path / "out" / "model_graph.json").read_text()), out

    plain, said = graph()
    assert len(plain["nodes"]) == 2 and "left aside in 0: ema (13 tensors) (--state takes another)" in said
    assert "kept:" in graph()[1]
    averaged, said = graph("--state", "ema")
    assert "kept:" not in said and "left aside in 1: model (13 tensors)" in said
    assert len(averaged["nodes"]) == 1  # copies
    assert "kept:" in graph("--state", "ema")[1]


def test_objects_run_nothing(tmp_path: Path) -> None:
    """In a module, in its settings, in a file of the old kind."""
    for number, (name, content) in enumerate(attacks(tmp_path / "executed").items()):
        old = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
        old += pickle.dumps({"little_endian": True}, 2) + content + pickle.dumps([], 2)
        (tmp_path / f"{number}.bin").write_bytes(old)
        with pytest.raises(CheckpointError, match="refused|damaged|no dictionary"):
            open_checkpoint("m", tmp_path / f"{number}.bin")
        assert not (tmp_path / "executed").exists(), name


def test_what_only_an_attack_names_is_said(tmp_path: Path) -> None:
    for call in (Call(os.system, "x"), Call(eval, "1"), Call(torch.load, "x")):
        with pytest.raises(ValueError, match="it names .*, which is no part of a model"):
            parse(saved({"w": torch.ones(2, 2), "settings": call}))
    assert parse(saved({"w": torch.ones(2, 2), "settings": Settings()}))


NEST = 20_000


NESTS = {
    "objects": b"(" + b"cx\ny\n)\x81" * NEST + b"t.",
    "objects in objects": b"cx\ny\n)\x81" * NEST + (b"}" + text(b"k") + b"Nsb0") * (NEST - 1) + b".",
    "lists in lists": b"]" * NEST + b"a" * (NEST - 1) + b".",
    "one object in itself": b"cx\ny\n)\x81q\0}(" + b"".join(text(b"%d" % k) + b"h\0" for k in range(NEST)) + b"ub.",
}


@pytest.mark.parametrize("name", NESTS)
def test_nests_take_no_time(name: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match="no tensors|no dictionary"):
        parse(archive(b"\x80\x02" + NESTS[name]))
    assert time.monotonic() - started < 5


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_legacy_files_never_raise_anything_else(data: st.DataObject) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2, 3), "b": {"c": torch.ones(4)}}, buffer, _use_new_zipfile_serialization=False)
    content = mutated(data, buffer.getvalue(), least=20)
    try:
        tensors = parse(content)
    except ValueError:
        return
    for info in tensors.values():
        assert 0 <= info.start <= info.end <= len(content)


def test_storages_of_a_legacy_file_that_lie() -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(4, 4)}, buffer, _use_new_zipfile_serialization=False)
    content = buffer.getvalue()
    assert len(parse(content)) == 1
    with pytest.raises(ValueError, match="truncated"):
        parse(content[:-1])
    with pytest.raises(ValueError, match="as many entries"):
        parse(content[:-72] + (17).to_bytes(8, "little") + content[-64:])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    (tmp_path / "hub" / "org" / "old").mkdir(parents=True)
    with HubServer(tmp_path / "hub") as server:
        use(server, monkeypatch, tmp_path)
        yield server


@pytest.mark.parametrize("save", [torch.save, legacy])
def test_from_the_hub_by_ranges(save: Any, hub: HubServer) -> None:
    """Bytes asked for are at most 1.05 times those needed; a second look asks for nothing."""
    raw, average = vit_weights(1, 3, 320), vit_weights(2, 3, 320)
    file = hub.folder / "org" / "old" / "last.pth.tar"
    save({"model": raw, "model_ema": average}, file)
    checkpoint = open_checkpoint("m", "hf://org/old", state="ema")
    for name, value in checkpoint.read_tensors(list(checkpoint.tensors)).items():
        assert torch.equal(value, average[name])
    needed = sum(4 * value.numel() for value in average.values())
    sent = sum(request.bytes_sent for request in hub.requests if request.file.endswith(".tar"))
    assert needed <= sent <= 1.05 * needed
    hub.requests.clear()
    assert open_checkpoint("m", "hf://org/old:last.pth.tar").tensors.keys() == raw.keys()
    assert [request.method for request in hub.requests] == ["GET"]


def test_a_table_is_json() -> None:
    content = saved({"a": {"w": torch.ones(2, 2)}, "b": 1})
    table = read_table(lambda start, end: content[start:end], len(content))
    assert json.loads(json.dumps(table)) == table
    assert parse_pickle(lambda start, end: content[start:end], len(content)).keys() == {"w"}
