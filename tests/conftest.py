"""Shared by the tests: shapes and types of `mother/` are checked at run time, and a small forest is grown."""

import contextlib
import io
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jaxtyping import install_import_hook

# Several processes share few cores here. A thread that waits for others must sleep: threads of OpenMP and of OpenBLAS
# that spin instead take the core of the one they wait for, and small matrices take thirty times as long. This process
# hands it on to pytest's workers and to the scripts that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

ROOT = Path(__file__).parent.parent
UNCHECKED = {"mother.numeric.kernels", "mother.numeric.branchings"}  # machine code has no types at run time


def modules() -> list[str]:
    """Names of all modules of `mother/`, in whatever wing."""
    paths = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "mother").rglob("*.py"))
    return sorted(".".join(path.parts) for path in paths if not path.name.startswith("__"))


install_import_hook([name for name in modules() if name not in UNCHECKED], "beartype.beartype")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from grown import changed, grown  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from playwright.sync_api import Browser, sync_playwright  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from dataset.plan import QUICK, plan  # noqa: E402
from dataset.wild_plan import plan_wild  # noqa: E402
from mother.graph.manifest import Manifest, Node  # noqa: E402
from mother.graph.manifest_io import write_manifest  # noqa: E402
from mother.io.traffic import taken  # noqa: E402

# The splits that tests share, in one folder, since they start from the same roots.
FOREST = (plan("mini_ft", Path(), QUICK), plan("mini_lora_v", Path(), QUICK), plan_wild(Path(), QUICK))
KINDS = {"query": "attention.query", "key": "attention.key", "value": "attention.value", "output": "output.dense"}


def vit_weights(seed: int, blocks: int = 2, width: int = 12, prefix: str = "") -> dict[str, torch.Tensor]:
    """Random attention weights under the names of a ViT file, with a bias and a non-square weight."""
    generator = torch.Generator().manual_seed(seed)
    weights = {f"{prefix}embeddings.cls_token": torch.zeros(1, 1, width)}
    for block in range(blocks):
        stem = f"{prefix}encoder.layer.{block}"
        for name in KINDS.values():
            weights[f"{stem}.attention.{name}.weight"] = torch.randn(width, width, generator=generator)
        weights[f"{stem}.attention.output.dense.bias"] = torch.zeros(width)
        weights[f"{stem}.output.dense.weight"] = torch.randn(width, 2 * width, generator=generator)
    return weights


def save_model(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    """Save weights as an ordinary model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors")
    return folder


def save_family(folder: Path, size: int = 5, rank: int | None = None, name: str = "family") -> Manifest:
    """A chain of models, each a small step from the one before, with its manifest in `folder`."""
    weights = vit_weights(0)
    nodes = []
    for step in range(size):
        if step:
            generator = torch.Generator().manual_seed(100 + step)
            for key, weight in weights.items():
                if weight.ndim == 2:
                    rows, columns = weight.shape
                    inner = rank or rows
                    move = torch.randn(rows, inner, generator=generator) @ torch.randn(
                        inner, columns, generator=generator
                    )
                    weights[key] = weight + 0.01 * move / inner**0.5
        save_model(folder / f"m{step}", weights)
        nodes.append(Node(f"m{step}", f"m{step}", f"m{step - 1}" if step else None, 0))
    manifest = Manifest(name, tuple(nodes), folder)
    write_manifest(folder / f"{name}.json", manifest)
    return manifest


def run_here(program: str, words: Sequence[object], main: Callable[[], object]) -> tuple[int, str, str]:
    """Exit code, standard output and errors of a program, without the seconds that a new process takes to import torch.

    An exception, which would be a traceback for a user, fails the test.
    """
    out, err, code = io.StringIO(), io.StringIO(), 0
    taken()  # a new process has asked the Hub for nothing yet, whatever the tests before this one have
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *map(str, words)])
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT interrupts, here and in child processes, also where this run was started with the signal ignored.

    A shell starts its background jobs so, and every process inherits it.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def grove() -> Iterator[dict[str, Manifest]]:
    """The quick splits, really trained, in the cache of `grown.py`: whoever changes a model breaks other tests."""
    manifests = {manifest.name: manifest for manifest in grown(*FOREST)}
    yield manifests
    assert not [name for manifest in manifests.values() for name in changed(manifest)]


@pytest.fixture(scope="session")
def forest(grove: dict[str, Manifest]) -> dict[str, Manifest]:
    """Two of them: 2 trees of 7 models each, fully fine-tuned and by LoRA."""
    return {name: grove[name] for name in ("mini_ft", "mini_lora_v")}


@pytest.fixture(scope="session")
def wild(grove: dict[str, Manifest]) -> Manifest:
    """`mini_wild`: every operation once, on the roots of the others."""
    return grove["mini_wild"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; tests that need it are skipped where there is none."""
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        pytest.skip("needs Chromium: install it, or ignore this")
    options = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found[0], args=options)
        yield started
        started.close()


def mutated(data: st.DataObject, content: bytes, least: int = 0, most: int = 6) -> bytes:
    """A file with up to `most` bytes changed, cut off after `least` or more."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, most))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed[: data.draw(st.integers(least, len(changed)))])
