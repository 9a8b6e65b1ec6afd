"""No gap is silent: what lies below the places that a user names is read, or listed with its reason."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from conftest import run_here, save_model
from hub_server import HubServer, use
from test_heritage import base, moved

from mother.cli.commands import main
from mother.collection.find import search
from mother.collection.gaps import Gaps, reason_of, suffix
from mother.errors import InputError

ROOT = base(0)


def run(*words: object, code: int = 0) -> str:
    ended, out, err = run_here("recover.py", words, lambda: main(default="recover", name="recover.py"))
    assert ended == code, out[-2000:] + err[-3000:]
    return out if code in (0, 3, 4) else err


def zoo(folder: Path) -> Path:
    """Models, and all that lies about on a disk."""
    save_model(folder / "a", ROOT)
    save_model(folder / "a" / "checkpoint-5", moved(ROOT, 1))
    for name in ("pytorch_model.bin", "optimizer.pt", "model.npz", "config.json", "README.md"):
        (folder / "a" / name).write_bytes(b"PK")
    for name in ("old.tar.gz", "x.ggml", "notes.md", "w-00001-of-00002.safetensors", "odd.bits"):
        (folder / name).write_bytes(bytes(100_000))
    (folder / ".hidden").mkdir()
    (folder / "1/2/3/4/5/6/7").mkdir(parents=True)
    save_model(folder / "1/2/3/4/5/6/7/deep", ROOT)
    os.symlink("loop", folder / "loop")
    os.symlink(folder / "nowhere", folder / "dangling")
    pipeline = folder / "pipeline"
    save_model(pipeline / "unet", moved(ROOT, 2))
    save_model(pipeline / "vae", base(5))
    (pipeline / "model_index.json").write_text("{}")
    return folder


def test_every_file_is_read_or_listed(tmp_path: Path) -> None:
    folder = zoo(tmp_path / "zoo")
    found = search([str(folder)])
    read = {source.location for source in found.sources}
    assert {source.id for source in found.sources} == {"a", "a/checkpoint-5", "pipeline"}
    listed = {os.path.relpath(path, folder): reason for path, reason in found.gaps.not_read.items()}
    assert listed["a/pytorch_model.bin"] == "not the weights that are loaded"
    assert listed["a/optimizer.pt"] == "the state of a training" and listed["a/model.npz"] == "numpy files are not read"
    assert listed["old.tar.gz"] == "an archive" and listed["x.ggml"] == "GGML is not read"
    assert listed["w-00001-of-00002.safetensors"] == "a shard without its index"
    assert listed["odd.bits"] == "a type that is not known" and listed[".hidden"] == "a hidden folder"
    assert listed["1/2/3/4/5/6"] == "more than 5 folders deep" and "pipeline" in listed["pipeline/vae"]
    assert "cannot be read" in listed["loop"] and "cannot be read" in listed["dangling"]
    assert found.gaps.plain == {".md": 2, ".json": 2}
    # Nothing else is there.
    everything = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]
    explained = [path for path in everything if any(path.startswith(one.rstrip("/")) for one in found.gaps.not_read)]
    assert len(everything) - len(explained) == 4 + len(read)


def test_gaps_are_said_in_terminal_json_and_report(tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = run(zoo(tmp_path / "zoo"), "--out", out)
    assert "not read: " in text and "1 .tar.gz (an archive)" in text and "1 .npz (numpy files are not read)" in text
    assert "4 files beside the models hold no weights (2 .json, 2 .md)" in text
    written = json.loads((out / "model_graph.json").read_text())["not_read"]
    assert written[str(tmp_path / "zoo" / "x.ggml")] == "GGML is not read"
    assert "GGML is not read" in (out / "report.html").read_text()
    assert "kept:" in run(tmp_path / "zoo", "--out", out)
    (tmp_path / "zoo" / "more.ggml").touch()  # what is not read belongs to the result
    assert "kept:" not in run(tmp_path / "zoo", "--out", out)
    # What is added keeps the gaps of before.
    save_model(tmp_path / "late" / "b", moved(ROOT, 3))
    (tmp_path / "late" / "b.npz").touch()
    assert "2 .npz" in run("add", tmp_path / "late", "--to", out)


def test_what_a_repository_holds_beside_its_weights_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = save_model(tmp_path / "hub" / "acme" / "tiny", ROOT)
    (repository / "onnx").mkdir()
    for name in ("tiny.Q4.gguf", "onnx/model.onnx", "pytorch_model.bin", "README.md"):
        (repository / name).write_bytes(b"x")
    with HubServer(tmp_path / "hub") as server:
        use(server, monkeypatch, tmp_path)
        text = run("acme/tiny", "--out", tmp_path / "out")
    assert "note: acme/tiny: there is no such path here, so it is looked up on the Hub" in text
    written = json.loads((tmp_path / "out" / "model_graph.json").read_text())
    listed = {path.removeprefix("hf://acme/tiny/") for path in written["not_read"]}
    assert {"tiny.Q4.gguf", "onnx/model.onnx", "pytorch_model.bin"} <= listed
    assert "model.safetensors" not in listed and "README.md" not in listed


def test_head_line(tmp_path: Path) -> None:
    for name, weights in {"a": ROOT, "b": dict(ROOT), "c": base(7)}.items():
        save_model(tmp_path / "m" / name, weights)
    text = run(tmp_path / "m", "--out", tmp_path / "out")
    assert "\n3 models: 1 exact copy, no parent and child; 1 architecture\n" in text
    flat = {name.replace("encoder.layer.", "part"): weight for name, weight in ROOT.items()}
    assert "0 blocks" not in run(save_model(tmp_path / "flat", flat), "--out", tmp_path / "flat out")


def test_one_argument_that_names_nothing_is_left_out(tmp_path: Path) -> None:
    model, out = save_model(tmp_path / "m", ROOT), ("--out", tmp_path / "out")
    text = run(model, "no such thing", tmp_path / "gone", *out)
    assert "left out: 2 models" in text and "no such thing: there is no such file" in text
    assert "no such file" in run(model, "no such thing", *out, "--strict", code=2)
    assert "none of the 2 arguments names a model" in run("no such thing", "nor this", *out, code=2)
    assert json.loads((tmp_path / "out" / "model_graph.json").read_text())["left_out"].keys() == {
        "no such thing",
        str(tmp_path / "gone"),
    }


def test_patterns_that_the_shell_left(tmp_path: Path) -> None:
    for name in ("x1", "x2", "y"):
        save_model(tmp_path / "runs" / name / "final", ROOT)
    found = search([str(tmp_path / "runs" / "x*" / "final")])
    assert [source.id for source in found.sources] == ["x1/final", "x2/final"]
    assert len(search([str(tmp_path / "**" / "final")]).sources) == 3
    (tmp_path / "runs" / "README.md").write_text("notes")
    found = search([str(tmp_path / "runs" / "*")])
    assert len(found.sources) == 3 and found.gaps.plain == {".md": 1} and not found.gaps.unusable
    with pytest.raises(InputError, match="no such file"):
        search([str(tmp_path / "z*")])
    with pytest.raises(InputError, match="holds no weights"):
        search([str(tmp_path / "runs" / "README.md")])


def test_names_from_a_file_and_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [save_model(tmp_path / name, base(seed)) for seed, name in enumerate(("a", "b c"))]
    (tmp_path / "list").write_text(f"{models[0]}\n\n  {models[1]}\n")
    assert "2 models" in run("--from-file", tmp_path / "list", "--out", tmp_path / "out")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{models[0]}\n"))
    assert "1 model:" in run("--from-file", "-", "--out", tmp_path / "out2")
    assert "cannot be read" in run("--from-file", tmp_path / "gone", "--out", tmp_path / "out3", code=2)


def test_a_mistyped_path_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked for on the Hub where the folder in front is here."""
    save_model(tmp_path / "models" / "tiny", ROOT)
    monkeypatch.chdir(tmp_path)
    error = run("models/tny", "--out", "out", code=2)
    assert "there is no such file or folder in models/" in error and "hf://" in error
    found = search(["someone/model", "models/tiny"])
    assert found.notes == ["someone/model: there is no such path here, so it is looked up on the Hub"]
    assert search(["hf://models/tny"]).sources[0].location == "hf://models/tny"


def test_parts_of_one_model_are_no_models(tmp_path: Path) -> None:
    """The modules of a sentence encoder lie in folders below it."""
    save_model(tmp_path / "st", ROOT)
    (tmp_path / "st" / "modules.json").write_text("[]")
    save_model(tmp_path / "st" / "2_Dense", ROOT)
    found = search([str(tmp_path / "st")])
    assert [source.id for source in found.sources] == ["st"]
    assert found.gaps.not_read == {f"{tmp_path / 'st' / '2_Dense'}/": "a part of the model above it"}


def test_shards_are_read_with_their_index(tmp_path: Path) -> None:
    names = sorted(ROOT)
    parts = {f"model-0000{k}-of-00002.safetensors": names[k - 1 :: 2] for k in (1, 2)}
    for name, tensors in parts.items():
        save_model(tmp_path, {key: ROOT[key] for key in tensors})
        (tmp_path / "model.safetensors").rename(tmp_path / name)
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {key: name for name, tensors in parts.items() for key in tensors}})
    )
    (tmp_path / "pytorch_model-00001-of-00001.bin").touch()
    found = search([str(tmp_path)])
    assert len(found.sources) == 1 and list(found.gaps.not_read.values()) == ["a shard without its index"]


@pytest.mark.parametrize(
    ("name", "size", "reason", "end"),
    [
        ("a.PTH.TAR", 1, "not the weights that are loaded", ".pth.tar"),
        ("a.TAR.GZ", 1, "an archive", ".tar.gz"),
        ("weights", 1 << 20, "a type that is not known", "without a suffix"),
        ("weights", 10, None, "without a suffix"),
        ("LICENSE", 1 << 20, None, "without a suffix"),
        ("tokenizer.json", 1 << 24, None, ".json"),
        ("events.out.tfevents.1700000000.host", 1 << 20, None, ".host"),
        ("scheduler.bin", 1, "the state of a training", ".bin"),
        ("model.bin", 1, "not the weights that are loaded", ".bin"),
    ],
)
def test_reasons(name: str, size: int, reason: str | None, end: str) -> None:
    assert reason_of(name, size) == reason and suffix(name) == end


def test_gaps_add_up() -> None:
    one, other = Gaps({"a": "x"}, {".md": 1}), Gaps({"b": "y"}, {".md": 2, ".py": 1}, {"z": "no"}, {"m": "ema"})
    both = one.joined(other)
    assert both == Gaps({"a": "x", "b": "y"}, {".md": 3, ".py": 1}, {"z": "no"}, {"m": "ema"})
    assert Gaps.from_json(json.loads(json.dumps(both.to_json()))) == both
