"""Names that strangers chose, of folders, files, models and cards, do nothing but stand there."""

import json
import os
import subprocess
import sys
import unicodedata
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import ROOT, run_here, save_model, vit_weights
from test_heritage import base, moved

from mother.cli.commands import main
from mother.cli.streams import Steady
from mother.collection.state import read_state
from mother.errors import CheckpointError, escaped
from mother.graph.model_graph import read_model_graph

# What moves a cursor, colours a line, turns it round, hides in it or ends it; and bytes that are no UTF-8.
NAMES = {
    "turned": "evil\u202egnp.exe",
    "red": "a\x1b[31mred",
    "line": "two\nlines",
    "marks": "m\u200e\u200f\u061c\u2066\u2069\u00ad\ufeffs",
    "tag": "tag\U000e0041",
    "c1": "c\x9b31m\x7fc",
    "latin": os.fsdecode(b"caf\xe9"),
}
BAD = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in ("Cc", "Cf", "Zl", "Zp")]
BAD += ["\udc80", "\udcff"]


def clean(text: str) -> bool:
    return not any(letter in text for letter in BAD if letter not in "\n\t")


def run(*arguments: object, code: int = 0, command: str = "recover") -> str:
    """The command as a user sees it: what is printed must be clean, whatever comes of it."""
    ended, out, err = run_here("mother", arguments, partial(main, command))
    assert ended == code, out[-2000:] + err[-3000:]
    assert clean(out + err)
    return out if code in (0, 3, 4) else err


def collection(folder: Path) -> Path:
    """A model of each name, one that cannot be read, and a weight file by itself."""
    save_model(folder / "root", base(0))
    for number, name in enumerate(NAMES.values(), 1):
        save_model(folder / name, moved(base(0), number))
        (folder / name / "README.md").write_bytes(
            f"---\nbase_model: 'x/{name}'\n---\n".encode("utf-8", "surrogateescape")
        )
    broken = folder / f"broken {NAMES['turned']} {NAMES['latin']}\x1b[1m\n"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"\xff" * 100)
    single = save_model(folder / "single", moved(base(0), 9))
    (single / "model.safetensors").rename(single / f"{NAMES['latin']}\u202e.safetensors")
    return folder


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font:UserWarning")  # of the picture, not of the result
def test_odd_names_reach_neither_terminal_nor_result(tmp_path: Path) -> None:
    models = collection(tmp_path / os.fsdecode(b"all\xff\n\x1b"))
    out = tmp_path / os.fsdecode(b"out\xfe\x1b")
    text = run(models, "--out", out, "--audit", "--fail-on", "undecided,unreadable", code=4)
    assert "left out: 1 model" in text and "10 models" in text and "\\u202e" in text
    for name in ("model_graph.json", "audit.json", "audit.sarif", "run.json", "collection.json"):
        content = (out / name).read_text(encoding="utf-8")
        json.loads(content)
        assert clean(content), name
    others = ("report.html", "model_graph.dot", "model_graph.graphml", "model_graph.mmd", "trees.nwk", "audit.xml")
    for name in (*others, "tree.svg"):
        content = (out / name).read_text(encoding="utf-8")
        assert clean(content.replace("\r", "").replace("\ufeff", "") if name == "report.html" else content), name
        if name.endswith((".graphml", ".xml", ".svg")):
            ElementTree.fromstring(content)
    assert (out / "tree.png").read_bytes().startswith(b"\x89PNG")
    graph = read_model_graph(out / "model_graph.json")
    assert len(graph.nodes) == 9 and len(graph.left_out) == 1
    # Where they are is kept as it is, so that the next runs find them.
    places = {source.location for source in read_state(out).sources}
    assert {str(models / name) for name in NAMES.values()} <= places and all(map(os.path.exists, places))
    assert "kept: " in run(models, "--out", out, "--audit", code=4)
    save_model(models / "late", moved(base(0), 20))
    assert "10 models" in run(models / "late", models / NAMES["latin"], "--to", out, command="add")
    one, other = list(graph.nodes)[:2]
    assert one in run(one, other, "--to", out, command="explain")
    assert clean(run("no\u202esuch\n", other, "--to", out, command="explain", code=2))


@pytest.mark.parametrize("name", NAMES.values())
def test_errors_are_one_clean_line(name: str, tmp_path: Path) -> None:
    for words in ((name,), (tmp_path / name,), ("x", "--manifest", tmp_path / f"{name}.json")):
        assert len(run(*words, code=2).splitlines()) == 1
    (tmp_path / name).mkdir()
    assert len(run(tmp_path / name, code=2).splitlines()) == 1
    (tmp_path / name / "model.safetensors").write_bytes(b"\xff" * 100)
    text = run(tmp_path / name, "--out", tmp_path / "out", code=2)
    assert len(text.splitlines()) == 1 and "none of the 1 models can be used" in text
    (tmp_path / f"{name}.json").write_text("[")
    assert len(run(tmp_path / f"{name}.json", code=2).splitlines()) == 1
    assert clean(str(CheckpointError(name, f"/x/{name}", name, name)).replace("\n", "\0"))
    # A folder of results that cannot be made.
    (tmp_path / f"file {name}").write_text("")
    save_model(tmp_path / "m", vit_weights(1))
    assert len(run(tmp_path / "m", "--out", tmp_path / f"file {name}" / "x", code=2).splitlines()) == 1


def test_tensors_with_odd_names_leave_their_model_out(tmp_path: Path) -> None:
    for number, name in enumerate(BAD[:3] + ["\u202e", "\u2066", "\U000e0001"]):
        weights = vit_weights(number)
        weights[f"encoder.layer.0.{name}.weight"] = weights["encoder.layer.0.output.dense.weight"].clone()
        save_model(tmp_path / "all" / f"odd{number}", weights)
    save_model(tmp_path / "all" / "good", vit_weights(90))
    text = run(tmp_path / "all", "--out", tmp_path / "out")
    assert "left out: 6 models" in text and "is not printable" in text


def test_the_stream_escapes_every_letter_that_cannot_be_shown(capsys: pytest.CaptureFixture) -> None:
    stream = Steady(sys.stdout)
    stream.write("".join(BAD) + "ü 模型\n")
    text = capsys.readouterr().out
    assert clean(text) and text.endswith("ü 模型\n") and "\\u202e" in text and "\\x1b" in text and "\\U000e0001" in text
    assert all(clean(escaped(letter)) for letter in BAD) and escaped("a\nb ü") == "a\\nb ü"


def test_a_poor_terminal_and_a_closed_one(tmp_path: Path) -> None:
    """Escapes instead of letters, JSON that stays JSON, and no other result where nobody can be told anything."""
    models = save_model(tmp_path / "models" / "ü\u202e模", vit_weights(1)).parent
    save_model(models / "broken", {})
    script = str(ROOT / "recover.py")
    command = [sys.executable, script, str(models), "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, cwd=ROOT)
    assert done.returncode == 0 and b"Traceback" not in done.stderr and done.stderr.isascii(), done.stderr
    graph = (tmp_path / "out" / "model_graph.json").read_text(encoding="utf-8")
    assert done.stdout.isascii() and json.loads(done.stdout) == json.loads(graph)
    # Nothing but ASCII at all, nor in names of files, and nobody who listens to errors.
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = " ".join(f"'{word}'" for word in [*command[:-1], "--overwrite"])
    done = subprocess.run(["bash", "-c", f"{words} 2>&-"], capture_output=True, env=os.environ | plain, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == b"" and done.stdout.isascii() and b"left out: 1" in done.stdout
    assert len(json.loads((tmp_path / "out" / "model_graph.json").read_text(encoding="utf-8"))["nodes"]) == 1
