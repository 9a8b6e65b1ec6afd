"""Run benchmarks and keep what they print in benchmarks/RESULTS.md, with the machine and the versions.

    python -m benchmarks                       all of them
    python -m benchmarks arborescence speed    these
    python -m benchmarks.zoo --seeds 1         one with options of its own: what it prints is not kept

A benchmark that is not run keeps the section of its last run. Exit code 1 where one misses a threshold of its own.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch

from mother.io.files import write_text
from mother.io.runtime import versions

RESULTS = Path(__file__).parent / "RESULTS.md"
NAMES = (
    "startup",
    "arborescence",
    "adapters",
    "kernels",
    "speed",
    "page",
    "explain",
    "growth",
    "unrelated",
    "strangers",
    "index",
    "blocks",
    "engines",
    "many",
    "millions",
    "zoo",
    "audit",
    "precision",
    "calibrate",
    "ablation",
    "kill",
    "fuzz",
)
HEAD = "# Results of the benchmarks\n\nWritten by `python -m benchmarks`: of each benchmark its last run.\n"


def machine() -> str:
    """Processor, memory, GPU."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        model = found[1]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: not measured on one"
    return f"{os.cpu_count()} cores, {model}, {memory:.0f} GiB; {gpu}"


def commit() -> str:
    """The commit that is measured, marked where files other than the results differ from it."""
    at = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    what = ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/RESULTS.md"]
    changed = subprocess.run(what, capture_output=True, text=True).stdout.strip()
    return (at or "unknown") + ("-dirty" if changed else "")


def sections(text: str) -> dict[str, str]:
    """Sections of RESULTS.md by the name of their benchmark."""
    parts = re.split(r"^## (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def measured(name: str) -> tuple[str, bool]:
    """Run one benchmark, show what it prints, and return its section and whether it kept its thresholds."""
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    started, of, lines = time.perf_counter(), commit(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    needed = time.perf_counter() - started
    kept = process.returncode == 0
    used = ", ".join(f"{package} {version}" for package, version in versions().items())
    about = f"`python -m benchmarks.{name}`, {date.today()}, {needed:.0f} s, commit {of}. {machine()}. {used}.\n"
    verdict = "All thresholds kept." if kept else "**A threshold was missed** (or the run failed)."
    return f"\n{about}{verdict}\n\n```\n{''.join(lines).rstrip()}\n```\n\n", kept


def main(names: list[str]) -> bool:
    """Run these benchmarks; what each printed is kept as soon as it ends."""
    missed = []
    for name in names:
        print(f"== {name}", flush=True)
        section, kept = measured(name)
        found = sections(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        found[name] = section
        ordered = [f"## {one}\n\n{found[one].strip()}\n" for one in NAMES if one in found]
        write_text(RESULTS, "\n".join([HEAD, *ordered]))
        missed += [] if kept else [name]
    if missed:
        print(f"thresholds missed: {', '.join(missed)}")
    return not missed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; by default all")
    names = parser.parse_args().names or list(NAMES)
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    sys.exit(0 if main(names) else 1)
