"""SIGTERM and SIGINT: the first asks for a checkpoint and a stop, the second ends the process at once.

A thread reads what the C-level handler writes to a pipe, so signals count also while the main thread
is inside a long call such as a compilation, where Python's own handlers would wait for it to return.

    nothing to lose (loading, compiling, no step since the last start)   first signal: exit 75 at once
    training                                                            first: finish the step, checkpoint, exit 75
    any time                                                            second: exit 128 + number at once

75 is EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again.
"""

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

STOPPED_STATUS = 75
SIGNALS = (signal.SIGTERM, signal.SIGINT)
NOTHING_TO_SAVE = 'stopped before there was new work to save; the same command continues'

_received: list[int] = []
_temporary: set[Path] = set()
_groups: set[int] = set()
_at_stake = False


def requested() -> str | None:
    """The name of the first signal that asked for a stop, or None."""
    return signal.Signals(_received[0]).name if _received else None


def request_stop() -> None:
    """Ask for a stop as SIGTERM does (for callers without `handled`: a notebook, a scheduler's callback)."""
    _received.append(signal.SIGTERM)


def clear() -> None:
    """Forget a request."""
    _received.clear()


@contextlib.contextmanager
def work_at_stake() -> Iterator[None]:
    """While the body runs, a first signal only makes `requested` return it; elsewhere it ends the process."""
    global _at_stake
    _at_stake = True
    try:
        yield
    finally:
        _at_stake = False


@contextlib.contextmanager
def handled(stopped: str = NOTHING_TO_SAVE) -> Iterator[None]:
    """Handle the signals as above while the body runs. For the main thread of a command.

    Args:
      stopped: what is said where a first signal ends the process.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    previous_pipe = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, stopped), name='signals', daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous_pipe)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(writer)  # ends the thread


def _watch(reader: int, stopped: str) -> None:
    while data := os.read(reader, 1):
        number = data[0]
        if number in SIGNALS:
            _received.append(number)
            if len(_received) > 1:
                _end_now(128 + number, 'again, ending at once; the last checkpoint is kept')
            elif not _at_stake:
                _end_now(STOPPED_STATUS, stopped)
            else:
                _say('finishing the step and writing a checkpoint; once more ends at once')
    os.close(reader)


def _say(message: str) -> None:
    number = _received[-1]
    # One write to the descriptor: the main thread may hold the lock of sys.stderr.
    with contextlib.suppress(OSError):
        os.write(2, f'{signal.Signals(number).name}: {message}\n'.encode())


def _end_now(status: int, message: str) -> None:
    _say(message)
    end(status)


@contextlib.contextmanager
def removed_if_ended(directory: Path) -> Iterator[None]:
    """If the process is ended by `end` in the body, remove the temporary `directory` first."""
    _temporary.add(directory)
    try:
        yield
    finally:
        _temporary.discard(directory)


@contextlib.contextmanager
def killed_if_ended(group: int) -> Iterator[None]:
    """If the process is ended by `end` in the body, kill the processes of `group` with it."""
    _groups.add(group)
    try:
        yield
    finally:
        _groups.discard(group)


def end(status: int) -> None:
    """End this process at once, without what Python and JAX do at exit."""
    for group in list(_groups):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    for directory in list(_temporary):
        shutil.rmtree(directory, ignore_errors=True)
    for child in multiprocessing.active_children():  # data workers would wait for work for ever
        child.kill()
    if sys.stdout.isatty():
        os.write(1, b'\x1b[?25h')  # a progress bar hides the cursor
    os._exit(status)
