"""A second run of the same models shows what is kept: quickly, the same, and only while nothing has changed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, save_family, save_model, vit_weights

SLOW = {"torch", "matplotlib", "networkx", "sklearn", "transformers", "scipy", "numba"}
STAGES = {
    "get_vit_layer_statistics.py": "--model-graph",
    "MoTHer_FullFT.py": "--model-graph",
    "MoTHer_LoRA.py": "--model-graphs",
    "clustering.py": "--model-graph",
}


def run(*words: object, code: int = 0) -> tuple[str, str, set[str]]:
    """What a script prints to standard output and to standard error, and the libraries that it loaded."""
    program = "import sys, runpy, atexit; atexit.register(lambda: print('LOADED', *sys.modules, file=sys.stderr)); "
    script = str(ROOT / str(words[0]))
    program += f"sys.argv = {[str(word) for word in words]!r}; runpy.run_path({script!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == code, done.stderr
    said, _, loaded = done.stderr.rpartition("LOADED ")
    return done.stdout, said, {name.split(".")[0] for name in loaded.split()}


@pytest.fixture(scope="module")
def recovered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The official sequence on one small family, with what each stage printed."""
    folder = tmp_path_factory.mktemp("kept")
    save_family(folder, size=5, rank=1)
    printed = {}
    for script, flag in STAGES.items():
        clusters = ["--clusters", 1] if script == "clustering.py" else []
        printed[script] = run(script, flag, folder / "family.json", "--results", folder / "results", *clusters)[0]
    return folder, printed


def again(folder: Path, script: str, *more: object) -> tuple[str, str, set[str]]:
    clusters = ["--clusters", 1] if script == "clustering.py" else []
    return run(script, STAGES[script], folder / "family.json", "--results", folder / "results", *clusters, *more)


def test_the_sequence_shows_both_methods_side_by_side(recovered: tuple[Path, dict[str, str]]) -> None:
    for script in ("MoTHer_FullFT.py", "MoTHer_LoRA.py"):
        rows = [line.split() for line in recovered[1][script].splitlines() if line.split()[:1] == ["family"]]
        both = {row[1]: row for row in rows if row[1] in ("mother", "map")}
        assert set(both) == {"mother", "map"}
        assert all(float(value) <= 1 for row in both.values() for value in row[2:5])  # no dashes
    assert "next: python MoTHer_FullFT.py" in recovered[1]["get_vit_layer_statistics.py"]
    assert "next: python MoTHer_LoRA.py" in recovered[1]["MoTHer_FullFT.py"]
    assert "next: python clustering.py" in recovered[1]["MoTHer_LoRA.py"]
    assert "next: python summarize.py" in recovered[1]["clustering.py"]


# The scripts of full fine-tuning and LoRA write the same files: the last one's are kept.
@pytest.mark.parametrize("script", ["get_vit_layer_statistics.py", "MoTHer_LoRA.py", "clustering.py"])
def test_a_kept_result_is_shown_without_slow_libraries(recovered: tuple[Path, dict[str, str]], script: str) -> None:
    folder, printed = recovered
    out, err, loaded = again(folder, script)
    assert not loaded & SLOW and "numpy" in loaded
    # The table of both methods also tells what other stages have found since.
    passed = ("device: ", "kept: ", "     family  ")
    shown = [[line for line in text.splitlines() if not line.startswith(passed)] for text in (out, printed[script])]
    assert shown[0] == shown[1] and out.count("kept: ") == printed[script].count("device: ") and err == ""


@pytest.mark.slow  # a dozen runs of a script, each a process
def test_nothing_is_kept_once_something_has_changed(tmp_path: Path) -> None:
    save_family(tmp_path, size=4, rank=1)
    script = "MoTHer_LoRA.py"
    again(tmp_path, script)
    assert "kept: " in again(tmp_path, script)[0]
    assert "kept: " not in again(tmp_path, script, "--overwrite")[0]
    # Another flag that the paper's result depends on, and that of map does not.
    assert again(tmp_path, script, "--direction-weight", 0.1)[0].count("kept: ") == 1
    again(tmp_path, script)
    figure = tmp_path / "results/family/figures/tree_0.png"
    before = figure.stat().st_mtime_ns
    figure.unlink()
    assert again(tmp_path, script)[0].count("kept: ") == 1 and figure.stat().st_mtime_ns > before
    # The truth is part of a result: it is scored against it.
    content = json.loads((tmp_path / "family.json").read_text())
    content["nodes"][3]["parent"] = "m0"
    (tmp_path / "family.json").write_text(json.dumps(content))
    assert "kept: " not in again(tmp_path, script)[0]
    os.utime(tmp_path / "m1" / "model.safetensors", (1, 1))
    out, err, _ = again(tmp_path, script)
    assert "kept: " not in out and "reading: " in err  # a line for each stage, and no bars
    assert "\r" not in err and "%|" not in err


def test_recover_in_silence_and_as_json(tmp_path: Path) -> None:
    save_family(tmp_path / "models", size=4, rank=1)
    words = "recover.py", tmp_path / "models", "--out", tmp_path / "out"
    out, err, _ = run(*words, "--quiet")
    assert out == "" and err == ""
    out, err, loaded = run(*words, "--json")
    graph = json.loads(out)
    assert graph["format"] == "mother-model-graph/1" and {node["id"] for node in graph["nodes"]} == {
        "m0",
        "m1",
        "m2",
        "m3",
    }
    assert out == (tmp_path / "out" / "model_graph.json").read_text() and not loaded & SLOW
    assert "kept: " in run(*words)[0]
    os.utime(tmp_path / "models" / "m1" / "model.safetensors", (1, 1))
    assert "kept: " not in run(*words)[0]
    assert run("recover.py", tmp_path / "nothing", "--json", "--out", tmp_path / "o", code=2)[0] == ""


def test_the_reader_may_go_and_the_terminal_be_poor(tmp_path: Path) -> None:
    """The result is written and the exit code kept, whatever becomes of what is printed."""
    save_family(tmp_path / "models", size=3, rank=1)
    odd = tmp_path / "models" / "\x1b[31mred\u202e ü"
    (tmp_path / "models" / "m2").rename(odd)
    (odd / "README.md").write_text("---\nbase_model: nobody/knows\n---\n")
    command = (
        f"{sys.executable} {ROOT / 'recover.py'} {tmp_path / 'models'} --audit --fail-on undecided --out {tmp_path}/"
    )
    for name, rest in {"head": "| head -1", "gone": "| true", "closed": ">&- 2>&-", "ascii": ""}.items():
        script = f"export PYTHONIOENCODING=ascii; {command}{name} {rest}; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, cwd=ROOT)
        assert done.returncode == 4, (name, done.stderr)
        assert (tmp_path / name / "model_graph.json").exists() and b"Traceback" not in done.stderr
        assert b"\x1b" not in done.stdout + done.stderr and done.stdout.isascii()
    assert b"red" in done.stdout and b"\\xfc" in done.stdout  # what cannot be shown is escaped


def test_results_inside_the_models_folder_are_no_models(tmp_path: Path) -> None:
    save_family(tmp_path, size=3, rank=1)
    manifest = tmp_path / "family.json"
    run("MoTHer_LoRA.py", "--model-graphs", manifest, "--method", "map", "--results", tmp_path / "results")
    for _ in range(2):
        run("recover.py", tmp_path, "--out", tmp_path / "deep" / "out", "--overwrite")
        nodes = json.loads((tmp_path / "deep" / "out" / "model_graph.json").read_text())["nodes"]
        assert {node["id"] for node in nodes} == {"m0", "m1", "m2"}


def test_a_model_that_changed_is_read_again(tmp_path: Path) -> None:
    save_family(tmp_path / "models", size=3, rank=1)
    out = "--to", tmp_path / "out"
    run("recover.py", tmp_path / "models", "--out", tmp_path / "out")

    def edges() -> set[tuple[str, str]]:
        return {
            (edge["parent"], edge["child"]) for edge in json.loads((out[1] / "model_graph.json").read_text())["edges"]
        }

    assert len(edges()) == 2
    save_model(tmp_path / "models" / "m2", vit_weights(9))  # unrelated now
    (tmp_path / "models" / "m2" / "README.md").write_text("---\nbase_model: m1\n---\n")
    text = run("recover.py", "add", tmp_path / "models" / "m2", *out, "--audit")[0]
    assert "m2 is in" in text and "looked at again" in text and len(edges()) == 1
    assert "not confirmed" in text and "too few or too small to tell" in text  # 12 x 12: no ground for an accusation


def test_two_runs_into_one_folder_wait_for_each_other(tmp_path: Path) -> None:
    save_family(tmp_path / "models", size=4, rank=1)
    run("recover.py", tmp_path / "models" / "m0", tmp_path / "models" / "m1", "--out", tmp_path / "out")
    words = [sys.executable, str(ROOT / "recover.py"), "add"]
    both = [
        subprocess.Popen([*words, str(tmp_path / "models" / name), "--to", str(tmp_path / "out")], cwd=ROOT)
        for name in ("m2", "m3")
    ]
    assert [process.wait() for process in both] == [0, 0]
    nodes = json.loads((tmp_path / "out" / "model_graph.json").read_text())["nodes"]
    assert {node["id"] for node in nodes} == {"m0", "m1", "m2", "m3"}  # neither is lost


def test_damaged_records_of_a_result_end_no_run(tmp_path: Path) -> None:
    """As processes; tests/test_damage.py tries all kinds of damage."""
    damaged = '{"facts": 1, "files": [2]}'
    save_family(tmp_path / "models", size=2, rank=1)
    words = "recover.py", tmp_path / "models", "--out", tmp_path / "out", "--audit"
    run(*words)
    (tmp_path / "out" / "audit.json").write_text(damaged)
    assert "kept: " not in run(*words)[0] and "kept: " in run(*words)[0]
    (tmp_path / "out" / "run.json").write_text(damaged)
    assert "kept: " not in run(*words)[0] and "kept: " in run(*words)[0]
