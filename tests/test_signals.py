"""Processes that are stopped, killed, optimised, or may not write: one line, the usual code, nothing left behind."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT, run_here, save_family, save_model, vit_weights
from hub_server import Fault, HubServer, environment
from test_heritage import base, moved

from mother.cli.commands import main
from mother.cli.locks import alone_in, remove_leftovers
from mother.cli.signals import Stopped, stoppable, words_of
from mother.io.files import TEMPORARY, write_atomically

EVENTS: list[str] = []  # paths that an audit hook has seen written; hooks cannot be removed
LISTENING: list[Path] = []


def _target(event: str, path: str | bytes | Path) -> str:
    """What is changed: a link itself where it is moved or removed, what it leads to where it is opened."""
    folder, name = os.path.split(os.fsdecode(path))
    through = event in ("open", "os.truncate", "os.utime")
    return os.path.realpath(path) if through else os.path.join(os.path.realpath(folder), name)


def _listen(event: str, arguments: tuple) -> None:
    if LISTENING and event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.utime"):
        mode = arguments[2] if event == "open" else os.O_WRONLY
        if isinstance(mode, int) and mode & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            EVENTS.extend(_target(event, one) for one in arguments if isinstance(one, str | bytes | Path))


sys.addaudithook(_listen)


def run(*arguments: object, code: int = 0, command: str = "recover") -> str:
    ended, out, err = run_here("mother", arguments, partial(main, command))
    assert ended == code, out[-2000:] + err[-3000:]
    return out if code in (0, 3, 4) else err


def temporary(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.tmp"))


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """Signals do what they do in a shell, whatever this run was started with."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_what_runs_and_lets_it_clean_up(number: signal.Signals, tmp_path: Path) -> None:
    def write(file: object) -> None:
        assert len(temporary(tmp_path)) == 1
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)  # once more, as `timeout` does
        time.sleep(5)

    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped, stoppable():
        write_atomically(tmp_path / "x.json", write)
    assert not list(tmp_path.iterdir()) and signal.getsignal(number) is before
    code, words = words_of(stopped.value)
    assert code == 128 + number and words.startswith("stopped") and ("SIG" in words) == (number != signal.SIGINT)


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow  # a process that waits for a Hub
@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_keeps_what_is_finished(number: signal.Signals, tmp_path: Path) -> None:
    for k in range(4):
        save_model(tmp_path / "hub" / "acme" / f"m{k}", vit_weights(k, 4, 48))
    out = tmp_path / "out"
    with HubServer(tmp_path / "hub") as server:
        server.faults.append(Fault("stall", 1, "acme/m3/model.safetensors", "GET", value=4, after=1))
        whole = environment(server, tmp_path) | {"PATH": os.environ["PATH"]}
        command = [sys.executable, str(ROOT / "recover.py"), "--author", "acme", "--out", str(out)]
        process = subprocess.Popen(command, env=whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 120
        while len(list((out / "models").glob("*.json"))) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(number)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + number and "Traceback" not in errors
    assert errors.strip().splitlines()[-1].startswith(f"stopped by {number.name}; what was finished is kept")
    assert len(list((out / "models").glob("*.json"))) == 3 and not temporary(out)


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("script", ["recover.py", "clustering.py"])
@pytest.mark.parametrize("module", ["tyro", "mother.errors"])
def test_ctrl_c_while_modules_are_imported(script: str, module: str) -> None:
    """The signal comes at the very moment when a module is looked for, in and before what parses the flags."""
    program = (
        "import os, runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        f"sys.meta_path.insert(0, Finder()); sys.argv = [{script!r}, '/nowhere']\n"
        f"runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 130 and done.stdout == "", done.stderr
    assert done.stderr.strip().startswith("stopped") and len(done.stderr.strip().splitlines()) == 1


NAMES = (".{}.{}.140001.tmp", "..hidden.{}.{}.1.tmp", ".with spaces\n{}.{}.7.tmp")
FOREIGN = (
    "notes.tmp",
    ".x.json.tmp",
    ".x.json.12.tmp",
    ".x.json.a.1.tmp",
    ".1.2.tmp",
    "x.json.1.2.tmp",
    ".x.1.2.tmp.bak",
)
FOLDERS = ("", "models", "measurements/0a1b", "measurements/map/models", "map", "map/figures", "figures")


def leave(folder: Path, process: int) -> tuple[set[Path], set[Path]]:
    """What killed runs leave, and files that only look like it."""
    ours, others = set(), set()
    for inner in FOLDERS:
        (folder / inner).mkdir(parents=True, exist_ok=True)
        ours |= {folder / inner / name.format("model.json", process) for name in NAMES}
        others |= {folder / inner / name for name in FOREIGN}
    elsewhere = folder / "other results" / "models"  # another run may be at it
    elsewhere.mkdir(parents=True)
    others.add(elsewhere / NAMES[0].format("x", process))
    for path in ours | others:
        path.write_text("half")
    return ours, others


def test_what_killed_runs_leave_is_removed(tmp_path: Path, dead: int) -> None:
    ours, others = leave(tmp_path, os.getpid())  # numbers of processes are used again
    with alone_in(tmp_path):
        assert not any(path.exists() for path in ours) and all(path.exists() for path in others)
    ours, others = leave(tmp_path / "shared", os.getpid())
    remove_leftovers(tmp_path / "shared", alone=False)
    assert all(path.exists() for path in ours | others)  # somebody may still write them
    ours, others = leave(tmp_path / "dead", dead)
    remove_leftovers(tmp_path / "dead", alone=False)
    assert not any(path.exists() for path in ours) and all(path.exists() for path in others)
    remove_leftovers(tmp_path / "absent", alone=True)


@pytest.mark.parametrize("words", [("recover",), ("index", "build")])
def test_a_file_in_place_of_the_folder_is_said(words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "there").write_text("kept")
    save_model(tmp_path / "models" / "one", vit_weights(1))
    flag = "--out" if words == ("recover",) else "--to"
    ended, _, said = run_here("mother", (*words, tmp_path / "models", flag, tmp_path / "there"), main)
    assert ended == 2 and "there is a file. Check path and space: name a folder that is new" in said
    assert (tmp_path / "there").read_text() == "kept"


def test_names_of_temporary_files_are_those_that_are_written(tmp_path: Path) -> None:
    def write(file: object) -> None:
        (name,) = (path.name for path in tmp_path.iterdir())
        assert TEMPORARY.fullmatch(name)["process"] == str(os.getpid())

    write_atomically(tmp_path / ".odd name\n.1.2.tmp", write)


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path, dead: int) -> None:
    save_family(tmp_path / "models", size=3, rank=1)
    run(tmp_path / "models", "--out", tmp_path / "out")
    left = [tmp_path / "out" / inner / f".x.npz.{dead}.1.tmp" for inner in ("", "models", "measurements/00")]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    run(tmp_path / "models", "--out", tmp_path / "out")  # what is kept is shown; it is a run all the same
    assert not temporary(tmp_path / "out")


def test_explain_writes_nothing_into_the_result(tmp_path: Path) -> None:
    for name, weights in {"a": base(0), "b": moved(base(0), 1), "c": moved(base(0), 2)}.items():
        save_model(tmp_path / "models" / name, weights)
    (tmp_path / "models" / "broken").mkdir()
    (tmp_path / "models" / "broken" / "model.safetensors").write_bytes(b"\xff" * 100)
    out = tmp_path / "out"
    run(tmp_path / "models", "--out", out)
    shutil.rmtree(tmp_path / "models" / "broken")
    save_model(tmp_path / "models" / "broken", moved(base(0), 4))  # it could be read now
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()}
    LISTENING.append(out)
    try:
        text = run("a", "b", "--to", out, command="explain")
        (tmp_path / "elsewhere").write_text("which the hook sees")
    finally:
        LISTENING.clear()
    written = [path for path in EVENTS if path.startswith(str(out.resolve()))]
    assert "a" in text and EVENTS and not written
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()} == before


def test_no_device_to_compute_on(tmp_path: Path) -> None:
    save_model(tmp_path / "m", vit_weights(1))
    text = run(tmp_path / "m", "--device", "meta", "--out", tmp_path / "out", code=2)
    assert "'meta' is no device to compute on" in text and len(text.splitlines()) == 1


@pytest.mark.slow  # no compiled files of libraries are kept for this mode everywhere
def test_without_docstrings_and_asserts(tmp_path: Path) -> None:
    """python -OO: flags have no help then, and all else is the same."""
    save_family(tmp_path / "models", size=2, rank=1)

    def plain(*words: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-OO", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)

    done = plain("recover.py", tmp_path / "models", "--out", tmp_path / "out", "--audit")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert len(json.loads((tmp_path / "out" / "model_graph.json").read_text())["edges"]) == 1
    done = plain("-m", "mother")
    assert done.returncode == 0 and "mother recover" in done.stdout, done.stderr
    done = plain("recover.py", "--help")
    assert done.returncode == 0 and "--fail-on" in done.stdout, done.stderr


def test_full_disk_names_the_file(tmp_path: Path) -> None:
    """The system says that there is no room, and not for what."""

    def write(file: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def stop(file: object) -> None:
        raise ConnectionError("the server is gone")

    with pytest.raises(OSError, match="No space left on device: .*x.json"):
        write_atomically(tmp_path / "x.json", write)
    with pytest.raises(ConnectionError, match="^the server is gone$"):  # what is no matter of the file says what it did
        write_atomically(tmp_path / "x.json", stop)
    assert not list(tmp_path.iterdir())
