"""recover.py as a user runs it: any models in, every kind of result out; adding, explaining, stopping, bad input."""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import networkx as nx
import pytest
import torch
from conftest import ROOT, run_here, save_model, vit_weights
from hub_server import Fault, HubServer, environment, use
from safetensors.torch import save_file
from test_heritage import base, halved, moved

from mother import recover
from mother.cli.commands import main
from mother.collection.find import Found, search
from mother.collection.state import read_state
from mother.collection.workspace import group_by_shapes, recover_sources, reopen
from mother.errors import InputError
from mother.evidence.sketch import sketch_models
from mother.graph.manifest import Manifest
from mother.graph.model_graph import read_model_graph
from mother.io.open import open_all
from mother.report.explain import explain
from mother.report.explain_text import explain_text
from mother.report.kept import read_evidence

CPU = torch.device("cpu")
FILES = [
    "model_graph.json",
    "model_graph.graphml",
    "trees.nwk",
    "model_graph.mmd",
    "model_graph.dot",
    "tree.svg",
    "tree.png",
    "report.html",
]


def run_process(*arguments: object, code: int = 0, **options: object) -> str:
    """Run recover.py as a process of its own; its standard output, and with an error its standard error."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "recover.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done.stdout if code in (0, 3, 4) else done.stderr


def run(*arguments: object, code: int = 0) -> str:
    """The same in this process."""
    ended, out, err = run_here("recover.py", arguments, lambda: main(default="recover", name="recover.py"))
    assert ended == code, out[-2000:] + err[-3000:]
    return out if code in (0, 3, 4) else err


def llama(seed: int) -> dict[str, torch.Tensor]:
    """Other names and shapes than a ViT's."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "self_attn.q_proj": (40, 40),
        "self_attn.v_proj": (10, 40),
        "mlp.up_proj": (80, 40),
        "mlp.down_proj": (40, 80),
    }
    return {
        f"model.layers.{block}.{name}.weight": 0.1 * torch.randn(*shape, generator=generator)
        for block in range(3)
        for name, shape in shapes.items()
    }


def family(folder: Path) -> Path:
    """Two architectures, odd names, a link, a copy, a file by itself, and one that is broken."""
    root = base(0)
    tuned = moved(root, 1)
    models = {"root": root, "tuned ünï 模型": tuned, "lora <b>x</b> & 'q'": moved(tuned, 2, rank=2), "copy": dict(root)}
    models |= {"cast": halved(tuned), "stranger": base(9), "llama": llama(0), "llama tuned": moved(llama(0), 5)}
    for name, weights in models.items():
        save_model(folder / name, weights)
    save_file({k: v.contiguous() for k, v in moved(root, 7).items()}, folder / "single file.safetensors")
    (folder.parent / "elsewhere").mkdir()
    save_model(folder.parent / "elsewhere" / "m", moved(root, 8))
    os.symlink(folder.parent / "elsewhere" / "m", folder / "linked")
    (folder / "broken").mkdir()
    (folder / "broken" / "model.safetensors").write_bytes(b"\xff" * 100)
    return folder


def edges(folder: Path) -> dict[tuple[str, str], str | None]:
    graph = read_model_graph(folder / "model_graph.json")
    return {(edge.parent, edge.child): edge.attributes["kind"] for edge in graph.edges}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """(models, results, what was printed) of one run."""
    folder = tmp_path_factory.mktemp("recover")
    models = family(folder / "all models")
    return models, folder / "out put", run_process(models, "--out", folder / "out put")


def test_a_mixed_folder(done: tuple[Path, Path, str]) -> None:
    models, out, text = done
    found = edges(out)
    assert {("llama", "llama tuned"), ("llama tuned", "llama")} & set(found)
    assert found["tuned ünï 模型", "lora <b>x</b> & 'q'"] == "lora" and found["tuned ünï 模型", "cast"] == "cast"
    graph = read_model_graph(out / "model_graph.json")
    assert len({facts["group"] for facts in graph.nodes.values()}) == 2
    copies = {
        name for key, facts in graph.nodes.items() for name in (key, *facts.get("aliases", ())) if facts.get("aliases")
    }
    assert copies == {"root", "copy"} and "copy = root" in text
    assert set(graph.left_out) == {"broken"} and "left out: 1 model" in text and "model broken" in text
    assert not any("stranger" in edge for edge in found) and {"linked", "single file"} <= {
        end for edge in found for end in edge
    }
    assert all((out / name).stat().st_size for name in FILES)
    assert "lora, rank 2" in text and "11 models" in text


def test_again_is_the_same_and_reads_no_model(done: tuple[Path, Path, str], tmp_path: Path) -> None:
    models, out, text = done

    def content() -> dict[str, bytes]:
        """What is written, but for the command, which the page repeats."""
        files = {name: (out / name).read_bytes() for name in FILES if name != "tree.png"}
        return files | {"report.html": files["report.html"].replace(b" --overwrite</td>", b"</td>")}

    before = content()
    # Without the weights of the large ones: what is kept says it all.
    times = {path: path.stat().st_mtime_ns for path in (out / "models").iterdir()}
    for overwrite in ([], ["--overwrite"]):
        again = run(models, "--out", out, *overwrite)
        assert ("kept: " in again) == (not overwrite)
        told = [
            [line for line in one.splitlines() if not line.startswith(("device: ", "kept: ", "read once: "))]
            for one in (again, text)
        ]
        assert told[0] == told[1]
    assert content() == before
    assert {path: path.stat().st_mtime_ns for path in (out / "models").iterdir()} == times


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font:UserWarning")  # of the picture, not of the result
def test_add_gives_the_graph_of_all_and_reads_the_new_one_only(tmp_path: Path) -> None:
    models = family(tmp_path / "models")
    (tmp_path / "late").mkdir()
    shutil.move(models / "cast", tmp_path / "late" / "cast")
    shutil.move(models / "llama", tmp_path / "late" / "llama")
    run(models, "--out", tmp_path / "out")
    shutil.move(models, tmp_path / "gone")  # nothing of the others can be read any more
    text = run("add", tmp_path / "late" / "cast", tmp_path / "late" / "llama", "--to", tmp_path / "out")
    assert "cast" in text
    shutil.move(tmp_path / "gone", models)
    for name in ("cast", "llama"):
        shutil.copytree(tmp_path / "late" / name, models / name)
    run(models, "--out", tmp_path / "scratch")
    one, other = (read_model_graph(tmp_path / name / "model_graph.json") for name in ("out", "scratch"))
    assert one.nodes == other.nodes and one.edges == other.edges
    assert "is in" in run("add", tmp_path / "late" / "cast", "--to", tmp_path / "out")


def test_add_to_the_grown_splits(forest: dict[str, Manifest], tmp_path: Path) -> None:
    sources = search([str(forest["mini_lora_v"].folder / "mini_lora_v.json")]).sources
    whole = recover_sources(sources, tmp_path / "whole", CPU)
    recover_sources(sources[:-3], tmp_path / "part", CPU)
    added = reopen(tmp_path / "part", CPU, Found(sources[-3:]))
    assert added.graph.edges == whole.graph.edges and added.graph.nodes == whole.graph.nodes


def test_explain(done: tuple[Path, Path, str]) -> None:
    _, out, _ = done
    lora = "lora <b>x</b> & 'q'"
    text = run("explain", "tuned ünï 模型", lora, "--to", out)
    assert "was made from tuned ünï 模型 by a LoRA of rank 2" in text and "For this to be wrong" in text
    assert len(text.splitlines()) < 40
    found = json.loads(run("explain", lora, "tuned ünï 模型", "--to", out, "--json"))
    assert found["parent"] == "tuned ünï 模型" and {row["rank"] for row in found["evidence"]["layers"]} == {2}
    what = read_model_graph(out / "model_graph.json"), read_evidence(out)
    assert "No sign that they are related" in explain(*what, "root", "stranger")["summary"]
    assert "copies" in explain(*what, "root", "copy")["summary"]
    assert "cannot be compared" in explain(*what, "root", "llama")["summary"]
    assert "relatives" in explain(*what, "cast", lora)["summary"]
    assert explain(*what, "cast", lora)["adjacency"] is not None
    for one, other in (("root", "tuned ünï 模型"), ("root", lora), ("root", "stranger"), ("linked", "single file")):
        assert explain_text(explain(*what, one, other))
    for one, other, words in (
        ("root", "root", "is one model"),
        ("root", "absent", "no model here"),
        ("root", "broken", "left out"),
    ):
        with pytest.raises(InputError, match=words):
            explain(*what, one, other)


def test_from_python(done: tuple[Path, Path, str], tmp_path: Path) -> None:
    models, out, _ = done
    graph = recover(models)
    assert isinstance(graph, nx.DiGraph) and set(graph.edges) == set(edges(out))
    assert graph.edges["tuned ünï 模型", "cast"]["kind"] == "cast" and set(graph.graph["left_out"]) == {"broken"}
    kept = recover([models / "root", models / "copy"], out=tmp_path / "kept")
    assert len(kept) == 1 and all((tmp_path / "kept" / name).exists() for name in FILES)
    with pytest.raises(InputError, match="no such file"):
        recover(tmp_path / "absent")


def test_a_result_names_the_bytes_that_it_is_of(tmp_path: Path) -> None:
    """Size and SHA-256 of every file that was read, of models that are added as well; a base counts for its adapter."""
    places = {name: save_model(tmp_path / name, moved(base(0), seed)) for seed, name in enumerate("abc")}
    run(places["a"], places["b"], "--out", tmp_path / "out")
    run("add", places["c"], "--to", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "files.json").read_text())
    for name, place in places.items():
        path = place / "model.safetensors"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert found[name] == [{"file": str(path), "size": path.stat().st_size, "sha256": digest}]
    assert "files.json" in json.loads((tmp_path / "out" / "run.json").read_text())["files"]


def test_audit_and_its_exit_codes(tmp_path: Path) -> None:
    root, other = base(0), base(9)
    for name, weights in {"root": root, "child": moved(root, 1), "other": other}.items():
        save_model(tmp_path / name, weights)

    def claim(name: str, parent: str, relation: str = "finetune") -> None:
        text = f"---\nbase_model: {parent}\nbase_model_relation: {relation}\n---\n"
        (tmp_path / name / "README.md").write_text(text)

    models = [tmp_path / name for name in ("root", "child", "other")]
    out = ("--out", tmp_path / "out", "--audit")
    assert "no model claims anything" in run(*models, *out)
    assert "exit 4: 1 model that declares nothing\n" in run(
        *models, *out, "--fail-on", "contradicted,undeclared", code=4
    )
    assert "no such finding" in run(*models, *out, "--fail-on", "sins", code=2)
    claim("child", "someone/root")
    text = run(*models, *out)
    assert (
        "agrees" in text
        and "root, whose owner is unknown" in text
        and text.endswith("exit 0: nothing that is to fail\n")
    )
    claim("other", "root")
    text = run(*models, *out, code=3)
    assert "contradicted" in text and "unrelated" in text and text.endswith("exit 3: 1 contradiction\n")
    claim("other", "elsewhere/absent")
    assert "parent not in the collection" in run(*models, *out)  # an outside parent is no fault
    assert "exit 4: 1 undecided claim\n" in run(*models, *out, "--fail-on", "undecided", code=4)
    found = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert {one["verdict"] for one in found["verdicts"]} == {
        "agrees",
        "parent not in the collection",
    }
    # A result that is added to keeps what the others claimed.
    save_model(tmp_path / "late", moved(root, 5))
    claim("late", "other")
    assert "contradicted" in run("add", tmp_path / "late", "--to", tmp_path / "out", "--audit", code=3)


@pytest.mark.parametrize("by", ["calls", pytest.param("processes", marks=pytest.mark.slow)])
def test_from_the_hub(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = base(0)
    for name, weights in {"root": root, "child": moved(root, 1), "late": moved(root, 2)}.items():
        save_model(tmp_path / "hub" / "acme" / name, weights)
    (tmp_path / "hub" / "acme" / "child" / "README.md").write_text("---\nbase_model: acme/root\nlicense: mit\n---\n")
    with HubServer(tmp_path / "hub") as server:
        if by == "calls":
            use(server, monkeypatch, tmp_path)
            call = run
        else:
            call = partial(run_process, env=environment(server, tmp_path) | {"PATH": os.environ["PATH"]})
        text = call("acme/root", "acme/child", "--out", tmp_path / "out", "--audit")
        assert "agrees" in text and ("acme/root", "acme/child") in edges(tmp_path / "out")
        assert "licences: 1 declared" in text
        asked = [request.method for request in server.requests if request.file == "README.md"]
        assert asked.count("GET") == 1 and f"Hub: {len(server.requests)} requests" in text
        server.requests.clear()
        text = call("add", "acme/late", "--out", tmp_path / "out")  # the same as --to
        assert "licences: 1 declared" in text
        assert {request.repo for request in server.requests if request.repo} == {"acme/late"}
        call("--author", "acme", "--to", tmp_path / "author")
        assert edges(tmp_path / "author") == edges(tmp_path / "out")
        server.collections["acme/set"] = ["acme/root", "acme/late"]
        call("--collection", "acme/set", "--out", tmp_path / "set")
        assert len(edges(tmp_path / "set")) == 1
        server.faults.append(Fault("status", -1, "acme/late", value=500))
        text = call("acme/root", "acme/absent", "--out", tmp_path / "some")
        assert "no such repository" in text and "left out: 1" in text


def test_a_broken_one_among_twenty(tmp_path: Path) -> None:
    for k in range(19):
        save_model(tmp_path / "all" / f"m{k:02}", vit_weights(k, 2, 24))
    broken = vit_weights(50, 2, 24)
    broken["encoder.layer.1.attention.attention.query.weight"][0, 0] = float("inf")
    save_model(tmp_path / "all" / "broken", broken)
    text = run(tmp_path / "all", "--out", tmp_path / "out")
    assert "left out: 1 model" in text and "infinity" in text and "layer.1.attention.attention.query" in text
    assert len(read_model_graph(tmp_path / "out" / "model_graph.json").nodes) == 19


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name models"),
        (("./absent",), "no such file or folder"),
        (("--manifest", "absent.json"), "no such file"),
        (("add", "x/y", "--to", "nowhere"), "holds no result"),
        (("add", "--to", "nowhere"), ""),
        (("explain", "a", "b", "--to", "nowhere"), "holds no result. Run"),
        (("explain", "a", "b", "--layers", "HERE"), "is a folder. Name a file"),
        (("export", "cards", "--to", "nowhere"), "holds no result. Run"),
        (("export", "prov", "--to", "HERE/model.safetensors"), "is a file, and holds no result. Name the folder"),
        (("export", "nonsense", "--to", "nowhere"), "there is no export nonsense. Choose from cyclonedx"),
        (("HERE", "--error", "2"), "between 0 and 1"),
        (("HERE", "--sketch", "3"), "at least 1024"),
        (("HERE", "--device", "tpu"), "cannot be used"),
        (("HERE", "--out", "/proc/mother"), "Check path and space"),
        (("HERE", "--out", "HERE/model.safetensors"), "Check path and space"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m", vit_weights(1))
    text = run(*(argument.replace("HERE", str(tmp_path / "m")) for argument in arguments), code=2)
    assert words in text and (not words or len(text.strip().splitlines()) == 1)


def test_bad_input_ends_a_process_too(tmp_path: Path) -> None:
    text = run_process("./absent", code=2, cwd=tmp_path)
    assert text.startswith("error: ./absent: there is no such file") and len(text.splitlines()) == 1


def test_a_full_disk_is_one_clear_line_and_costs_nothing(tmp_path: Path) -> None:
    for k in range(24):  # so that the report is larger than a sketch
        save_model(tmp_path / "m" / f"m{k}", moved(base(0), k) if k else base(0))
    out = tmp_path / "out"

    def little_space() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))

    text = run_process(tmp_path / "m", "--out", out, code=2, preexec_fn=little_space)
    assert "Check path and space" in text and not (out / "model_graph.json").exists()
    assert not list(out.rglob("*.tmp"))
    assert len(list((out / "models").glob("*.safetensors"))) == 24  # what could be kept is kept
    run(tmp_path / "m", "--out", out)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_a_state_that_goes_on(tmp_path: Path) -> None:
    for k in range(6):
        save_model(tmp_path / "hub" / "acme" / f"m{k}", vit_weights(k, 4, 48))
    with HubServer(tmp_path / "hub") as server:
        for k in range(3, 6):
            server.faults.append(Fault("stall", 1, f"acme/m{k}/model.safetensors", "GET", value=4, after=1))
        whole = environment(server, tmp_path) | {"PATH": os.environ["PATH"]}
        command = [sys.executable, str(ROOT / "recover.py"), "--author", "acme", "--out", str(tmp_path / "out")]
        process = subprocess.Popen(command, env=whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 120
        while len(list((tmp_path / "out" / "models").glob("*.json"))) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()  # one that the signal does not stop
        assert process.returncode == 130 and "stopped" in errors and "Traceback" not in errors
        kept = {path.name for path in (tmp_path / "out" / "models").glob("*.json")}
        assert 3 <= len(kept) < 6
        server.requests.clear()
        run_process("--author", "acme", "--out", tmp_path / "out", env=whole)
        read = {request.repo for request in server.requests if request.path.startswith("/cdn") and request.range[0] > 0}
        assert len(read) == 6 - len(kept)


# Pieces


def test_groups(tmp_path: Path) -> None:
    wider = {
        name: torch.cat([weight, weight], dim=1) if weight.ndim == 2 else weight for name, weight in base(3).items()
    }
    deeper = base(4) | {
        f"{name.replace('layer.0', 'layer.9')}": weight for name, weight in base(5).items() if "layer.0" in name
    }
    for name, weights in {"a": base(1), "wide": wider, "deep": deeper, "b": base(2), "llama": llama(1)}.items():
        save_model(tmp_path / name, weights)
    opened, left_out = open_all((one.id, one.location, one.base) for one in search([str(tmp_path)]).sources)
    groups = group_by_shapes(sketch_models(opened, tmp_path / "kept").sketches)
    assert [sorted(one.model for one in members) for members in groups] == [["a", "b", "deep"], ["llama"], ["wide"]]
    assert not left_out


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": "x"}', '{"format": "mother-collection/1", "error": 0.1, "sketch": 1, "sources": [3]}'],
)
def test_damaged_states(content: str, tmp_path: Path) -> None:
    (tmp_path / "collection.json").write_text(content)
    with pytest.raises(InputError, match="collection.json cannot be used"):
        read_state(tmp_path)


def test_a_state_cannot_point_outside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "m", vit_weights(1))
    recover_sources(search([str(tmp_path / "m")]).sources, tmp_path / "out", CPU)
    state = json.loads((tmp_path / "out" / "collection.json").read_text())
    state["sources"][0]["sketch"] = "../../secret"
    (tmp_path / "out" / "collection.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="odd name"):
        reopen(tmp_path / "out", CPU)
