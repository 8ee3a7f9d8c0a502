"""Data sets in a bucket, read from a copy on this machine's disk."""

import os
import shutil
from pathlib import Path

from jointrd_jax.errors import UserError
from jointrd_jax.system import buckets, files
from jointrd_jax.system.notices import say_once

GROUP = 16  # files that are fetched at a time; those that are complete are kept after an interruption
MIB = 2**20


def local(directory: Path) -> Path:
    """`directory` itself, or for one in a bucket its copy on the disk, kept in the cache directory for the next time.

    The readers of ArrayRecord, TFRECORD and of images read files on the disk. A file that is there with the size of its
    object is not fetched again, so an interrupted copy goes on where it was.

    Raises:
      UserError: nothing there, an object whose name leads out of its directory, or no room on the disk.
    """
    if not buckets.is_remote(directory):
        return directory
    copy = files.cache_directory() / 'data' / os.fspath(directory).replace('://', '/').rstrip('/')
    sizes = buckets.sizes(directory)
    if not sizes:
        raise UserError(f'{os.fspath(directory)}: there is nothing of that name')
    missing = [name for name, size in sizes.items() if not is_whole(copy / name, size)]
    if missing:
        check_room(directory, copy, sum(sizes[name] for name in missing))
        size = sum(sizes[name] for name in missing) / MIB
        say_once(f'copying {len(missing)} files, {size:.1f} MiB, of {os.fspath(directory)} to {copy}, to be read there')
    for start in range(0, len(missing), GROUP):
        group = missing[start : start + GROUP]
        parts = [copy / f'{name}.{os.getpid()}.part' for name in group]
        buckets.get(directory, group, parts)
        for name, part in zip(group, parts):
            part.replace(copy / name)
    return copy


def is_whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def check_room(directory: Path, copy: Path, needed: int) -> None:
    """Raises UserError if the disk of `copy` has no room for so many bytes."""
    try:
        copy.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(copy).free
    except OSError as error:
        raise UserError(f'cannot copy {os.fspath(directory)} to {copy}: {files.reason(error)}') from error
    if needed > free:
        raise UserError(
            f'{os.fspath(directory)} is read from a copy, and {copy} has room for {free / MIB:,.0f} of the '
            f'{needed / MIB:,.0f} MiB it needs; set JOINTRD_CACHE_DIR to a directory on a larger disk'
        )
