"""TFRECORD shards read in place, without TensorFlow, by random access.

A record is: its length (8 bytes, little-endian), a masked CRC-32C of the length, the data, a masked
CRC-32C of the data. The index of a shard is found by hopping from header to header, so that building it
reads a few bytes per record and not the file. It is kept beside the shards, or in the user's cache
directory where that is read-only.
"""

import hashlib
import io
import logging
import math
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np

from jointrd_jax.data.images import BadImage
from jointrd_jax.errors import UserError
from jointrd_jax.system import files

HEADER, FOOTER = 12, 4  # bytes around the data of a record
INDEX_THREADS = 16  # shards scanned at once: the scan waits for the disk or the network, not for the CPU
MAX_OPEN = 512  # shards kept open per process; the usual limit on open files is 1024

logger = logging.getLogger(__name__)


def masked_crc(data: bytes) -> int:
    """The checksum that the format stores: CRC-32C, rotated and offset."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def scan(path: str) -> np.ndarray:
    """The offset of every record of a shard, and the file's size as last element: int64 [records + 1].

    Raises:
      UserError: the shard cannot be read, is cut off, or the checksum of a length is wrong.
    """
    offsets = []
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from error
    try:
        size, position = os.fstat(file).st_size, 0
        while position < size:
            offsets.append(position)
            header = os.pread(file, HEADER, position)
            if len(header) < HEADER:
                raise UserError(f'{path}: cut off in record {len(offsets) - 1}; copy or prepare this shard again')
            length, crc = struct.unpack('<QI', header)
            if crc != masked_crc(header[:8]):
                raise UserError(
                    f'{path}: record {len(offsets) - 1}, byte {position}: the checksum of its length is wrong;'
                    ' not a TFRECORD file, or damaged: copy or prepare this shard again'
                )
            position += HEADER + length + FOOTER
        if position > size:
            raise UserError(f'{path}: cut off in record {len(offsets) - 1}; copy or prepare this shard again')
    finally:
        os.close(file)
    return np.array([*offsets, size], np.int64)


def index(paths: Sequence[str]) -> list[np.ndarray]:
    """`scan` of every shard; built once, cached, and built again where a shard's size or time has changed."""
    stamps = np.array([stamp(path) for path in paths], np.int64).reshape(-1, 2)
    names = np.array([os.path.basename(path) for path in paths])
    beside = Path(paths[0]).parent / f'.index-{digest(names)}.npz'
    cache = files.cache_directory() / f'index-{digest(map(os.path.abspath, paths))}.npz'
    for file in (beside, cache):
        if (found := load_index(file, names, stamps)) is not None:
            return found
    with ThreadPoolExecutor(INDEX_THREADS) as pool:
        shards = list(pool.map(scan, paths))
    for file in (beside, cache):
        try:
            save_index(file, names, stamps, shards)
            return shards
        except OSError:
            continue
    logger.warning('the index of %s is built at every start: neither %s nor %s can be written', paths[0], beside, cache)
    return shards


def digest(texts: Iterable[str]) -> str:
    """A short name for a list of texts."""
    return hashlib.sha256('\n'.join(texts).encode()).hexdigest()[:16]


def stamp(path: str) -> tuple[int, int]:
    """(size, time of last change): an index made for another stamp is stale."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror}); copy or prepare this shard again') from error
    return status.st_size, status.st_mtime_ns


def load_index(file: Path, names: np.ndarray, stamps: np.ndarray) -> list[np.ndarray] | None:
    """The cached index, or None where there is none or it is stale, unreadable, or not one of these shards.

    The file may have come with data from elsewhere, so its figures are checked before memory is allocated by them.
    """
    try:
        with open(file, 'rb') as content:
            arrays = stored_arrays(content)
        if not (np.array_equal(arrays['names'], names) and np.array_equal(arrays['stamps'], stamps)):
            return None
        shards = np.split(arrays['offsets'].astype(np.int64, casting='safe'), np.cumsum(arrays['lengths'])[:-1])
    except (OSError, ValueError, KeyError, EOFError, TypeError, IndexError, struct.error, RuntimeError):
        return None
    except (zipfile.BadZipFile, zlib.error, SyntaxError, MemoryError, OverflowError):
        return None
    sizes = stamps[:, 0]
    whole = len(shards) == len(sizes) and all(
        shard.ndim == 1 and len(shard) and shard[0] == 0 and shard[-1] == size and (np.diff(shard) > 0).all()
        for shard, size in zip(shards, sizes)
    )
    return shards if whole else None


def stored_arrays(content: BinaryIO) -> dict[str, np.ndarray]:
    """The arrays of an uncompressed .npz. Any other file raises an exception, of one of many types.

    Memory is bounded by the size of the file.
    """
    arrays = {}
    with zipfile.ZipFile(content) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ValueError('compressed')
            if entry.file_size > os.fstat(content.fileno()).st_size:
                raise ValueError('larger than the file')
            data = io.BytesIO(archive.read(entry))
            np.lib.format.read_magic(data)
            shape, _, dtype = np.lib.format.read_array_header_1_0(data)
            if math.prod(shape) * dtype.itemsize > entry.file_size:
                raise ValueError('larger than the file')
            data.seek(0)
            arrays[entry.filename.removesuffix('.npy')] = np.lib.format.read_array(data, allow_pickle=False)
    return arrays


def save_index(file: Path, names: np.ndarray, stamps: np.ndarray, shards: list[np.ndarray]) -> None:
    """Write the index so that readers see all of it or nothing, whoever else writes it at the same time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.name)
    try:
        with os.fdopen(handle, 'wb') as target:
            lengths = np.array([len(shard) for shard in shards])
            np.savez(target, names=names, stamps=stamps, lengths=lengths, offsets=np.concatenate(shards))
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise


class TFRecordFiles:
    """Random access to the records of TFRECORD shards, checksums checked. Picklable.

    Args:
      parts: (path, first record, number of records) in order; a shard may appear in part.
    """

    def __init__(self, parts: Sequence[tuple[str, int, int]]):
        self.paths = [path for path, _, _ in parts]
        shards = index(self.paths)
        for (path, skip, take), shard in zip(parts, shards):
            if len(shard) - 1 < skip + take:
                raise UserError(
                    f'{path}: holds {len(shard) - 1} records where the dataset has at least {skip + take};'
                    ' copy or prepare this shard again'
                )
        self.first = np.cumsum([0, *(take for _, _, take in parts)])
        self.skip = np.array([skip for _, skip, _ in parts])
        self.offsets = [shard[skip : skip + take + 1] for (_, skip, take), shard in zip(parts, shards)]
        self.files: dict[int, int] = {}

    def __len__(self) -> int:
        return int(self.first[-1])

    def __getstate__(self) -> dict:
        return {**self.__dict__, 'files': {}}

    def place(self, i: int) -> tuple[int, int]:
        """(part, record within the part) of record i."""
        part = int(np.searchsorted(self.first, i, 'right')) - 1
        return part, i - int(self.first[part])

    def describe(self, i: int) -> str:
        part, record = self.place(i)
        return f'{self.paths[part]}, record {record + int(self.skip[part])}'

    def __getitem__(self, i: int) -> bytes:
        """Raises BadImage where the data cannot be read or does not match its checksum."""
        part, record = self.place(i)
        start, stop = (int(n) for n in self.offsets[part][record : record + 2])
        try:
            raw = os.pread(self.file(part), stop - start, start)
        except OSError as error:
            raise BadImage(f'cannot be read ({error.strerror})') from error
        data = raw[HEADER:-FOOTER]
        if len(raw) < stop - start or masked_crc(data) != int.from_bytes(raw[-FOOTER:], 'little'):
            raise BadImage('its checksum is wrong: the shard is damaged')
        return data

    def file(self, part: int) -> int:
        """The open shard; the one opened first is closed where there would be too many."""
        if part not in self.files:
            if len(self.files) >= MAX_OPEN:
                os.close(self.files.pop(next(iter(self.files))))
            self.files[part] = os.open(self.paths[part], os.O_RDONLY)
        return self.files[part]

    def __del__(self, close=os.close):  # bound here: at the interpreter's end `os` may be gone
        for file in getattr(self, 'files', {}).values():
            close(file)
