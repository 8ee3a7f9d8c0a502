"""Where the checkpoints of a run lie: in a directory on a disk, or in a bucket."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from jointrd_jax.runs.seal import PARTIAL, SEAL, damage
from jointrd_jax.system import buckets, files, signals

REMOVING, PROBE = '.removing', '.probe'
OURS = re.compile(r'\d+(\.partial.*)?(\.removing)?|\.probe.*')
DIRECTORY = 'checkpoints'  # of a run
SCRATCH, SCRATCH_SECONDS = 'jointrd-checkpoints-', 60
STEP = re.compile(r'0|[1-9][0-9]{0,17}')


def require_room(directory: Path, size: int) -> None:
    """Raises OSError if `directory` cannot be written to or its file system has less than `size` bytes left.

    Checked before writing: when Orbax fails half-way, its other writes go on, leave files and error messages
    behind, and hold up the end of the process for minutes.
    """
    tempfile.TemporaryDirectory(prefix=PROBE, dir=directory).cleanup()
    if shutil.disk_usage(directory).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def remove(directory: Path) -> None:
    """Delete a checkpoint; if that is interrupted, what is left no longer has a checkpoint's name."""
    if not directory.exists():
        return
    going = directory.with_name(directory.name + REMOVING)
    shutil.rmtree(going, ignore_errors=True)
    directory.rename(going)
    shutil.rmtree(going, ignore_errors=True)


class Disk:
    """Checkpoints DIR/STEP on a disk. Each comes and goes by a rename: one named by a step is whole, or was damaged."""

    def __init__(self, directory: Path):
        self.directory = directory

    def steps(self) -> list[int]:
        """All checkpoints there, newest first, damaged ones too."""
        if not self.directory.is_dir():
            return []
        names = (path.name for path in self.directory.iterdir())
        return sorted((int(name) for name in names if STEP.fullmatch(name)), reverse=True)

    def damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint (see `seal.damage`)."""
        return damage(self.directory / str(step))

    def local(self, step: int) -> Path:
        """Where the files of a checkpoint can be read."""
        return self.directory / str(step)

    def begin(self, step: int, size: int) -> Path:
        """Where a checkpoint of `size` bytes is to be written first; raises OSError if it cannot be."""
        self.directory.mkdir(parents=True, exist_ok=True)
        require_room(self.directory, size)
        return self.directory / f'{step}{PARTIAL}'

    def publish(self, partial: Path) -> None:
        """Give a sealed checkpoint its name."""
        self.remove(int(partial.name.removesuffix(PARTIAL)))
        partial.rename(partial.with_name(partial.name.removesuffix(PARTIAL)))
        files.sync(self.directory)

    def finish(self) -> None:
        """Give their names to checkpoints that a process sealed and could not rename before it died."""
        for partial in self.directory.glob(f'*{PARTIAL}'):
            if not partial.with_name(partial.name.removesuffix(PARTIAL)).exists() and damage(partial) is None:
                self.publish(partial)

    def remove(self, step: int) -> None:
        """Delete a checkpoint."""
        remove(self.directory / str(step))

    def clear(self, kept: list[int]) -> None:
        """Delete all checkpoints but those kept, unfinished ones too; anything with another name is left."""
        if not self.directory.is_dir():
            return
        names = {str(step) for step in kept}
        for path in self.directory.iterdir():
            if path.name not in names and OURS.fullmatch(path.name) and path.is_dir():
                shutil.rmtree(path) if path.name.endswith(REMOVING) else remove(path)

    def remove_partial(self, step: int | str) -> None:
        """Delete what is left of a save that failed ('*': of any)."""
        for left in self.directory.glob(f'{step}{PARTIAL}*'):
            shutil.rmtree(left, ignore_errors=True)


class Bucket:
    """STEP/* in a bucket, written on the local disk first and sent with the seal as the last object.

    A checkpoint without its seal does not count: it is being sent, being deleted (the seal goes first), or was given
    up. To be read, a checkpoint is fetched to the local disk and checked against its seal there.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        cleanup = contextlib.ExitStack()
        self.scratch = cleanup.enter_context(scratch())
        weakref.finalize(self, cleanup.close)

    def steps(self) -> list[int]:
        found = buckets.find(self.directory, SEAL)
        names = [path.parent.name for path in found if path.parent.parent == self.directory]
        return sorted((int(name) for name in names if STEP.fullmatch(name)), reverse=True)

    def damage(self, step: int) -> str | None:
        fault = damage(self.local(step))
        return fault and fault.replace(str(self.scratch), str(self.directory))

    def local(self, step: int) -> Path:
        here = self.scratch / str(step)
        if not here.exists():
            self.forget()
            place = self.directory / str(step)
            require_room(self.scratch, buckets.size(place))
            buckets.fetch(place, here)
        return here

    def forget(self) -> None:
        """Delete the local copies of checkpoints that were fetched before."""
        for path in self.scratch.iterdir():
            if STEP.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def begin(self, step: int, size: int) -> Path:
        self.forget()
        require_room(self.scratch, size)
        return self.scratch / f'{step}{PARTIAL}'

    def publish(self, partial: Path) -> None:
        step = int(partial.name.removesuffix(PARTIAL))
        buckets.check_owned(self.directory)
        self.remove(step)
        buckets.send(partial, self.directory / str(step), last=SEAL)
        shutil.rmtree(partial, ignore_errors=True)

    def finish(self) -> None:
        """Nothing to do: a sealed checkpoint has its name."""

    def remove(self, step: int) -> None:
        buckets.remove(self.directory / str(step), first=SEAL)

    def clear(self, kept: list[int]) -> None:
        sealed = {str(step) for step in kept}
        for name in buckets.names(self.directory):
            if name not in sealed and STEP.fullmatch(name):
                self.remove(int(name))

    def remove_partial(self, step: int | str) -> None:
        for left in self.scratch.glob(f'{step}{PARTIAL}*'):
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A local directory for the time of the body; those of processes that were killed are deleted first."""
    for left in Path(tempfile.gettempdir()).glob(f'{SCRATCH}*'):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > SCRATCH_SECONDS:  # younger: may not be locked yet
                with held(left):
                    shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=SCRATCH))
    with signals.removed_if_ended(made), held(made):
        yield made
        shutil.rmtree(made, ignore_errors=True)


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """The kernel's lock on a local directory, which ends with its process; raises OSError if another has it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def at(run: Path) -> Disk | Bucket:
    """The checkpoints of the run directory `run`."""
    directory = files.absolute(run) / DIRECTORY
    return Bucket(directory) if buckets.is_remote(directory) else Disk(directory)
