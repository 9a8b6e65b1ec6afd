"""Flags in, exit code out: what every script does around its `main`."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from mother.cli.signals import stoppable, words_of
from mother.cli.streams import steady_streams
from mother.errors import InputError, escaped
from mother.io.runtime import version


def run(main: Callable[[Any], object], arguments: type, words: Sequence[str] | None = None, name: str = "") -> None:
    """Parse the flags, run `main`, and turn what a user can mend into one line and exit code 2.

    `words` are those of the command line, without the program's `name`.
    """
    words = list(sys.argv[1:] if words is None else words)
    # Threads of torch that wait must sleep: those that spin take the core of the one they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with steady_streams(), stoppable():
        _run(main, arguments, words, name)


def _run(main: Callable[[Any], object], arguments: type, words: list[str], name: str) -> None:
    if "--version" in words:
        print(f"MoTHer {version()}")
        return
    import tyro

    try:
        main(tyro.cli(arguments, args=words, prog=name or None))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        place = escaped(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else "a result"
        print(f"error: {place}: {error.strerror or error}. Check path and space.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stopped:
        code, said = words_of(stopped)
        print(f"\n{said}", file=sys.stderr)
        sys.exit(code)
