"""Signals end a program with one line and the code that shells expect, and let it clean up before."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """The program was asked to stop by a signal. Whatever cleans up after Ctrl-C cleans up after this one, too."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def words_of(stopped: KeyboardInterrupt) -> tuple[int, str]:
    """The exit code of a program that was stopped, and what to say."""
    number = stopped.number if isinstance(stopped, Stopped) else signal.SIGINT
    by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    return 128 + number, f"stopped{by}; what was finished is kept, and the next run goes on from there"


@contextmanager
def stoppable() -> Iterator[None]:
    """Let signals raise Stopped in here. One that is ignored, as with nohup, stays so."""
    if threading.current_thread() is not threading.main_thread():  # only that one may say what signals do
        yield
        return
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: handler for number in STOPPING if (handler := signal.getsignal(number)) in usual}

    def stop(number: int, frame: FrameType | None) -> None:
        # Others come while this program cleans up: `timeout` sends its signal twice. A second Ctrl-C ends it at once.
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        if signal.SIGINT in before:
            signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
        raise Stopped(number)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_stopped(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> Any:
    """What becomes of an error that nobody has caught: one line for Ctrl-C, a traceback for the others."""
    if not isinstance(error, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    code, _ = words_of(error)
    if sys.stderr is not None:
        print("\nstopped before anything was done", file=sys.stderr)
    raise SystemExit(code)


def stoppable_while_starting() -> None:
    """Ctrl-C shows no traceback, neither while modules are still imported."""
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _say_stopped
