"""Files that are whole or absent, and directories that one process owns."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jointrd_jax.errors import UserError


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write `path` so that a reader, also after a crash, sees all of it or what was there before.

    Raises:
      UserError: the file cannot be written (permission, full disk, ...).
    """
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f'cannot write {path}: {error.strerror}') from error


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2, sort_keys=True) + '\n')


def read_json(path: Path) -> Any:
    """The JSON value in `path`.

    Raises:
      UserError: unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}') from error
    except ValueError as error:
        raise UserError(f'{path} is damaged: not JSON ({error})') from error


def sha256(path: Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def check_new(directory: Path) -> None:
    """A directory to make must not be there yet, or be empty.

    Raises:
      UserError: it holds something, or is a file.
    """
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise UserError(f'{directory} exists and is not an empty directory; choose another')


@contextlib.contextmanager
def appearing(directory: Path) -> Iterator[Path]:
    """A temporary directory to fill, which becomes `directory` when the body ends well and else vanishes.

    Raises:
      UserError: `directory` holds something already, or nothing can be written there.
    """
    directory = directory.absolute()
    check_new(directory)
    temporary = directory.with_name(f'.{directory.name}.{os.getpid()}.tmp')
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, directory)
    except OSError as error:
        raise UserError(f'cannot write {directory}: {error.strerror or error}') from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def owned(directory: Path) -> Iterator[None]:
    """Make `directory` and hold it for this process; a lock that its owner died with is free.

    Raises:
      UserError: another live process holds it (its host and number are named), or it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / '.lock', 'a+')
    except OSError as error:
        raise UserError(f'cannot use {directory} as a workdir: {error.strerror}') from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise UserError(f'{directory} is in use by {lock.read().strip() or "another process"}') from None
        lock.truncate(0)
        lock.write(f'process {os.getpid()} on host {socket.gethostname()}\n')
        lock.flush()
        yield
