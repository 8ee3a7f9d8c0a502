"""Places in an object store, gs://BUCKET/... and s3://BUCKET/..., beside those on a disk.

etils.epath gives a path in a bucket the methods of pathlib, over fsspec's gcsfs and s3fs (extras [gcs] and [s3]); these
find credentials, endpoints and proxies as their documentation says. A store writes one object whole or not at all, but
it does not rename, append or lock. So a directory is made on the local disk and sent, the file that
marks it as complete last (`send`), and a process owns a place by a lease (`Lease`).
"""

import atexit
import contextlib
import logging
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jointrd_jax.errors import UserError, require

EXTRAS = {'gs': ('gcsfs', 'gcs'), 's3': ('s3fs', 's3')}  # scheme: (package, extra)
URL = re.compile(r'([a-z][a-z0-9+.-]+):/{1,2}(.*)', re.DOTALL)  # pathlib leaves one slash
# What the clients raise beside OSError; looked up among loaded modules, since the extras may not be installed.
FAILURES = (
    ('botocore.exceptions', 'BotoCoreError'),
    ('botocore.exceptions', 'ClientError'),
    ('aiohttp', 'ClientError'),
    ('gcsfs.retry', 'HttpError'),
    ('google.auth.exceptions', 'GoogleAuthError'),
    ('fsspec.exceptions', 'FSTimeoutError'),
)
REQUEST_SECONDS = 120
LEASE = '.lock'
RENEW_SECONDS, WATCH_SECONDS = 5.0, 1.0
DEAD_SECONDS = 30.0  # an owner that has not renewed for so long is taken for dead

logger = logging.getLogger(__name__)


def is_remote(path: str | os.PathLike) -> bool:
    """Whether `path` is a place in a bucket."""
    match = URL.match(os.fspath(path))
    return bool(match and match[1] in EXTRAS)


def check_scheme(text: str) -> None:
    """Raises UserError where a path has another scheme than gs and s3."""
    match = URL.match(text)
    if match and match[1] not in EXTRAS and '://' in text:
        known = ' or '.join(f'{name}://BUCKET/...' for name in EXTRAS)
        raise UserError(f'{text}: {match[1]}:// is not supported; give a local path, {known}')


def place(text: str | os.PathLike) -> Path:
    """A path on the disk, or in a bucket with the same methods.

    Raises:
      UserError: another scheme than gs and s3, no bucket named, or the extra for it is missing.
    """
    text = os.fspath(text)
    check_scheme(text)
    match = URL.match(text)
    if not match or match[1] not in EXTRAS:
        return Path(text)
    scheme, rest = match.groups()
    if not rest.split('/')[0]:
        raise UserError(f'{text} names no bucket; write {scheme}://BUCKET/NAME')
    require(*EXTRAS[scheme])
    epath = prepared_epath()
    return epath.Path(f'{scheme}://{rest}')


def prepared_epath() -> Any:
    """The module etils.epath, set to use fsspec alone and to see what other processes write."""
    os.environ.setdefault('EPATH_USE_TF', 'false')  # else the answer depends on whether TensorFlow is installed
    os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')  # else it asks and logs every bucket's kind
    import fsspec.config
    from etils import epath

    for protocol in ('s3', 'gs', 'gcs'):  # kept listings would hide what other processes write
        fsspec.config.conf.setdefault(protocol, {}).setdefault('use_listings_cache', False)
    for protocol in ('gs', 'gcs'):  # gcsfs would wait for ever; it tries again after this
        fsspec.config.conf[protocol].setdefault('requests_timeout', REQUEST_SECONDS)
    for name in (
        'gcsfs',
        's3fs',
        'fsspec',
        'asyncio',
        'google.auth',
    ):  # they log every try; the last error is raised
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return epath


def filesystem(path: Path) -> Any:
    """fsspec's file system of a place in a bucket."""
    import fsspec

    prepared_epath()
    return fsspec.filesystem(os.fspath(path).partition('://')[0])


def failures() -> tuple[type[BaseException], ...]:
    """The exceptions that a disk, or a bucket that does not answer, raises."""
    found = [getattr(sys.modules.get(module), name, None) for module, name in FAILURES]
    return (OSError, *(error for error in found if error))


def reason(error: BaseException) -> str | None:
    """What a store's error means; None where its own text says it."""
    if isinstance(error, FileNotFoundError) and error.errno is None:
        return 'there is no such bucket, or nothing of that name in it'
    if isinstance(error, PermissionError) and error.errno is None:
        return f'no permission ({" ".join(str(error).split()) or "the store gives no reason"})'
    return None


@contextlib.contextmanager
def answering(path: str | os.PathLike, then: str = '') -> Any:
    """Turn the errors of a bucket that does not answer in the body into a UserError of one line.

    Raises:
      UserError: it cannot be reached or used; `then` says what to do.
    """
    try:
        yield
    except failures() as error:
        if not is_remote(path):
            raise
        text = reason(error) or getattr(error, 'strerror', None) or ' '.join(str(error).split())
        raise UserError(f'{os.fspath(path)}: {text}{then}') from error


def find(directory: Path, name: str) -> list[Path]:
    """All files called `name` in `directory` or below, sorted."""
    if not is_remote(directory):
        return sorted(directory.rglob(name))
    scheme = os.fspath(directory).partition('://')[0]
    names = filesystem(directory).find(os.fspath(directory))
    return sorted(place(f'{scheme}://{found}') for found in names if found.rpartition('/')[2] == name)


def names(directory: Path) -> list[str]:
    """The names directly in a place in a bucket; [] where it does not exist."""
    remote = filesystem(directory)
    try:
        return [name.rstrip('/').rpartition('/')[2] for name in remote.ls(os.fspath(directory), detail=False)]
    except FileNotFoundError:
        return []


def put(path: Path, data: bytes) -> None:
    """Write one object: all of it or nothing."""
    filesystem(path).pipe_file(os.fspath(path), data)


def send(directory: Path, to: Path, last: str = '') -> None:
    """Copy all files of a local directory into a bucket; the file called `last` when all others are there."""
    names = sorted(os.fspath(path.relative_to(directory)) for path in directory.rglob('*') if path.is_file())
    names = [name for name in names if name != last]
    remote = filesystem(to)
    for group in (names, [last] if last else []):
        if group:
            remote.put([os.fspath(directory / name) for name in group], [f'{os.fspath(to)}/{name}' for name in group])


def fetch(directory: Path, to: Path) -> None:
    """Copy everything under a place in a bucket to the new local directory `to`."""
    names = list(sizes(directory))
    to.mkdir(parents=True, exist_ok=True)
    get(directory, names, [to / name for name in names])


def get(directory: Path, names: Sequence[str], targets: Sequence[Path]) -> None:
    """Copy the objects `names` under a place in a bucket to the local files `targets`."""
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
    if names:
        objects = [f'{os.fspath(directory)}/{name}' for name in names]
        filesystem(directory).get(objects, [os.fspath(target) for target in targets])


def sizes(directory: Path) -> dict[str, int]:
    """{name below `directory`: bytes} of all objects under a place in a bucket.

    Raises:
      UserError: a name leads out of the directory.
    """
    root = os.fspath(directory).partition('://')[2]
    found = filesystem(directory).find(os.fspath(directory), detail=True)
    sizes = {os.path.relpath(name, root): about['size'] or 0 for name, about in found.items() if name[-1:] != '/'}
    if any(name.startswith('..') for name in sizes):
        raise UserError(f'{os.fspath(directory)} holds an object whose name leads out of it')
    return sizes


def size(directory: Path) -> int:
    """Bytes of all objects under a place in a bucket."""
    return sum(sizes(directory).values())


def remove(directory: Path, first: str = '') -> None:
    """Delete everything under a place in a bucket; the object called `first` before all others."""
    remote = filesystem(directory)
    if first:
        with contextlib.suppress(FileNotFoundError):
            remote.rm_file(f'{os.fspath(directory)}/{first}')
    if names := remote.find(os.fspath(directory)):
        remote.rm(names)


def resolved(path: Path) -> Path:
    """`path` without links and dots, to tell whether two are one."""
    return path if is_remote(path) else path.resolve()


def kept_until_exit() -> Path:
    """A new local directory, which is deleted when this process ends."""
    directory = Path(tempfile.mkdtemp(prefix='jointrd-'))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def local_copy(path: Path) -> Path:
    """A file on the disk: `path` itself, or a copy of it that is kept until this process ends."""
    if not is_remote(path):
        return path
    directory = kept_until_exit()
    filesystem(path).get_file(os.fspath(path), os.fspath(directory / path.name))
    return directory / path.name


class Lease:
    """Owning a place in a bucket: the object .lock, renewed by a thread every few seconds.

    A process that starts and finds a lock watches it. If it changes, its owner is alive; if it stays the same for
    `DEAD_SECONDS` (or its process on this host is gone), the owner is dead and the lock is taken over. No clocks are
    compared.
    Taking a lock that is not there is exclusive (a conditional write). Of several that take over a dead owner's lock in
    the same second the last writer owns it; the others see that a second later, or when they `check`, as everyone
    does before a checkpoint.
    """

    def __init__(self, directory: Path):
        self.path, self.lost = directory / LEASE, False
        self.owner = f'process {os.getpid()} on host {socket.gethostname()}'
        self.mark, self.count, self.answers = uuid.uuid4().hex, 0, True
        self.ended = threading.Event()
        self.renewing = threading.Thread(target=self.renew, name='lease', daemon=True)

    def text(self) -> bytes:
        return f'{self.owner}\n{self.mark} {self.count}\n'.encode()

    def read(self) -> bytes | None:
        try:
            return filesystem(self.path).cat_file(os.fspath(self.path))
        except FileNotFoundError:
            return None

    def take(self) -> None:
        """Raises UserError: a living process holds it."""
        try:
            filesystem(self.path).pipe_file(os.fspath(self.path), self.text(), mode='create')
        except FileExistsError:
            self.take_over()
        self.renewing.start()
        held.append(self)

    def take_over(self) -> None:
        before = self.read()
        if before is not None and not owner_is_gone(before):
            logger.warning('%s is locked: watching up to %.0f s for its owner', self.path.parent, DEAD_SECONDS)
        deadline = time.monotonic() + DEAD_SECONDS
        while before is not None and not owner_is_gone(before) and time.monotonic() < deadline:
            time.sleep(WATCH_SECONDS)
            if (now := self.read()) != before and now is not None:
                owner = now.decode(errors='replace').splitlines()[0] if now else 'another process'
                raise UserError(
                    f'{self.path.parent} is in use by {owner}; wait for it, end it, or use another --workdir'
                )
            before = now
        put(self.path, self.text())
        time.sleep(WATCH_SECONDS)
        if self.read() != self.text():
            raise UserError(f'{self.path.parent} was taken by another process at the same moment; wait for it')

    def renew(self) -> None:
        while not self.ended.wait(RENEW_SECONDS):
            try:
                self.check()
                self.count += 1
                put(self.path, self.text())
                self.answers = True
            except (UserError, *failures()):  # a store that does not answer now may do so next time
                self.answers = False

    def check(self) -> None:
        """Raises UserError: another process took the place over, since this one did not renew its lease in time."""
        if not self.lost:
            found = self.read()
            self.lost = found is None or self.mark not in found.decode(errors='replace')
        if self.lost:
            self.ended.set()
            raise UserError(
                f'{self.path.parent} was taken over by another process because this one had not renewed its lock'
            )

    def release(self) -> None:
        held.remove(self)
        self.ended.set()
        self.renewing.join(RENEW_SECONDS)
        if self.renewing.is_alive() or not self.answers:
            return  # the lock stays, and is seen to be a dead owner's
        with contextlib.suppress(UserError, *failures()):
            self.check()
            filesystem(self.path).rm_file(os.fspath(self.path))


held: list[Lease] = []  # by this process


def check_owned(path: Path) -> None:
    """Raises UserError if `path` lies in a place that this process owned and that another has taken over."""
    for lease in held:
        if lease.path.parent in path.parents:
            lease.check()


def owner_is_gone(text: bytes) -> bool:
    """Whether a lock names a process of this host that is no more."""
    match = re.match(rb'process (\d+) on host (.*)', text)
    if not match or match[2].decode(errors='replace') != socket.gethostname():
        return False
    if int(match[1]) == os.getpid():  # a container that was started again
        return True
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
