"""Random access to encoded images and their labels, whatever stores them. No JAX here: it runs in workers."""

import abc
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from jointrd_jax.data.images import BadImage
from jointrd_jax.data.tfrecord import TFRecordFiles
from jointrd_jax.errors import UserError

# Of the formats that `images` opens, as files are commonly called.
IMAGE_SUFFIXES = (
    '.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.apng', '.ppm', '.pgm', '.pbm', '.pnm', '.bmp', '.webp', '.tif', '.tiff',
    '.gif', '.avif', '.jp2', '.j2k',
)  # fmt: skip
OPENED_AT_ONCE = 16


class Source(abc.ABC):
    """(encoded image, label) by position. Picklable: workers get a copy.

    Attributes:
      name: the split, for messages.
      classes: class names in label order.
    """

    name: str
    classes: tuple[str, ...]

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, i: int) -> tuple[bytes, int]:
        """Raises BadImage for a record that cannot be read, UserError for a label out of range."""

    @abc.abstractmethod
    def describe(self, i: int) -> str:
        """Which file or record this is, for messages."""


def read(
    source: Source, i: int, prepare: Callable[[bytes], np.ndarray], skip_bad: bool
) -> tuple[tuple[np.ndarray, int] | None, str | None]:
    """((pixels, label), None) of image i as `prepare` makes them from its bytes, or (None, what is bad about it).

    Raises:
      UserError: it is bad and bad images are not to be skipped.
    """
    label = None
    try:
        data, label = source[i]
        return (prepare(data), label), None
    except (BadImage, MemoryError) as error:
        of_class = '' if label is None else f' (class {source.classes[label]})'
        reason = error if isinstance(error, BadImage) else 'there is too little memory to decode it'
        message = f'{source.describe(i)}{of_class}: {reason}'
        if not skip_bad:
            raise UserError(f'{message}; repair it, or set dataset.on_bad_image=skip') from error
        return None, message


class Folder(Source):
    """The images of ROOT/CLASS/*; a label is the class's place in `classes`.

    Args:
      paths: relative to root, 'CLASS/FILE' as bytes (numpy 'S'), so that a million of them cost little.
      labels: [N] integers.
    """

    def __init__(self, name: str, root: Path, classes: Sequence[str], paths: np.ndarray, labels: np.ndarray):
        self.name, self.root, self.classes = name, os.fspath(root), tuple(classes)
        self.paths, self.labels = paths, labels

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, i: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.paths[i]))

    def describe(self, i: int) -> str:
        return os.fsencode(self.path(i)).decode(errors='backslashreplace')  # a name may be of any bytes

    def __getitem__(self, i: int) -> tuple[bytes, int]:
        try:
            with open(self.path(i), 'rb') as file:
                return file.read(), int(self.labels[i])
        except OSError as error:
            raise BadImage(f'cannot be read ({error.strerror})') from error


class Examples(Source):
    """tf.train.Example records as TFDS writes them.

    Args:
      records: `TFRecordFiles` or `ArrayRecordFiles`.
      image: the name of the feature that holds the image.
      label: the name of the feature that holds the label.
      field: the one of config.dataset that chooses the split, for messages.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        records: 'TFRecordFiles | ArrayRecordFiles',
        image: str,
        label: str,
        field: str,
    ):
        self.name, self.classes, self.records = name, tuple(classes), records
        self.image, self.label, self.field = image, label, field

    def __len__(self) -> int:
        return len(self.records)

    def describe(self, i: int) -> str:
        return self.records.describe(i)

    def __getitem__(self, i: int) -> tuple[bytes, int]:
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

        data = self.records[i]
        try:
            example = tf_example_pb2.Example.FromString(data)  # pyright: ignore[reportAttributeAccessIssue]: made by protobuf
            features = example.features.feature
            image, label = features[self.image].bytes_list.value[0], features[self.label].int64_list.value[0]
        except (DecodeError, IndexError) as error:
            raise BadImage(f'is not an example with {self.image!r} and {self.label!r}') from error
        if not 0 <= label < len(self.classes):
            raise UserError(
                f'{self.describe(i)}: label {label} in split {self.name!r} is out of range for'
                f' {len(self.classes)} classes; set dataset.{self.field} to a labelled split'
            )
        return image, label


class ArrayRecordFiles:
    """Random access to the records of ArrayRecord shards. Picklable.

    Args:
      parts: (path, first record, number of records) in order.

    Raises:
      UserError: a shard is missing, damaged or holds fewer records than expected.
    """

    def __init__(self, parts: Sequence[tuple[str, int, int]]):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.parts = list(parts)
        with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
            list(pool.map(check_array_record, self.parts))
        # 'path[from:to]' is the data source's notation for a part of a shard.
        self.source = ArrayRecordDataSource([f'{path}[{skip}:{skip + take}]' for path, skip, take in parts])
        self.first = np.cumsum([0, *(take for _, _, take in parts)])

    def __len__(self) -> int:
        return int(self.first[-1])

    def describe(self, i: int) -> str:
        part = int(np.searchsorted(self.first, i, 'right')) - 1
        path, skip, _ = self.parts[part]
        return f'{path}, record {skip + i - int(self.first[part])}'

    def __getitem__(self, i: int) -> bytes:
        try:
            return self.source[i]
        except (RuntimeError, IndexError) as error:
            raise BadImage(f'the shard is damaged ({str(error).split(";")[0]})') from error


def check_array_record(part: tuple[str, int, int]) -> None:
    """Raise UserError unless the shard can be opened and has the records that the dataset says it has."""
    from array_record.python.array_record_module import ArrayRecordReader

    path, skip, take = part
    reason = 'missing'
    if os.path.exists(path):
        reader = ArrayRecordReader(path, 'readahead_buffer_size:0')
        if reader.ok() and reader.num_records() >= skip + take:
            reader.close()
            return
        reason = f'cut off or damaged: {reader.num_records()} records where there should be {skip + take}'
    raise UserError(f'{path}: {reason}; copy or prepare this shard again')
