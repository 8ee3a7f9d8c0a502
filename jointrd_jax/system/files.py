"""Files that are whole or absent, and directories that one process owns: on a disk, or in a bucket (see `buckets`)."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jointrd_jax.errors import UserError
from jointrd_jax.system import buckets, signals

MAX_TEXT = 64 << 20  # bytes; far beyond any text file of ours, small enough to read whole
REASON_LENGTH = 300
LOCK = buckets.LEASE  # the file that a run's directory is locked by


def reason(error: BaseException) -> str:
    """One short line for an exception of the system or of a library."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if of_store := buckets.reason(error):
        return of_store
    text = ' '.join(str(error).split()) or type(error).__name__
    if 'No space left on device' in text or 'RESOURCE_EXHAUSTED' in text:
        return 'No space left on device'
    return text if len(text) <= REASON_LENGTH else f'{text[:REASON_LENGTH]}...'


def cache_directory() -> Path:
    """Where compiled programs, and what else can be made again, are kept.

    $JOINTRD_CACHE_DIR, or jointrd_jax in the user's cache directory.
    """
    if chosen := os.environ.get('JOINTRD_CACHE_DIR'):
        return Path(chosen)
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'jointrd_jax'


def sync(path: Path) -> None:
    """Wait until the file or directory `path` is on the disk itself (a power failure cannot take it back)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write `path` so that a reader, also after a crash, sees all of it or what was there before.

    Raises:
      UserError: the file cannot be written (permission, full disk, ...).
    """
    data = data.encode() if isinstance(data, str) else data
    if buckets.is_remote(path):
        try:
            return buckets.put(path, data)
        except buckets.failures() as error:
            raise UserError(f'cannot write {path}: {reason(error)}') from error
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f'cannot write {path}: {reason(error)}') from error


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2, sort_keys=True) + '\n')


def append_line(path: Path, line: str) -> None:
    """Add a line to `path`: all of it, on the disk, or nothing.

    Raises:
      UserError: it cannot be written (permission, full disk, ...).
    """
    if buckets.is_remote(path):  # a store does not append: the object is written anew
        return write_atomically(path, (read_text(path) if path.exists() else '') + f'{line}\n')
    try:
        with open(path, 'ab', buffering=0) as file:
            before, data = file.seek(0, os.SEEK_END), f'{line}\n'.encode()
            try:
                while data:
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise
    except OSError as error:
        raise UserError(f'cannot write {path}: {reason(error)}') from error


def read_text(path: Path) -> str:
    """The text in `path`, in bounded memory.

    Raises:
      UserError: unreadable, not UTF-8, or larger than any text file of ours.
    """
    try:
        with path.open('rb') as file:
            data = file.read(MAX_TEXT + 1)
    except buckets.failures() as error:
        raise UserError(f'cannot read {path}: {reason(error)}') from error
    if len(data) > MAX_TEXT:
        raise UserError(f'{path} is larger than {MAX_TEXT >> 20} MiB, larger than any text file that jointrd writes')
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is damaged: not UTF-8 ({error.reason} at byte {error.start})') from error


def read_json(path: Path) -> Any:
    """The JSON value in `path`.

    Raises:
      UserError: unreadable or not JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is damaged: not JSON ({error})') from error


def sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def check_new(directory: Path) -> None:
    """Check that `directory` is not there yet, or is empty.

    Raises:
      UserError: it holds something, or is a file.
    """
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise UserError(f'{directory} exists and is not an empty directory; choose another')


def absolute(path: str | os.PathLike) -> Path:
    """`buckets.place`, made absolute if it is on a disk."""
    found = buckets.place(path)
    return found if buckets.is_remote(found) else found.absolute()


def remove(path: Path) -> None:
    """Delete a file, if it is there.

    Raises:
      UserError: it cannot be deleted.
    """
    try:
        path.unlink(missing_ok=True)
    except buckets.failures() as error:
        raise UserError(f'cannot delete {path}: {reason(error)}') from error


def make_parent(path: Path) -> None:
    """Make the directory that `path` is to lie in; a bucket needs none.

    Raises:
      UserError: it cannot be made.
    """
    try:
        if not buckets.is_remote(path):
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot write {path}: {reason(error)}') from error


@contextlib.contextmanager
def temporary_directory(prefix: str = 'jointrd-') -> Iterator[Path]:
    """A local directory that is deleted after the body, also if a signal ends the process in it."""
    with tempfile.TemporaryDirectory(prefix=prefix) as directory, signals.removed_if_ended(Path(directory)):
        yield Path(directory)


@contextlib.contextmanager
def atomic_directory(directory: Path, last: str = '') -> Iterator[Path]:
    """A temporary directory to fill, which becomes `directory`, or is deleted if the body raises.

    To a bucket its files are sent at the end, the one called `last` after all others, so if it is there, all are.

    Raises:
      UserError: `directory` holds something already, or nothing can be written there.
    """
    directory = absolute(directory)
    if buckets.is_remote(directory):
        with buckets.answering(directory, '; nothing there counts until the same command ends well'):
            check_new(directory)
            with temporary_directory() as temporary:
                yield temporary
                buckets.send(temporary, directory, last)
        return
    check_new(directory)
    temporary = directory.with_name(f'.{directory.name}.{os.getpid()}.tmp')
    try:
        with signals.removed_if_ended(temporary):
            temporary.mkdir(parents=True)
            yield temporary
            os.replace(temporary, directory)
    except OSError as error:
        raise UserError(f'cannot write {directory}: {error.strerror or error}') from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make `directory` and lock it for this process; the lock of a process that ended is free.

    The lock is the kernel's (flock), so it ends with its owner however that dies; the text in the
    file only tells others who holds it. In a bucket it is a `buckets.Lease`.

    Raises:
      UserError: another live process holds it (its host and number are named), or it cannot be made.
    """
    if buckets.is_remote(directory):
        lease = buckets.Lease(directory)
        try:
            lease.take()
        except buckets.failures() as error:
            raise UserError(f'cannot use {directory} as a workdir: {reason(error)}') from error
        try:
            yield
        finally:
            lease.release()
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / LOCK, 'a+')
    except OSError as error:
        raise UserError(f'cannot use {directory} as a workdir: {reason(error)}') from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f'{directory} is in use by {read_owner(lock)}; wait for it, end it, or use another --workdir'
            ) from None
        except OSError as error:
            raise UserError(
                f'cannot lock {directory}, so two runs could write to it at once: {reason(error)}'
            ) from error
        try:
            lock.truncate(0)
            lock.write(f'process {os.getpid()} on host {socket.gethostname()}\n')
            lock.flush()
        except OSError as error:
            raise UserError(f'cannot write {directory / LOCK}: {reason(error)}') from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                lock.truncate(0)


def read_owner(lock: Any) -> str:
    """Who holds a taken lock; its owner writes that right after taking it."""
    for _ in range(20):
        lock.seek(0)
        owner = lock.read(1000).strip()
        if owner:
            return owner
        time.sleep(0.05)
    return 'another process'
